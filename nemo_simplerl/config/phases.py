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
# Those in which a role works alone, so that its own ranks know how long they took.
PHASES_OF = {
    "actor": ("old_logprobs", "reference_logprobs", "actor_update"),
    "critic": ("values", "critic_update"),
    "engine": ("rollout", "reward"),
}
