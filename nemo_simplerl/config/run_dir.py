"""Refuses to continue a run directory with another configuration, which would mix two runs.

The directory may have been moved, and may be spelled in another way; its config.yaml may be an older version's.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_simplerl.config.build import keys_of
from nemo_simplerl.config.errors import ConfigErrors, suggest
from nemo_simplerl.config.load import compose, to_dict
from nemo_simplerl.config.overrides import PATH_KEYS
from nemo_simplerl.config.schema import Config

FILE = "config.yaml"  # in the run directory

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
        "rollout.vllm.python",
        "rollout.vllm.start_timeout_s",
        "rollout.vllm.timeout_s",
        "sft.save_every",
        "sft.eval_every",
        "data.sft_eval_path",
        "reward.num_workers",
        "reward.url",
    }
)
# What versions without these keys did, where conf/ now has another value.
_FORMER: dict[str, Any] = {"rollout.cuda_graphs": False}
# Keys that divide the work over ranks and into portions. Checkpoints are read into any layout, and every loss is a sum
# divided once by a global count: these keys change the order of sums and so the rounding, which may tip a sampled token
# later on.
LAYOUT_KEYS = frozenset(
    {
        "actor.tensor_model_parallel_size",
        "actor.pipeline_model_parallel_size",
        "critic.tensor_model_parallel_size",
        "critic.pipeline_model_parallel_size",
        "placement",
        "actor.sequence_parallel",
        "actor.use_distributed_optimizer",
        "actor.overlap_grad_reduce",
        "actor.recompute_granularity",
        "algo.old_logprobs",
        "rollout.cuda_graphs",
        *(f"{role}.micro_batch_{unit}" for role in ("actor", "critic", "sft") for unit in ("size", "tokens")),
        *(f"{role}.forward_micro_batch_{unit}" for role in ("actor", "critic") for unit in ("size", "tokens")),
        "rollout.max_batch_size",
    }
)


_RUN_DIR = "trainer.run_dir"


@dataclass(frozen=True)
class Begun:
    """The values, by dotted key, that a run directory was begun with.

    A key that its config.yaml lacks is in `added`, with the value it has in conf/: what a version without the key did.
    Keys that this version does not have are in `gone`, with their values.
    """

    file: Path
    values: dict[str, Any]
    added: dict[str, Any]
    gone: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What to know of a file that another version wrote, in words."""
        notes = []
        if self.added:
            taken = ", ".join(f"{key}={_shown(value)}" for key, value in self.added.items())
            notes.append(f"{self.file} is of a version without these keys, which did as if they were: {taken}.")
        for key, value in self.gone.items():
            closest = suggest(key, keys_of(Config))
            notes.append(f"{self.file}: {key}={_shown(value)} is no key of this version and is not compared.{closest}")
        return notes


def read_begun(run_dir: Path) -> Begun | None:
    """What the run directory was begun with; None where no run has begun there.

    Raises ConfigErrors, naming the file, where it cannot be read.
    """
    file = run_dir / FILE
    if not file.exists():
        return None
    nested, known = _nested(file), set(keys_of(Config))
    found = dict(_leaves(nested))
    gone = {key: value for key, value in found.items() if not _is_key(key, known)}
    added = {key: value for key, value in (_defaults() | _FORMER).items() if _is_absent(key, nested)}
    return Begun(file, {key: found[key] for key in found if key not in gone} | added, added, gone)


def check_run_dir(config: Config) -> None:
    """Raises ConfigErrors naming every key that differs from the configuration the directory was begun with.

    Keys of `_free_keys` may differ, and those that trainer.resume_allow names or holds the section of.
    Paths are compared as places: those inside the run directory wherever it lies now.
    """
    begun = read_begun(Path(config.trainer.run_dir))
    if begun is None:
        return
    now = dict(_leaves(to_dict(config)))
    before_placed, now_placed = _placed(begun.values), _placed(now)
    allowed = _free_keys(config) | set(config.trainer.resume_allow)
    changed = sorted(key for key in before_placed.keys() | now.keys() if before_placed.get(key) != now_placed.get(key))
    problems = [
        f"{key}={now.get(key)}, but the run in {begun.file.parent} was begun with {begun.values.get(key)}"
        + (f": {begun.file} is of a version without that key." if key in begun.added else ".")
        for key in changed
        if not _is_allowed(key, allowed)
    ]
    if problems:
        advice = (
            "Choose another trainer.run_dir, remove that folder to start over, or name in "
            "trainer.resume_allow=[KEY,...] what is meant to change from here on."
        )
        raise ConfigErrors([*problems[:-1], f"{problems[-1]} {advice}"])


def weight_affecting_settings(config: Config) -> dict[str, Any]:
    """The values, by dotted key, that decide which weights a run ends with, rounding aside.

    Paths inside the run directory are relative to it: a run that is moved is the same run.
    """
    values = _placed(dict(_leaves(to_dict(config))))
    return {key: value for key, value in values.items() if not _is_allowed(key, _free_keys(config))}


def _free_keys(config: Config) -> frozenset[str]:
    """Keys and sections that may differ between two parts of a run: without a critic, its settings too."""
    return FREE_KEYS | LAYOUT_KEYS | (frozenset() if config.algo.has_critic else {"critic"})


def _nested(file: Path) -> Mapping[str, Any]:
    """The file's values as nested mappings."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        values = OmegaConf.to_container(OmegaConf.create(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigErrors([f"{file} cannot be read ({reason}). {_MEND}"]) from error
    if not isinstance(values, Mapping) or _is_absent("model.path", values):  # every version has written that one
        raise ConfigErrors([f"{file} holds no settings of a run. {_MEND}"])
    return {str(key): value for key, value in values.items()}


_MEND = (
    "It says what the run was begun with: bring it back from a copy, or remove it to have the settings of this command "
    "taken for those."
)


def _defaults() -> dict[str, Any]:
    """The values of conf/ without an experiment, by dotted key, but for those that have none there."""
    given = {"model.path": "none", "data.train_path": "none.jsonl"}
    values = _leaves(to_dict(compose([f"{key}={value}" for key, value in given.items()])))
    return {key: value for key, value in values if key not in given}


def _placed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with each path in one spelling: inside the run directory relative to it, elsewhere absolute."""
    run_dir = str(values.get(_RUN_DIR))
    return {
        key: _place(value, run_dir) if key in PATH_KEYS and isinstance(value, str) else value
        for key, value in values.items()
    }


def _place(path: str, run_dir: str) -> str:
    # As written first: in a run that was moved, neither links nor folders of the old place need be there.
    for spelled in (os.path.abspath, os.path.realpath):
        place, root = (Path(spelled(os.path.expanduser(text))) for text in (path, run_dir))
        if place.is_relative_to(root):
            return f"RUN_DIR/{place.relative_to(root)}"
    return str(place)


def _is_key(key: str, known: set[str]) -> bool:
    """Whether the configuration has the key. Below a key that is known and has none below it, any is (limits_s)."""
    if key in known:
        return True
    above = key.rpartition(".")[0]
    has_keys = any(name.startswith(f"{above}.") for name in known)
    return bool(above) and not has_keys and _is_key(above, known)


def _is_absent(key: str, nested: Any) -> bool:
    """Whether the nested values say nothing of the key, not even that a section above it is null."""
    for name in key.split("."):
        if not isinstance(nested, Mapping):
            return False
        if name not in nested:
            return True
        nested = nested[name]
    return False


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_allowed(key: str, allowed: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in allowed)


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
