"""The Megatron-core model: built from a Hugging Face config, filled from model files, run in Megatron's schedules."""

import nemo_simplerl.parallel  # noqa: F401  before a module of this package imports Megatron
