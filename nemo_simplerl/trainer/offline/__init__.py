"""Uses of a run's engine and grader without training: benchmarks, and samples of a teacher."""
