"""The experiments and the keys of the configuration, as `simplerl train --help` lists them.

What a key means is its comment in config/schema.py, its default what conf/ and the chosen experiment say.
"""

import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from nemo_simplerl.config.build import accepted
from nemo_simplerl.config.errors import ConfigErrors, Findings, suggest
from nemo_simplerl.config.experiments import choices, compose_files, conf_dir, find_file
from nemo_simplerl.config.overrides import read_overrides
from nemo_simplerl.config.schema import Config
from nemo_simplerl.user_files import read_text

_WIDTH = 100
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of the configuration; `default` as YAML writes it, "" where there is none."""

    name: str
    meaning: str
    accepts: str
    default: str


def overview(command: str, overrides: Sequence[str]) -> str:
    """How the command is called, the experiments with a line each, and the sections with the names of their keys."""
    chosen, _ = read_overrides(overrides, Findings())
    lines = [
        f"usage: simplerl {command} [experiment=NAME | experiment=./MINE.yaml] [algo=NAME] [section.key=value ...]",
        f"       simplerl {command} --config-dir DIR ...     experiments of your own: experiment=NAME is DIR/NAME.yaml",
        f"       simplerl {command} --help SECTION...     what the keys mean, what they take, and their defaults",
        f"       simplerl {command} --help {ALL} experiment=NAME     all of them, with the values of that experiment",
        f"       simplerl {command} ... --check     only say whether the settings can be used",
        "",
        "experiments:",
        *_listed("experiment", chosen.folder),
        "",
        "algorithms (algo=NAME; docs/algorithms.md):",
        *_listed("algo", chosen.folder),
        "",
        "sections:",
    ]
    for field in dataclasses.fields(Config):
        lines.append(f"  {field.name:<9} {_purpose(field.type)}")
        keys = ", ".join(name for name, _ in _keys_of(field.type, ""))
        lines += textwrap.wrap(keys, _WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 12)
    return "\n".join(lines)


def sections_in_words(topics: Sequence[str], overrides: Sequence[str]) -> str:
    """The keys of each section or key that `topics` name, or of all of them under "all".

    overrides: of a command line; an experiment among them decides the defaults. Raises ConfigErrors.
    """
    findings = Findings()
    keys = described(overrides, findings)
    wanted: list[Key] = []
    for topic in topics:
        found = [key for key in keys if topic == ALL or key.name == topic or key.name.startswith(f"{topic}.")]
        if not found:
            known = [*(field.name for field in dataclasses.fields(Config)), *(key.name for key in keys)]
            sections = ", ".join(known[: len(dataclasses.fields(Config))])
            findings.add(f"--help {topic}: no section and no key.{suggest(topic, known) or f' Sections: {sections}.'}")
        wanted += [key for key in found if key not in wanted]
    if findings.problems:
        raise ConfigErrors(findings.problems)
    return "\n".join(line for key in wanted for line in _in_words(key))


def described(overrides: Sequence[str], findings: Findings) -> list[Key]:
    """Every key that holds a value, section by section."""
    chosen, _ = read_overrides(overrides, findings)
    tree = compose_files(chosen, findings)
    if tree is None:
        return []
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(tree, resolve=False)
    return [
        Key(f"{field.name}.{name}", *rest, _default(values[field.name], name))
        for field in dataclasses.fields(Config)
        for name, rest in _keys_of(field.type, "")
    ]


def _in_words(key: Key) -> list[str]:
    default = f"default {key.default}" if key.default else "no default"
    meaning = textwrap.wrap(key.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    return [f"{key.name}  ({key.accepts}; {default})", *meaning]


def _keys_of(section: type, path: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name below the section, meaning and type of each of its keys; those of a section inside follow its own."""
    comments = _comments(section)
    for name, hint in get_type_hints(section).items():
        inner = [option for option in getattr(hint, "__args__", (hint,)) if dataclasses.is_dataclass(option)]
        if not inner or type(None) in getattr(hint, "__args__", ()):
            yield f"{path}{name}", (comments[name], "a section or null" if inner else accepted(hint))
        for option in inner:
            yield from _keys_of(option, f"{path}{name}.")  # type: ignore[arg-type]


def _comments(section: type) -> dict[str, str]:
    """The comment of each field of a dataclass: on its line, or on lines of their own above."""
    found: dict[str, str] = {}
    above: list[str] = []
    field = ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(section)).readline):
        stripped = token.line.strip()
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if stripped.startswith("#"):
                above.append(text)
            else:
                found[field] = f"{found[field]} {text}".strip()
        elif token.type == tokenize.NAME and stripped.startswith(f"{token.string}:"):
            field = token.string
            found[field] = " ".join(above)
            above = []
    return found


def _purpose(section: type) -> str:
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def _default(section: Any, name: str) -> str:
    import yaml

    for part in name.split("."):
        section = section.get(part) if isinstance(section, dict) else None
    if section == "???":
        return ""
    if isinstance(section, dict) and section:
        return "as below"
    return yaml.safe_dump(section, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def _listed(group: str, folder: Path | None) -> list[str]:
    """A line for each file of the group: its name and its first comment."""
    names = choices(group, folder)
    width = max(map(len, names))
    return [f"  {name:<{width}}  {_first_comment(_file_of(group, name, folder))}" for name in names]


def _file_of(group: str, name: str, folder: Path | None) -> Path:
    found = find_file(group, name, folder)
    return found if isinstance(found, Path) else conf_dir() / group / f"{found}.yaml"


def _first_comment(file: Path) -> str:
    """The first comment of a YAML file that is not for Hydra."""
    try:
        lines = read_text(file).splitlines()
    except ValueError as error:
        return f"(cannot be used: {error})"
    comments = (line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line)
    return next(comments, "")
