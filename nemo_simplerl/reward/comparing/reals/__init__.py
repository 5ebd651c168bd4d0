"""Sets of real numbers: intervals, and inequalities solved by their signs between roots."""
