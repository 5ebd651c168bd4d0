"""The settings of a command line, how they were read, and from where those of a whole configuration come.

Hydra's grammar reads a setting, but for texts that it has no words for: paths hold spaces, accents, commas, `=` and
brackets, which that grammar refuses or takes for something else. The value of a key that takes text is therefore what
stands behind the first `=`, unless the grammar reads it as text itself: it then removes quotes and escapes.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_simplerl.config.build import fitting_types, keys_of
from nemo_simplerl.config.errors import Findings, suggest
from nemo_simplerl.config.experiments import Choices, choices, find_file, groups
from nemo_simplerl.config.schema import Config

CONFIG_DIR = "--config-dir"
_KEY = re.compile(r"[A-Za-z_][\w.]*")
# Keys that hold a path, behind which that of a function has its name.
PATH_KEYS = (
    "model.path",
    "model.tokenizer",
    "critic.path",
    "data.train_path",
    "data.eval_path",
    "data.sft_path",
    "data.sft_eval_path",
    "data.examples",
    "sft.output",
    "reward.function",
    "trainer.run_dir",
)
_WORD = re.compile(r"(?<![\w./])[a-z]\w*(?:\.[A-Za-z_]\w*)*")
_VARIABLE = re.compile(r"\$(\w+)")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value for one key. `text` is as written; `refusal` says why it cannot be applied."""

    key: str
    value: Any
    text: str
    refusal: str | None = None


def read_overrides(overrides: Sequence[str], findings: Findings) -> tuple[Choices, list[Setting]]:
    """The files that are chosen, by group, and the settings in their order. What cannot be read goes to `findings`.

    `--config-dir DIR` or `--config-dir=DIR` among them names a folder with files of the user's own.
    """
    folder, texts = _split_folder(overrides, findings)
    chosen, settings, unknown = Choices(folder, {}), [], []
    for text in texts:
        key, equals, written = text.partition("=")
        if equals and key in groups():
            if not _choose(key, _unquoted(written), chosen, findings):
                unknown.append(key)
        elif (setting := _setting(text, findings)) is not None:
            settings.append(setting)
    _distrust(unknown, [setting.key for setting in settings], findings)
    return chosen, settings


def _split_folder(overrides: Sequence[str], findings: Findings) -> tuple[Path | None, list[str]]:
    folder: Path | None = None
    texts: list[str] = []
    words = iter(overrides)
    for word in words:
        if word != CONFIG_DIR and not word.startswith(f"{CONFIG_DIR}="):
            texts.append(word)
            continue
        name = next(words, "") if word == CONFIG_DIR else word.removeprefix(f"{CONFIG_DIR}=")
        folder = Path(name).expanduser()
        if not name or not folder.is_dir():
            findings.add(f"{CONFIG_DIR} {name}: there is no folder {folder.absolute()}. Name one that holds NAME.yaml.")
            folder = None
    return folder, texts


def _choose(group: str, name: str, chosen: Choices, findings: Findings) -> bool:
    """Enter the file that `group=name` means into `chosen`; whether there is one."""
    if group == "experiment" and name == "null":
        return True
    try:
        chosen.files[group] = find_file(group, name, chosen.folder)
        return True
    except ValueError as error:
        known = choices(group, chosen.folder)
        findings.add(
            f"{f'{group}={name}'!r} {error}; accepted: {', '.join(f'{group}={choice}' for choice in known)}."
            f"{suggest(name, known)}"
            + (
                " A file of your own: experiment=./NAME.yaml."
                if group == "experiment"
                else f" Single values are set by key: {group}.KEY=VALUE."
            )
        )
        return False


def _setting(text: str, findings: Findings) -> Setting | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, written = text.partition("=")
    types = fitting_types(Config, key) if equals else ()
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if str in types or equals and _KEY.fullmatch(key) and not types:
            return Setting(key, written, text)
        reason = str(error).splitlines()[0]
        findings.add(
            f"{text!r} is not an override ({reason}); write key=value, without spaces around '='. "
            "A value with other signs stands in quotes that the shell leaves in place: key='\"...\"'."
        )
        return None
    if override.is_delete() or override.is_add() and not override.is_force_add():
        key = override.key_or_group
        return Setting(key, None, text, f"no key can be added or removed; write {key}=VALUE, without + or ~.")
    if override.is_sweep_override():
        if str in types:
            return Setting(key, written, text)
        findings.add(
            f"{text!r} gives several values; give one, or start one run a value. "
            "A list is written key=[a,b], and text with a comma key='\"a,b\"'.",
            override.key_or_group,
        )
        return None
    value = override.value()
    is_text = str in types and list not in types and value is not None
    return Setting(override.key_or_group, _plain(value) if not is_text or isinstance(value, str) else written, text)


def _plain(value: Any) -> Any:
    """The value, a plain text where Hydra marks its quotes."""
    return str(value) if isinstance(value, str) else value


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _distrust(unknown_groups: Sequence[str], given: Sequence[str], findings: Findings) -> None:
    """Reports every key that an unknown choice might have set, so that no rule judges the defaults in its place."""
    leaves = [key for key in keys_of(Config) if key.count(".") and key not in given]
    for group in unknown_groups:
        # A section whose keys were given one by one stays readable.
        findings.reported.update(
            key for key in _inside(group, leaves) if not any(name.startswith(key + ".") for name in given)
        )


def _inside(group: str, leaves: Sequence[str]) -> Iterator[str]:
    return (key for key in leaves if group == "experiment" or key.startswith(group + "."))


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a problem is told together with: the file that sets a key, and notes on how its value was read."""

    files: Mapping[Path, set[str]]  # keys and sections that a file of the user's own sets, and nothing overrides
    notes: Mapping[str, str]  # by key

    def named(self, problems: Sequence[str]) -> list[str]:
        """The problems, each with the file that it is in and the note on its key: the first that it names."""
        return [self._named(problem) for problem in problems]

    def _named(self, problem: str) -> str:
        key = _first_key(problem)
        note = f" {self.notes[key]}" if key in self.notes else ""
        section = key.rpartition(".")[0] if " is missing; " in problem else key
        file = next((f"{file}: " for file, keys in self.files.items() if {key, section} & keys), "")
        return f"{file}{problem}{note}"


def with_home_expanded(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The nested values with `~` expanded in paths, and notes by key on what was expanded or left as it is.

    The shell expands no `~` behind `=`.
    """
    notes: dict[str, str] = {}
    values = {name: dict(section) if isinstance(section, Mapping) else section for name, section in values.items()}
    for key in PATH_KEYS:
        section, _, name = key.partition(".")
        written = values[section].get(name) if isinstance(values.get(section), dict) else None
        if not isinstance(written, str):
            continue
        path = values[section][name] = os.path.expanduser(written)
        if path != written:
            notes[key] = f"({written} was expanded to {path}.)"
        elif match := _VARIABLE.search(path):
            notes[key] = f"({match[0]} was not expanded: in single quotes write ${{oc.env:{match[1]}}}.)"
    return values, notes


def _first_key(problem: str) -> str:
    """The first dotted key in a problem, or the word that it begins with; "" where it has neither."""
    return next((m[0] for m in _WORD.finditer(problem) if "." in m[0] or m.start() == 0), "")
