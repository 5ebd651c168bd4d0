"""The PPO trainer: the loop, the roles it calls, and what saves, logs and guards a run."""

import nemo_simplerl.parallel  # noqa: F401  before a module of this package imports Megatron
