"""Refuses to continue a run directory with another configuration, which would mix two runs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import from_yaml, to_dict
from nemo_simplerl.config.schema import Config

# Keys and sections that do not change the weights a run ends with.
FREE_KEYS = frozenset(
    {
        "actor.offload_adam_states",
        "trainer.stop_after_step",
        "trainer.max_time",
        "trainer.resume",
        "trainer.resume_allow",
        "trainer.save_every",
        "trainer.async_save",
        "trainer.keep_last",
        "trainer.keep_every",
        "trainer.keep_best",
        "trainer.export",
        "trainer.tensorboard",
        "trainer.wandb",
        "trainer.distributed_timeout_s",
        "trainer.max_bad_updates",
        "trainer.alarms",
        "trainer.watchdog",
        "rollout.consistency.max_share",
        "rollout.verify_refit",
        "rollout.refit_bucket_mb",
        "sft.save_every",
        "sft.eval_every",
        "data.sft_eval_path",
        "reward.num_workers",
        "reward.url",
    }
)
# Keys that divide the work over ranks and into portions. Checkpoints are read into any layout, and every loss is a sum
# divided once by a global count: these keys change the order of sums and so the rounding, which may tip a sampled token
# later on.
LAYOUT_KEYS = frozenset(
    {
        "actor.tensor_model_parallel_size",
        "actor.pipeline_model_parallel_size",
        "actor.sequence_parallel",
        "actor.use_distributed_optimizer",
        "actor.overlap_grad_reduce",
        "actor.recompute_granularity",
        "algo.old_logprobs",
        *(f"{role}.micro_batch_{unit}" for role in ("actor", "critic", "sft") for unit in ("size", "tokens")),
        *(f"{role}.forward_micro_batch_{unit}" for role in ("actor", "critic") for unit in ("size", "tokens")),
    }
)


def check_run_dir(config: Config) -> None:
    """Raises ConfigErrors naming every key that differs from the configuration the directory was begun with.

    Keys of FREE_KEYS and LAYOUT_KEYS may differ, and those that trainer.resume_allow names or holds the section of.
    """
    file = Path(config.trainer.run_dir) / "config.yaml"
    if not file.is_file():
        return
    before, now = dict(_leaves(to_dict(from_yaml(file.read_text())))), dict(_leaves(to_dict(config)))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    problems = [
        f"{key}={now.get(key)}, but the run in {file.parent} was begun with {before.get(key)}."
        for key in changed
        if not _is_allowed(key, FREE_KEYS | LAYOUT_KEYS | set(config.trainer.resume_allow))
    ]
    if problems:
        advice = (
            "Choose another trainer.run_dir, remove that folder to start over, or name in "
            "trainer.resume_allow=[KEY,...] what is meant to change from here on."
        )
        raise ConfigErrors([*problems[:-1], f"{problems[-1]} {advice}"])


def weight_affecting_settings(config: Config) -> dict[str, Any]:
    """The values, by dotted key, that decide which weights a run ends with, rounding aside."""
    return {key: value for key, value in _leaves(to_dict(config)) if not _is_allowed(key, FREE_KEYS | LAYOUT_KEYS)}


def _is_allowed(key: str, allowed: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
