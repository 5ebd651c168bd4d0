"""The files of conf/, and such files of the user's own, composed by Hydra.

A file of one's own is named by its path (`experiment=./mine.yaml`), or lies in the folder of `--config-dir`, as
DIR/NAME.yaml for an experiment or DIR/GROUP/NAME.yaml for any group.
"""

import dataclasses
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nemo_simplerl
from nemo_simplerl.config.errors import Findings, suggest
from nemo_simplerl.user_files import read_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

_OWN = "simplerl_own_file"  # the name by which Hydra finds a file of the user's own
_PACKAGE = re.compile(r"^\s*#\s*@package\b", re.MULTILINE)
_GLOBAL = re.compile(r"^\s*#\s*@package\s+_global_\s*$", re.MULTILINE)
_SCALE = "to_scale"  # a section of conf/config.yaml, which says what it is for
_TAKEN = re.compile(rf"\$\{{{_SCALE}\.(\w+)\}}")


@dataclasses.dataclass(frozen=True)
class Choices:
    """The file that each group was given: a name for one of conf/, a path for one of the user's own."""

    folder: Path | None  # of --config-dir
    files: dict[str, str | Path]

    @property
    def own(self) -> dict[str, Path]:
        return {group: file for group, file in self.files.items() if isinstance(file, Path)}


