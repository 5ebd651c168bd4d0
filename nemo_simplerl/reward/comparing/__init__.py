"""Whether two answers are equal: numbers, formulas, equations, collections, sets of reals, choices."""
