"""Calls a user's reward function for one response, whatever form it has, and reads what it returns."""

import asyncio
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nemo_simplerl.user_functions import (
    COLUMNS,
    GOLD_COLUMNS,
    OPENRLHF,
    TRL,
    VERL,
    Form,
    UserFunction,
    arguments_of,
    form_of,
)

DATA_SOURCE = "nemo_simplerl"  # what a function of verl's form gets as its data_source
_MODULE = "simplerl_reward_function"
_SCORES = ("score", "rewards")  # the entry of a dict that is the score: verl's, OpenRLHF's
_MAX_SCORE = 3.4028234663852886e38  # of float32, which scores become
_MAX_METRICS = 50
_MAX_NAME_CHARS = 100


class Reward(NamedTuple):
    """What a function says of one response."""

    score: float
    metrics: dict[str, float]


def load_reward(function: UserFunction, source: Path) -> Callable[[str, str, Mapping[str, Any]], Reward]:
    """Run the file, and return what calls its function with a gold answer, a response and facts of the sample.

    source: holds what the file held when the run began. Modules beside the file can be imported, after installed ones.
    Raises what the file raises, and ValueError where it has no such function or one of no known form.
    """
    file = os.path.abspath(function.file)
    sys.path.append(os.path.dirname(file))
    module = sys.modules[_MODULE] = ModuleType(_MODULE)
    module.__file__ = file
    exec(compile(source.read_bytes(), file, "exec"), module.__dict__)
    found = getattr(module, function.name, None)
    if not callable(found):
        raise ValueError(f"{function.file} has no function {function.name}")
    arguments = arguments_of(found)
    form = form_of(arguments)

    def reward(gold: str, response: str, facts: Mapping[str, Any]) -> Reward:
        logged: dict[str, Any] = {}
        given = _arguments(form, gold, response, facts)
        if form is TRL:
            given |= {"log_metric": logged.__setitem__, "log_extra": _ignore}
        asked = given.keys() if arguments.takes_any else given.keys() & set(arguments.names)
        result = found(**{name: given[name] for name in asked})
        return read_result(asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result, logged)

    return reward


async def _awaited(result: Any) -> Any:
    return await result


def _ignore(*_: Any) -> None:
    """Takes the columns that TRL would add to its table of completions."""


def _arguments(form: Form, gold: str, response: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All that the form may ask for, by name. Lists have one element, as each response has a deadline of its own."""
    prompt = facts.get("prompt", "")
    if form is VERL:
        extra_info = {name: value for name, value in facts.items() if name != "completion_ids"}
        return {
            "data_source": DATA_SOURCE,
            "solution_str": response,
            "ground_truth": gold,
            "extra_info": extra_info | {"index": facts.get("id")},
        }
    if form is OPENRLHF:
        return {"queries": [prompt + response], "prompts": [prompt], "labels": [gold]}
    columns = {name: gold if name in GOLD_COLUMNS else facts.get(name) for name in COLUMNS}
    return {
        "prompts": [prompt],
        "completions": [response],
        "completion_ids": [facts.get("completion_ids", [])],
        **{name: [value] for name, value in columns.items()},
    }


def read_result(result: Any, logged: Mapping[str, Any] | None = None) -> Reward:
    """The score and the metrics in what a function returned: a number, a list of one, or a dict of such.

    logged: metrics that it gave otherwise. Raises ValueError where there is no finite score.
    """
    metrics = dict(_numbers(logged or {}))
    score = result
    if isinstance(result, Mapping):
        key = next((name for name in _SCORES if name in result), None)
        if key is None:
            raise ValueError(f"it returned a dict without {' or '.join(_SCORES)}: {sorted(map(str, result))!r:.200}")
        score = result[key]
        metrics |= _numbers({name: value for name, value in result.items() if name != key})
    number = _number(score)
    if number is None or not abs(number) <= _MAX_SCORE:
        raise ValueError(f"it returned {score!r:.200}, and a finite number of float32 is due")
    if len(metrics) > _MAX_METRICS:
        raise ValueError(f"it returned {len(metrics)} numbers beside the score, and at most {_MAX_METRICS} are taken")
    return Reward(number, metrics)


def _numbers(values: Mapping[Any, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers in a dict and in dicts inside it, such as OpenRLHF's extra_logs; anything else is left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif (number := _number(value)) is not None and math.isfinite(number):
            yield str(name)[:_MAX_NAME_CHARS], number


def _number(value: Any) -> float | None:
    """A number, or the only element of a list, tensor or array; None for what is no number."""
    if isinstance(value, list | tuple):
        return _number(value[0]) if len(value) == 1 else None
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # as tensors of several elements say
        return None
