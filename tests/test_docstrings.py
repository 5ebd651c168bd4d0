"""Docstrings open with what a thing is, returns or does: a first line that hangs in the air is found."""

import ast
from pathlib import Path

import pytest

import nemo_simplerl

FOLDER = Path(nemo_simplerl.__file__).parent
# A first line that begins so needs the name above it to be understood.
HANGING = ("Of ", "Around ", "Who ", "Whose ", "That ", "Those ")


def hanging(source: str) -> list[str]:
    """First lines of docstrings in `source` that begin with one of HANGING."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, owners)]
    return [text.splitlines()[0] for text in texts if text.startswith(HANGING)]


def test_a_planted_docstring_is_found():
    assert hanging('def f():\n    """Of the whole rollout."""\n') == ["Of the whole rollout."]


@pytest.mark.parametrize("package", sorted(path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists()))
def test_no_docstring_needs_the_name_above_it(package):
    files = sorted((FOLDER / package).rglob("*.py"))
    found = {str(file.relative_to(FOLDER)): hanging(file.read_text()) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


@pytest.mark.parametrize("package", sorted(path.name for path in FOLDER.iterdir() if (path / "__init__.py").exists()))
def test_every_module_says_what_it_holds(package):
    files = (FOLDER / package).rglob("*.py")
    silent = [str(file.relative_to(FOLDER)) for file in files if ast.get_docstring(ast.parse(file.read_text())) is None]
    assert silent == []
