"""Runs rules over a configuration in which some keys have problems of their own."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, cast

from nemo_simplerl.config.schema import Config

# A pure function of the configuration that yields a message for each thing it finds wrong. Some take the model's shape
# or the number of ranks beside it, by keyword.
Rule: TypeAlias = Callable[..., Iterator[str]]


class _NotReadable(Exception):
    """Raised where a rule reads a key that has a problem of its own."""


class _View:
    """A section of the configuration whose reported keys raise _NotReadable, at any depth."""

    def __init__(self, section: Any, reported: frozenset[str], path: str = ""):
        self._section, self._reported, self._path = section, reported, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        if path in self._reported:
            raise _NotReadable(path)
        computed = getattr(type(self._section), name, None)
        if isinstance(computed, property):  # which may read a reported key
            return computed.__get__(self)
        value = getattr(self._section, name)
        return _View(value, self._reported, path) if dataclasses.is_dataclass(value) else value


def run_rules(config: Config, reported: frozenset[str], rules: Iterable[Rule]) -> list[str]:
    """The messages that the rules yield. A rule ends where it would read a key in `reported`."""
    view = cast(Config, _View(config, reported))
    problems: list[str] = []
    for rule in rules:
        try:
            problems.extend(rule(view))
        except _NotReadable:
            continue
    return problems


def value_at(config: Config, key: str) -> Any:
    """The value at a dotted key; None in a section that is null."""
    value: Any = config
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value
