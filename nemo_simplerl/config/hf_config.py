"""config.json as transformers 4 writes it, whichever version wrote the file. Pure functions of plain dicts.

transformers 5 writes `rope_parameters` for `rope_theta` and `rope_scaling`, and `dtype` for `torch_dtype`. Both
versions read version 4's keys; version 4 itself overlooks those of 5 without a word, and computes with another theta.
Imports nothing but the standard library.
"""

from typing import Any

_NEW_ROPE = "rope_parameters"
_FULL = "full_attention"
DEFAULT_THETA = 10000.0  # of every family that is trained, in both versions


def in_old_form(hf: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The config with version 4's keys, and what is wrong with the keys that were replaced. `hf` stays as it is."""
    values = {key: value for key, value in hf.items() if key not in (_NEW_ROPE, "dtype")}
    if hf.get("dtype") is not None:  # wins over the older name, in both versions
        values["torch_dtype"] = str(hf["dtype"]).removeprefix("torch.")
    rope, problems = _flat_rope(hf.get(_NEW_ROPE), hf)
    for key, value in rope.items():
        if (beside := hf.get(key)) not in (None, value) and not (key == "rope_scaling" and _same(beside, value)):
            problems.append(f"{key} is {beside!r}, and {_NEW_ROPE} says {value!r}; remove one of the two")
        values[key] = value
    return values, problems


def _flat_rope(given: Any, hf: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """rope_theta, rope_scaling and partial_rotary_factor by `rope_parameters`, and what is wrong with it."""
    if not given:
        return {}, []
    if not isinstance(given, dict):
        return {}, [f"{_NEW_ROPE} is {given!r}, not an object"]
    nested = {key: value for key, value in given.items() if isinstance(value, dict)}
    if nested:  # a part for each kind of layer; check_hf_config refuses layers of other kinds
        if len(nested) < len([value for value in given.values() if value is not None]) or _FULL not in nested:
            return {}, [f"{_NEW_ROPE} has parts {', '.join(given)}; only one for {_FULL} is read"]
        given = nested[_FULL]
    kind = given.get("rope_type", given.get("type", "default"))
    moved = {key: given[key] for key in ("rope_theta", "partial_rotary_factor") if given.get(key) is not None}
    rest = {key: value for key, value in given.items() if key not in ("rope_theta", "partial_rotary_factor", "type")}
    scaling = None if kind == "default" else {"rope_type": kind} | rest
    return moved | {"rope_scaling": scaling}, []


def _same(one: Any, other: Any) -> bool:
    """Whether two values of `rope_scaling` ask for the same."""

    def plain(scaling: Any) -> Any:
        if not isinstance(scaling, dict):
            return scaling
        kind = scaling.get("rope_type", scaling.get("type"))
        values = {key: value for key, value in scaling.items() if key not in ("type", "rope_theta")}
        return None if kind == "default" else values | {"rope_type": kind}

    return plain(one) == plain(other)
