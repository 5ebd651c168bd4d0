"""Builds the dataclasses of schema.py from nested dicts, checking names and types; only integers become floats."""

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from nemo_simplerl.config.errors import Findings, suggest

T = TypeVar("T")
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", type(None): "null"}


def build(kind: type[T], values: Mapping[Any, Any], findings: Findings, path: str = "") -> T:
    """An instance of dataclass `kind`. Unknown, missing and mistyped keys go to `findings`.

    A wrong field holds None, so the result is of use only together with `findings.reported`.
    """
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            wrong, known = _join(path, key), [_join(path, name) for name in hints]
            closest = suggest(wrong, known) or f" Known: {', '.join(known)}."
            findings.add(f"{wrong} is not a key of the configuration.{closest}", wrong)
    return kind(**{name: _field(hint, name, values, findings, _join(path, name)) for name, hint in hints.items()})


def keys_of(kind: type, path: str = "") -> Iterator[str]:
    """Every dotted key under dataclass `kind`: sections first, then what they hold."""
    for name, hint in get_type_hints(kind).items():
        yield _join(path, name)
        for option in _options(hint):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                yield from keys_of(option, _join(path, name))


def fitting_types(kind: type, key: str) -> tuple[Any, ...]:
    """The plain types that a dotted key under dataclass `kind` takes, a list as `list`; none for an unknown key."""
    name, _, rest = key.partition(".")
    hints = get_type_hints(kind)
    options = _options(hints[name]) if name in hints else ()
    if rest:
        inner = [option for option in options if dataclasses.is_dataclass(option)]
        return fitting_types(inner[0], rest) if inner else ()  # type: ignore[arg-type]
    return tuple(get_origin(option) or option for option in options)


def _field(hint: Any, name: str, values: Mapping[Any, Any], findings: Findings, path: str) -> Any:
    if path in findings.reported and not isinstance(values.get(name), Mapping):
        return None
    if name not in values:
        findings.add(f"{path} is missing; accepted: {accepted(hint)}.", path)
        return None
    value = values[name]
    for option in _options(hint):
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return build(option, value, findings, path)  # type: ignore[arg-type]
        if value is False and "off" in get_args(option):
            return "off"  # YAML 1.1 reads a bare off as false
        if _fits(option, value):
            return float(value) if option is float else value
    findings.add(f"{path}={_shown(value)} is {_describe(value)}; accepted: {accepted(hint)}.", path)
    return None


def _fits(option: Any, value: Any) -> bool:
    if get_origin(option) is Literal:
        return isinstance(value, str) and value in get_args(option)
    if get_origin(option) is list:
        return isinstance(value, list) and all(_fits(get_args(option)[0], item) for item in value)
    if get_origin(option) is dict:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if option is float:
        return type(value) in (int, float)
    return type(value) is option  # bool is an int to isinstance


def accepted(hint: Any) -> str:
    """The values a type accepts, in words."""
    return " or ".join(_accepted_one(option) for option in _options(hint))


def _accepted_one(option: Any) -> str:
    if get_origin(option) is Literal:
        return ", ".join(get_args(option))
    if get_origin(option) is list:
        return f"a list in which each item is {accepted(get_args(option)[0])}"
    if get_origin(option) is dict:
        return "a section with any keys"
    if dataclasses.is_dataclass(option):
        return f"a section with the keys {', '.join(get_type_hints(option))}"
    return _NAMES[option]


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a section"
    return "a list" if isinstance(value, list) else _NAMES.get(type(value), f"a {type(value).__name__}")


def _shown(value: Any) -> str:
    """The value as YAML writes it, not Python."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)
