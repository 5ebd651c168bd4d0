"""One form of a model written as another, on one rank or many, and the proof that they are equal."""
