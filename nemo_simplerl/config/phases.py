"""Phases of a step, in order: what is timed, can be limited, and where faults strike."""

PHASES = (
    "rollout",
    "reward",
    "old_logprobs",
    "reference_logprobs",
    "values",
    "critic_update",
    "actor_update",
    "refit",
    "log",
    "eval",
    "save_blocking",
)
