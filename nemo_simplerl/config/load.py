"""Loads a checked Config from command-line overrides, with every problem reported at once.

Hydra composes the group choices (`experiment=quickstart`) from conf/ and the user's own files. Value overrides
(`trainer.max_steps=3`) are applied afterwards, one by one, so that the first wrong one does not hide the second. The
`overrides` of every function are those of the command line, `--config-dir DIR` among them. Neither torch nor
transformers is imported.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_simplerl.config.build import build, keys_of
from nemo_simplerl.config.errors import ConfigErrors, Findings, suggest
from nemo_simplerl.config.experiments import Choices, choices, compose_files, keys_in
from nemo_simplerl.config.overrides import Setting, Sources, read_overrides, with_home_expanded
from nemo_simplerl.config.resolve import resolve
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.rules.machine import Machine, check_machine, this_machine
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape, decides_critic_shape, decides_shape, read_critic_shape, read_shape

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined:
    """A configuration with all its problems. A key named in `reported` has no usable value."""

    config: Config
    shape: ModelShape | None  # None: not known
    has_files: bool  # the shape was read from model.path, and the run's files were looked for
    critic_shape: ModelShape | None  # None: not known, or the actor's
    is_critic_known: bool  # the critic's is that of a well-known model
    problems: list[str]
    reported: frozenset[str]


def load(overrides: Sequence[str], world_size: int | None) -> Config:
    """The configuration of a run on `world_size` ranks (None: unknown, and no layout is checked against it).

    Raises ConfigErrors with every problem: syntax, names, types, ranges, rules between keys, files, packages.
    """
    found = examine(overrides, world_size, this_machine())
    if found.problems:
        raise ConfigErrors(found.problems)
    return found.config


def examine(
    overrides: Sequence[str],
    world_size: int | None,
    machine: Machine,
    shape: ModelShape | None = None,
    known: Mapping[str, ModelShape] = {},
) -> Examined:
    """The configuration of a run on `machine`, which need not be this one, with its problems; raises none of them.

    shape: of the model, whatever model.path says. known: shapes of models by name, for a model.path or critic.path that
    ends in such a name and is not on this disk. With a shape or a known actor no file of the run is looked for here.
    """
    findings = Findings()
    config, sources = _compose(overrides, findings)
    shape = shape or _known_shape(config, findings, known)
    if has_files := shape is None:
        shape = _shape(config, findings)
    known_critic = _known_critic_shape(config, findings, known)
    critic_shape = known_critic or _critic_shape(config, findings)
    findings.problems += check(
        config, shape, world_size, frozenset(findings.reported), critic_shape, machine.ranks_per_node
    )
    machine = dataclasses.replace(machine, has_files=has_files, is_critic_known=known_critic is not None)
    findings.problems += check_machine(config, machine, frozenset(findings.reported))
    return Examined(
        config=config,
        shape=shape,
        has_files=has_files,
        critic_shape=critic_shape,
        is_critic_known=known_critic is not None,
        problems=sources.named(findings.problems),
        reported=frozenset(findings.reported),
    )


def compose(overrides: Sequence[str]) -> Config:
    """The configuration as composed and typed; neither the rules between keys nor files are checked.

    Raises ConfigErrors with every problem of syntax, names and types.
    """
    findings = Findings()
    config, sources = _compose(overrides, findings)
    if findings.problems:
        raise ConfigErrors(sources.named(findings.problems))
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of plain values."""
    return dataclasses.asdict(config)


def to_yaml(config: Config) -> str:
    """The text of a run directory's config.yaml."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def from_yaml(text: str) -> Config:
    """The Config that `to_yaml` wrote. Raises ConfigErrors when keys or types do not fit the schema."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.create(text))
    findings = Findings()
    config = build(Config, values if isinstance(values, Mapping) else {}, findings)
    if findings.problems:
        raise ConfigErrors(findings.problems)
    return config


