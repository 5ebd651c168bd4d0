"""The mesh of ranks, and collectives over its groups: reductions, vocabulary-parallel log-probabilities."""
