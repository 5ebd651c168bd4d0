"""The mesh of ranks, and collectives over its groups: reductions, vocabulary-parallel log-probabilities."""

from nemo_simplerl.parallel.no_triton import let_megatron_import_without_triton

let_megatron_import_without_triton()  # here: it must come before any module that imports Megatron
