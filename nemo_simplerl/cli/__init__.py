"""One thin module a command; `main` lists them."""
