"""Rules of trainer.watchdog."""

from collections.abc import Iterator

from nemo_simplerl.config.errors import suggest
from nemo_simplerl.config.phases import PHASES
from nemo_simplerl.config.schema import Config

# Phases of a step, and the named waits inside and between them.
NAMES = (
    *PHASES,
    "update",
    "engine.generate",
    "reward.grade",
    "gather.completions",
    "gather.grades",
    "gather.objects",
    "gather.rows",
    "exchange.tokens",
    "gather.announce",
    "gather.meeting",
    "gather.updates",
    "gather.evaluation",
    "gather.refit",
    "refit.contents",
    "refit.broadcast",
    "gather.benchmark",
    "gather.checkpoint",
    "gather.journal",
    "gather.samples_not_finite",
    "gather.updates_left_out",
    "all_reduce.metrics",
    "exchange.columns",
    "checkpoint.writers",
    "barrier.checkpoint",
    "barrier.forgotten",
    "barrier.prepared",
    "leave_together",
    "warm_start",
)


def limits_are_seconds_of_known_waits(config: Config) -> Iterator[str]:
    for name, seconds in config.trainer.watchdog.limits_s.items():
        key = f"trainer.watchdog.limits_s.{name}"
        if name not in NAMES:
            closest = suggest(name, NAMES) or f" Known: {', '.join(NAMES)}."
            yield f"{key}={seconds} limits nothing: no phase and no wait has this name.{closest}"
        elif isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
            yield f"{key}={seconds} is no time; give seconds above 0."
