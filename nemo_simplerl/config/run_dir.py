"""A run directory belongs to one configuration: continuing it with another would mix two runs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import from_yaml, to_dict
from nemo_simplerl.config.schema import Config

# What does not change the weights a run ends with.
FREE_KEYS = frozenset(
    {
        "trainer.stop_after_step",
        "trainer.resume",
        "trainer.save_every",
        "trainer.keep_last",
        "trainer.export",
        "trainer.tensorboard",
        "trainer.distributed_timeout_s",
        "rollout.consistency.max_share",
        "rollout.verify_refit",
        "rollout.refit_bucket_mb",
        "reward.num_workers",
        "reward.url",
    }
)


def check_run_dir(config: Config) -> None:
    """Raises ConfigErrors naming every key that differs from the configuration the directory was begun with."""
    file = Path(config.trainer.run_dir) / "config.yaml"
    if not file.is_file():
        return
    before, now = dict(_leaves(to_dict(from_yaml(file.read_text())))), dict(_leaves(to_dict(config)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    problems = [
        f"{key}={now.get(key)}, but the run in {file.parent} was begun with {before.get(key)}."
        for key in changed
        if key not in FREE_KEYS
    ]
    if problems:
        advice = "Choose another trainer.run_dir, or remove that folder to start over."
        raise ConfigErrors([*problems[:-1], f"{problems[-1]} {advice}"])


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
