"""Names of the phases of a step, in order: the timer, the watchdog's limits and injected faults use them."""

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
