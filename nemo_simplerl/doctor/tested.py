"""Which versions were run together, and what of an installation was not. docs/versions.md has the same table."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

# What decides whether a run works; two versions of one minor release count as the same.
PACKAGES = ("python", "torch", "megatron-core", "transformers", "transformer-engine", "tensorrt-llm", "ray")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Versions that were installed together, and what ran with them."""

    versions: Mapping[str, str]  # by name of PACKAGES; a package that is left out was not there
    ran: str
    time: str  # of that, on two CPU cores


TESTED = (
    Stack(
        versions={
            "python": "3.11.7",
            "torch": "2.13.0",
            "megatron-core": "0.16.1",
            "transformers": "4.57.6",
            "ray": "2.54.1",
        },
        ran="the suite, the quickstart",
        time="15 min 23 s",
    ),
    Stack(
        versions={
            "python": "3.12.1",
            "torch": "2.13.0",
            "megatron-core": "0.19.2",
            "transformers": "5.24.0",
            "ray": "2.54.1",
        },
        ran="the tests of `tests/newest.txt`",
        time="2 min 34 s",
    ),
)

# The environment of rollout.engine=vllm, which has none of the trainer's packages (constraints-vllm.txt).
VLLM = Stack(
    versions={"python": "3.11.7", "vllm": "0.32.0", "torch": "2.13.0", "transformers": "5.19.0"},
    ran="the tests marked `vllm`, with the CPU build",
    time="2 min 11 s",
)


def what_ran(installed: Mapping[str, str | None]) -> str:
    """What ran with versions that are installed here, in one line."""
    shared = [(stack, frozenset(name for name in PACKAGES if _has(stack, name, installed))) for stack in TESTED]
    parts = [
        f"{', '.join(f'{name} {stack.versions[name]}' for name in PACKAGES if name in names)}: {stack.ran}"
        for stack, names in shared
        if len(names) > 1 and not any(names < others for _, others in shared)
    ]
    return "; ".join(parts).replace("`", "") or "no two of these versions together"


def untested(installed: Mapping[str, str | None]) -> Iterator[str]:
    """A note on each installed package that nothing ran with in this version, or not beside the others.

    installed: versions by name of PACKAGES; None or no entry where a package is absent.
    """
    found = {name: version for name in PACKAGES if (version := installed.get(name))}
    known = [name for name in found if any(_has(stack, name, found) for stack in TESTED)]
    for name, version in found.items():
        if name not in known:
            yield _unknown(name, version)
    apart: dict[str, list[str]] = {}
    for one, other in combinations(known, 2):
        if not any(_has(stack, one, found) and _has(stack, other, found) for stack in TESTED):
            apart.setdefault(one, []).append(f"{other} {found[other]}")
    for name, others in apart.items():
        yield f"{name} {found[name]} was not tested together with {', '.join(others)}"


def _unknown(name: str, version: str) -> str:
    tested = sorted({stack.versions[name] for stack in TESTED if name in stack.versions}, key=_numbers)
    if not tested:
        return f"{name} {version} was not tested, nor was any other version of it"
    if _numbers(version) > _numbers(tested[-1]):
        return f"{name} {version} is newer than anything that was tested; the newest was {tested[-1]}"
    return f"{name} {version} was not tested; {' and '.join(tested)} {'was' if len(tested) == 1 else 'were'}"


def _has(stack: Stack, name: str, versions: Mapping[str, str | None]) -> bool:
    """Whether the stack held this package in a version of the same minor release."""
    held, version = stack.versions.get(name), versions.get(name)
    return held is not None and version is not None and same_release(held, version)


def same_release(one: str, other: str) -> bool:
    """Whether two versions belong to one minor release, whichever patch or build they are."""
    return _numbers(one)[:2] == _numbers(other)[:2]


def _numbers(version: str) -> tuple[int, ...]:
    """The release in numbers, whatever a build appended: (2, 11, 0) of 2.11.0a0+nv26.2."""
    release = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else ()
