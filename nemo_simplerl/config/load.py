"""Loads a checked Config from command-line overrides, with every problem reported at once.

Hydra composes the group choices (`experiment=quickstart`) from conf/. Value overrides (`trainer.max_steps=3`)
are applied afterwards, one by one, so that the first wrong one does not hide the second. Neither torch nor
transformers is imported.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nemo_simplerl
from nemo_simplerl.config.build import build, keys_of
from nemo_simplerl.config.errors import ConfigErrors, Findings, suggest
from nemo_simplerl.config.resolve import resolve
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.rules.machine import Machine, check_machine, this_machine
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape, decides_critic_shape, decides_shape, read_critic_shape, read_shape

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined:
    """A configuration with all its problems. A key named in `reported` has no usable value."""

    config: Config
    shape: ModelShape | None  # None: not known
    critic_shape: ModelShape | None  # None: not known, or the actor's
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
    overrides: Sequence[str], world_size: int | None, machine: Machine, shape: ModelShape | None = None
) -> Examined:
    """The configuration of a run on `machine`, which need not be this one, with its problems; raises none of them.

    shape: of the model, where its folder is not on this disk.
    """
    findings = Findings()
    config = _compose(overrides, findings)
    shape = shape or _shape(config, findings)
    critic_shape = _critic_shape(config, findings)
    findings.problems += check(config, shape, world_size, frozenset(findings.reported), critic_shape)
    findings.problems += check_machine(config, machine, frozenset(findings.reported))
    return Examined(
        config=config,
        shape=shape,
        critic_shape=critic_shape,
        problems=findings.problems,
        reported=frozenset(findings.reported),
    )


def compose(overrides: Sequence[str]) -> Config:
    """The configuration as composed and typed; neither the rules between keys nor files are checked.

    Raises ConfigErrors with every problem of syntax, names and types.
    """
    findings = Findings()
    config = _compose(overrides, findings)
    if findings.problems:
        raise ConfigErrors(findings.problems)
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


def conf_dir() -> Path:
    """The folder of the YAML: nemo_simplerl/conf when installed, conf/ beside the package in a checkout."""
    package = Path(nemo_simplerl.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it; install nemo_simplerl again")


def choices(group: str) -> list[str]:
    """Names that `group=NAME` accepts, such as choices("experiment")."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def _compose(overrides: Sequence[str], findings: Findings) -> Config:
    groups, values = _sort_overrides(overrides, findings)
    tree = _compose_groups(groups)
    for override in values:
        _apply(tree, override, findings)
    return build(Config, _plain(tree, findings), findings)


def _sort_overrides(overrides: Sequence[str], findings: Findings) -> tuple[dict[str, str], list["Override"]]:
    """Valid group choices by group, and the value overrides in order."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    groups: dict[str, str] = {}
    values: list[Override] = []
    unknown: list[str] = []
    group_names = {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            findings.add(f"{text!r} is not an override ({reason}); write key=value, without spaces around '='.")
            continue
        if override.is_sweep_override():
            findings.add(
                f"{text!r} gives several values; give one, or start one run a value. "
                "A list is written key=[a,b], and text with a comma key='\"a,b\"'.",
                override.key_or_group,
            )
        elif override.key_or_group in group_names:
            if _choose(override, groups, findings):
                continue
            unknown.append(override.key_or_group)
        else:
            values.append(override)
    _distrust(unknown, values, findings)
    return groups, values


def _choose(override: "Override", groups: dict[str, str], findings: Findings) -> bool:
    group, name = override.key_or_group, override.value()
    known = choices(group)
    if name in known and override.package is None and not override.is_delete():
        groups[group] = str(name)
        return True
    if group == "experiment" and name is None and not override.is_delete():
        return True
    findings.add(
        f"{override.input_line!r} does not name one of the files of conf/{group}; "
        f"accepted: {', '.join(f'{group}={choice}' for choice in known)}.{suggest(str(name), known)}"
        + ("" if group == "experiment" else f" Single values are set by key: {group}.KEY=VALUE.")
    )
    return False


def _distrust(unknown_groups: Sequence[str], values: Sequence["Override"], findings: Findings) -> None:
    """Reports every key that an unknown choice might have set, so that no rule judges the defaults in its place."""
    given = {override.key_or_group for override in values}
    leaves = [key for key in keys_of(Config) if key.count(".") and key not in given]
    for group in unknown_groups:
        inside = leaves if group == "experiment" else [key for key in leaves if key.startswith(group + ".")]
        # A section whose keys were given one by one stays readable.
        findings.reported.update(key for key in inside if not any(name.startswith(key + ".") for name in given))


def _compose_groups(groups: Mapping[str, str]) -> "DictConfig":
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        tree = hydra_compose("config", overrides=[f"{group}={name}" for group, name in groups.items()])
    OmegaConf.set_struct(tree, False)
    return tree


def _apply(tree: "DictConfig", override: "Override", findings: Findings) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, text = override.key_or_group, override.input_line
    known = list(keys_of(Config))
    if not key:
        findings.add(f"{text!r} names no key; write key=value.")
    elif key not in known:
        closest = suggest(key, (name for name in known if "." in name))
        findings.add(f"{text!r}: {key} is not a key of the configuration.{closest or ' ' + _all_sections()}")
    elif override.is_delete() or override.is_add() and not override.is_force_add():
        findings.add(f"{text!r}: no key can be added or removed; write {key}=VALUE, without + or ~.", key)
    else:
        try:
            OmegaConf.update(tree, key, override.value(), merge=True)
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