def _compose(overrides: Sequence[str], findings: Findings) -> "tuple[Config, Sources]":
    chosen, settings = read_overrides(overrides, findings)
    tree = compose_files(chosen, findings)
    if tree is None:  # what the files say is not known, so that no rule may judge the defaults in their place
        findings.reported.update(key for key in keys_of(Config) if key.count("."))
        chosen = Choices(None, {})
        tree = compose_files(chosen, findings)
        assert tree is not None, "conf/ itself can be composed"
    for setting in settings:
        _apply(tree, setting, findings)
    values, notes = with_home_expanded(_plain(tree, findings))
    given = {setting.key for setting in settings}
    files = {file: keys - given for file, keys in keys_in(chosen).items()}
    return build(Config, values, findings), Sources(files, notes)


def _apply(tree: "DictConfig", setting: Setting, findings: Findings) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, text = setting.key, setting.text
    known = list(keys_of(Config))
    if not key:
        findings.add(f"{text!r} names no key; write key=value.")
    elif key not in known:
        closest = suggest(key, (name for name in known if "." in name))
        findings.add(f"{text!r}: {key} is not a key of the configuration.{closest or ' ' + _all_sections()}")
    elif setting.refusal is not None:
        findings.add(f"{text!r}: {setting.refusal}", key)
    else:
        try:
            OmegaConf.update(tree, key, setting.value, merge=True)
        except (OmegaConfBaseException, ValueError) as error:
            findings.add(f"{text!r} cannot be applied ({str(error).splitlines()[0]}); write {key}=VALUE.", key)


def _all_sections() -> str:
    return f"Sections: {', '.join(field.name for field in dataclasses.fields(Config))}."


def _plain(tree: "DictConfig", findings: Findings) -> dict[str, Any]:
    """The tree as nested dicts. Keys without a value and failed interpolations go to `findings`."""
    resolved = resolve(tree)
    missing = [key for key in resolved.missing if key not in findings.reported]
    if missing:
        experiments = ", ".join(f"experiment={name}" for name in choices("experiment"))
        findings.add(
            f"{' and '.join(missing)} {'has' if len(missing) == 1 else 'have'} no value. "
            f"Choose an experiment ({experiments}) or give {' '.join(f'{key}=VALUE' for key in missing)}.",
            *missing,
        )
    for reason, failures in resolved.failed.items():
        written = ", ".join(f"{key}={text}" for key, text in failures.items())
        findings.add(
            f"{written} cannot be resolved ({reason}). Give a plain value, set the variable, or write "
            "a default as in ${oc.env:NAME,default}.",
            *failures,
        )
    return resolved.values


def _known_shape(config: Config, findings: Findings, known: Mapping[str, ModelShape]) -> ModelShape | None:
    """The known shape of the model that model.path names, where nothing is there and nothing would be made there."""
    if any(map(decides_shape, findings.reported)) or config.model.create is not None:
        return None
    return _known_at(config.model.path, known)


def _known_critic_shape(config: Config, findings: Findings, known: Mapping[str, ModelShape]) -> ModelShape | None:
    """The known shape of the model that critic.path names, where nothing is there."""
    if any(map(decides_critic_shape, findings.reported)) or config.critic.path is None:
        return None
    return _known_at(config.critic.path, known)


def _known_at(path: str, known: Mapping[str, ModelShape]) -> ModelShape | None:
    return None if Path(path).exists() else known.get(Path(path).name)


def _shape(config: Config, findings: Findings) -> ModelShape | None:
    """The model's shape, or None where it cannot be known; the reason is then in `findings`."""
    if any(map(decides_shape, findings.reported)):
        return None
    try:
        return read_shape(config.model)
    except ValueError as error:
        findings.add(str(error), "model.path")
        return None


def _critic_shape(config: Config, findings: Findings) -> ModelShape | None:
    """The shape of a critic of its own, or None; the reason is in `findings` where it cannot be read."""
    if any(map(decides_critic_shape, findings.reported)):
        return None
    try:
        return read_critic_shape(config.critic)
    except ValueError as error:
        findings.add(str(error), "critic.path")
        return None
