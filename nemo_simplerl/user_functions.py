"""Functions that users bring as FILE.py:NAME, and which of three forms of reward they have by their arguments' names.

The forms are those of verl's `compute_score`, TRL's `reward_func` and OpenRLHF's `reward_func`.
"""

import ast
import hashlib
import inspect
import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# Names of the columns that a function of TRL's form is given beside its three lists. The first four hold the gold.
GOLD_COLUMNS = ("answer", "solution", "ground_truth", "label")
COLUMNS = (*GOLD_COLUMNS, "question", "id", "level", "subject")


@dataclass(frozen=True)
class Form:
    """A form of reward function: the argument that tells it from the others, and all that it is given."""

    name: str
    mark: str
    given: tuple[str, ...]


VERL = Form("verl", "solution_str", ("data_source", "solution_str", "ground_truth", "extra_info"))
TRL = Form("TRL", "completions", ("prompts", "completions", "completion_ids", *COLUMNS, "log_metric", "log_extra"))
OPENRLHF = Form("OpenRLHF", "queries", ("queries", "prompts", "labels"))
FORMS = (VERL, TRL, OPENRLHF)


class Arguments(NamedTuple):
    """What a function can be called with by name. `required`: those without a default."""

    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool  # it has **columns


class UserFunction(NamedTuple):
    """FILE.py:NAME in its two parts."""

    file: Path
    name: str


def user_function(text: str) -> UserFunction:
    """The file and the name in FILE.py:NAME. Raises ValueError where it is not of that form."""
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise ValueError("is not FILE.py:NAME, a file of Python and the name of a function in it")
    return UserFunction(Path(file).expanduser(), name)


def source_digest(function: UserFunction) -> str:
    """SHA-256 of the file and the name, by which two machines see that they speak of one function."""
    return hashlib.sha256(function.file.read_bytes() + b"\0" + function.name.encode()).hexdigest()


def form_of(arguments: Arguments) -> Form:
    """The form that the arguments have. Raises ValueError where none fits, naming the three."""
    for form in FORMS:
        if form.mark in arguments.names and set(arguments.required) <= set(form.given):
            return form
    raise ValueError(
        f"takes ({', '.join([*arguments.names, *(['**'] if arguments.takes_any else [])])}), which is none of "
        + ", ".join(f"{form.name}'s ({', '.join(form.given)})" for form in FORMS)
        + ". Name its arguments so, and give every other one a default"
    )


def require_usable(function: UserFunction) -> None:
    """Read the file and see that it has the function in one of the three forms, as far as can be seen without running
    it. Raises ValueError saying what is wrong."""
    if not function.file.is_file():
        raise ValueError(f"names no file (looked for {function.file.absolute()})")
    try:
        with tokenize.open(function.file) as stream:
            tree = ast.parse(stream.read(), str(function.file))
    except (OSError, SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot be read as Python: {error}") from error
    found = _definitions(tree)
    if function.name not in found and "*" not in found:
        known = ", ".join(sorted(name for name, value in found.items() if value is not None)) or "none"
        raise ValueError(f"names no function of {function.file}, which defines: {known}")
    if (arguments := found.get(function.name)) is not None:
        form_of(arguments)


def arguments_of(function: Callable[..., Any]) -> Arguments:
    """The arguments of a function that was loaded."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    nameless = [f"{p.name}, /" for p in parameters if p.kind == p.POSITIONAL_ONLY and p.default is p.empty]
    return Arguments(
        tuple(p.name for p in named),
        (*nameless, *(p.name for p in named if p.default is p.empty)),
        any(p.kind == p.VAR_KEYWORD for p in parameters),
    )


def _definitions(tree: ast.Module) -> dict[str, Arguments | None]:
    """The names that a file gives something to, with the arguments of plain functions; those of others are not known
    before the file is run."""
    found: dict[str, Arguments | None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0]: None for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = None  # of a function below an `if` or `try` too: which one holds is not known
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = None if node.decorator_list else _written_arguments(node.args)
    return found


def _written_arguments(written: ast.arguments) -> Arguments:
    by_place = [*written.posonlyargs, *written.args]
    without_default = by_place[: len(by_place) - len(written.defaults)]
    nameless = [f"{argument.arg}, /" for argument in written.posonlyargs if argument in without_default]
    required = [argument.arg for argument in written.args if argument in without_default]
    required += [a.arg for a, default in zip(written.kwonlyargs, written.kw_defaults, strict=True) if default is None]
    names = [argument.arg for argument in (*written.args, *written.kwonlyargs)]
    return Arguments(tuple(names), (*nameless, *required), written.kwarg is not None)
