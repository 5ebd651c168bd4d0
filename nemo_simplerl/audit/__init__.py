"""A second look at graded responses: likely mistakes of the grader, and responses that exploit it."""