def conf_dir() -> Path:
    """The folder of the YAML: nemo_simplerl/conf when installed, conf/ beside the package in a checkout."""
    package = Path(nemo_simplerl.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/config.yaml in {package} or beside it; install nemo_simplerl again")


def groups() -> set[str]:
    """The groups of conf/, such as experiment."""
    return {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}


def choices(group: str, folder: Path | None = None) -> list[str]:
    """Names that `group=NAME` accepts, such as choices("experiment"). folder: of --config-dir."""
    return sorted({file.stem for place in (conf_dir() / group, *_own_places(group, folder)) for file in _yaml(place)})


def find_file(group: str, name: str, folder: Path | None) -> str | Path:
    """The file that `group=name` means, as `Choices` holds it. Raises ValueError saying what it is not."""
    if "/" not in name and not name.endswith((".yaml", ".yml")):
        own = [file for place in _own_places(group, folder) for file in _yaml(place) if file.stem == name]
        if name in choices(group):
            if own:
                raise ValueError(f"is a file of conf/{group} and of {folder}; name your own by its path: {own[0]}")
            return name
        if own:
            return own[0]
        raise ValueError(f"does not name one of the files of conf/{group}{f' or {folder}' if folder else ''}")
    path = Path(name).expanduser()
    within = [place / f"{name}{ending}" for place in _own_places(group, folder) for ending in ("", ".yaml", ".yml")]
    found = next((file for file in (path, *within) if file.suffix in (".yaml", ".yml") and file.is_file()), None)
    if found is None and path.suffix not in (".yaml", ".yml"):
        raise ValueError("is a path to no .yaml file")
    if found is None:
        raise ValueError(f"is a path to no file (looked for {path.absolute()})")
    return found


def compose_files(chosen: Choices, findings: Findings) -> "DictConfig | None":
    """The base configuration under the chosen files. None where Hydra cannot compose them; findings say why."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    with tempfile.TemporaryDirectory() as scratch:
        places = _copies(chosen, Path(scratch), findings)
        if places is None:
            return None
        overrides = [f"{group}={_OWN if group in chosen.own else name}" for group, name in chosen.files.items()]
        if places:
            overrides.append(f"hydra.searchpath=[{','.join(f'file://{place}' for place in places)}]")
        files = " and ".join(map(str, chosen.own.values())) or "conf/"
        try:
            with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
                tree = compose("config", overrides=overrides)
        except RecursionError:
            findings.add(f"{files}: starts from itself, by its own defaults or those of the files that they name.")
            return None
        except (HydraException, OmegaConfBaseException, YAMLError) as error:
            findings.add(f"{files}: {_own_words(error, chosen)}.")
            return None
    OmegaConf.set_struct(tree, False)
    return _to_scale(tree, findings)


def _to_scale(tree: "DictConfig", findings: Findings) -> "DictConfig":
    """The tree without its section `to_scale`, whose values stand where a recipe of conf/algo takes them."""
    from omegaconf import OmegaConf

    written: Any = OmegaConf.to_container(tree, resolve=False)
    known, given = _content(conf_dir() / "config.yaml")[_SCALE], written.pop(_SCALE)
    del tree[_SCALE]
    values = given if isinstance(given, Mapping) else {}
    for name in map(str, values.keys() - known.keys()):
        closest = suggest(name, known) or f" Known: {', '.join(known)}."
        findings.add(f"{_SCALE}.{name} is a value that no recipe takes.{closest}")
    for section, keys in written.items():
        for key, text in keys.items() if isinstance(keys, Mapping) else ():
            if (taken := _TAKEN.fullmatch(str(text))) and taken[1] in values:
                tree[section][key] = values[taken[1]]
    return tree


def keys_in(chosen: Choices) -> dict[Path, set[str]]:
    """The dotted keys and sections that each of the user's own files sets."""
    found = {}
    for group, file in chosen.own.items():
        prefix = "" if group == "experiment" or _GLOBAL.search(read_text(file)) else f"{group}."
        found[file] = {prefix + key for key in _keys(_content(file))}
    return found


def _keys(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, Mapping):
        for name, value in values.items():
            if path or name != "defaults":
                yield f"{path}{name}"
                yield from _keys(value, f"{path}{name}.")


def _own_places(group: str, folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return [folder / group, *([folder] if group == "experiment" else [])]


def _yaml(folder: Path) -> list[Path]:
    return sorted(file for ending in ("yaml", "yml") for file in folder.glob(f"*.{ending}") if file.is_file())


def _content(file: Path) -> Any:
    """What a YAML file holds. Raises ValueError where it is not read as such, or holds no keys."""
    import yaml

    try:
        values = yaml.safe_load(read_text(file)) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({_reason(error)}).") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{file}: holds no keys; write them as in conf/experiment: a section, and its keys below it.")
    if not isinstance(values.get("defaults", []), list):
        raise ValueError(f"{file}: defaults is no list; name what to start from: defaults: [quickstart, _self_].")
    return values


def _copies(chosen: Choices, scratch: Path, findings: Findings) -> list[Path] | None:
    """Folders in which Hydra finds the user's own files and what lies beside them; None where one cannot be read.

    Hydra reads no path with other signs than ASCII, and an experiment lies over the whole tree only if it says so.
    """
    places: list[Path] = []
    num_problems = len(findings.problems)
    for group, file in chosen.own.items():
        try:
            _content(file)
            text = read_text(file)
        except ValueError as error:
            findings.add(str(error))
            continue
        header = "# @package _global_\n" if group == "experiment" and not _PACKAGE.search(text) else ""
        copy = scratch / "own" / group / f"{_OWN}.yaml"
        copy.parent.mkdir(parents=True)
        copy.write_text(header + text, encoding="utf-8")
        beside = scratch / f"beside_{group}"
        beside.mkdir()
        (beside / group).symlink_to(file.absolute().parent)
        places += [copy.parents[1], beside]
    if chosen.folder is not None:
        (scratch / "folder").symlink_to(chosen.folder.absolute())
        places.append(scratch / "folder")
    return list(dict.fromkeys(places)) if len(findings.problems) == num_problems else None


def _own_words(error: Exception, chosen: Choices) -> str:
    """What Hydra says, with the user's names for the user's files."""
    text = getattr(error, "problem", None) or _reason(error)  # lines of a copy, which has one more, are left out
    for group, file in chosen.own.items():
        text = text.replace(f"{group}/{_OWN}", file.name).replace(_OWN, file.name)
    return text


def _reason(error: Exception) -> str:
    """The first line of an error, or what YAML found wrong and in which line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem:
        return f"line {mark.line + 1}: {problem}" if mark else str(problem)
    return str(error).strip().splitlines()[0].rstrip(".")
