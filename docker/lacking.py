"""What an image must still be given so that the installed nemo_simplerl runs in it, as files for pip.

usage: python docker/lacking.py FOLDER

FOLDER/installed.txt   constraints: everything the image has, so that pip changes none of it
FOLDER/lacking.txt     requirements that the image has no version of
FOLDER/replaced.txt    what the image has in another version than the project's and may lose, for pip --no-deps
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Python with no compiled part that the image's other packages were built against.
REPLACEABLE = {"megatron-core"}
# What the image's TensorRT-LLM shares with this project, and cannot be imported with another version of.
ENGINE, SHARED = "tensorrt-llm", {"transformers"}


@dataclass(frozen=True)
class Lists:
    installed: list[str]
    lacking: list[str]
    replaced: list[str]


def imported(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Versions by canonical name, of names and versions in the order of Python's path: the first is what is imported.

    NVIDIA's images have environments that lie over the system's, with other versions of the same packages.
    """
    versions: dict[str, str] = {}
    for name, version in found:
        versions.setdefault(canonicalize_name(name), version)
    return versions


def lists(requirements: Iterable[str], installed: Mapping[str, str], of_engine: Iterable[str] = ()) -> Lists:
    """installed: canonical names and versions. of_engine: requirements of the image's TensorRT-LLM.

    Raises ValueError for a package that is neither usable nor replaceable.
    """
    extras = ("", "trtllm") if ENGINE in installed else ("",)
    lacking: dict[str, str] = {}
    replaced: dict[str, str] = {}
    unusable = [
        f"{canonicalize_name(needed.name)} {version} where its {ENGINE} {installed.get(ENGINE)} needs "
        f"{needed.specifier}"
        for needed in map(Requirement, of_engine)
        if canonicalize_name(needed.name) in SHARED
        and (version := installed.get(canonicalize_name(needed.name)))
        and not needed.specifier.contains(version, prereleases=True)
    ]
    for requirement in map(Requirement, requirements):
        name, marker = canonicalize_name(requirement.name), requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        wanted = f"{name}{requirement.specifier}"
        if name not in installed:
            (replaced if name in REPLACEABLE else lacking)[name] = wanted
        elif not requirement.specifier.contains(installed[name], prereleases=True):
            if name in REPLACEABLE:
                replaced[name] = wanted
            else:
                unusable.append(f"{name} {installed[name]} where {requirement.specifier} is needed")
    if unusable:
        raise ValueError(f"the image has {', '.join(unusable)}; choose another BASE")
    kept = [f"{name}=={version}" for name, version in sorted(installed.items()) if name not in replaced]
    return Lists(kept, sorted(lacking.values()), sorted(replaced.values()))


def main(folder: str) -> None:
    installed = imported((found.metadata["Name"], found.version) for found in metadata.distributions())
    own = installed.pop("nemo-simplerl", None)
    if own is None:
        sys.exit("error: nemo_simplerl is not installed; pip install --no-deps it first")
    try:
        of_engine = (metadata.requires(ENGINE) or []) if ENGINE in installed else []
        found = lists(metadata.requires("nemo_simplerl") or [], installed, of_engine)
    except ValueError as error:
        sys.exit(f"error: {error}")
    for name in ("installed", "lacking", "replaced"):
        lines = getattr(found, name)
        Path(folder, f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        if name != "installed":
            print(f"{name}: {', '.join(lines) or 'nothing'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
