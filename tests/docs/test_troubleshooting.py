"""Every message that docs/troubleshooting.md quotes is one that the code can print."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from nemo_simplerl.config.build import keys_of
from nemo_simplerl.config.schema import Config

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs/troubleshooting.md"
VARIES = "…"
FILLED = "\0"  # what an f-string fills in


def quoted(page: str) -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = re.findall(r"^\| (.+?) \| ", page, re.M)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


@cache
def printable() -> list[str]:
    """Every text of the package and of its scripts; in those of Python, what is filled in is one character."""
    texts = [path.read_text() for path in REPOSITORY.glob("scripts/**/*.sh")]
    for path in sorted(REPOSITORY.glob("nemo_simplerl/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(p.value if isinstance(p, ast.Constant) else FILLED for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def can_be_printed(message: str) -> bool:
    parts = [re.escape(part.strip()) for part in message.split(VARIES)]
    pattern = re.compile(".*".join(part for part in parts if part), re.S)
    return any(pattern.search(text) for text in printable())


@pytest.mark.parametrize("message", quoted(PAGE.read_text()))
def test_a_quoted_message_stands_in_the_code(message):
    assert len(message.replace(VARIES, "").strip()) >= 12, "too short to tell messages apart"
    assert can_be_printed(message)


def test_every_key_that_the_page_names_is_one_of_the_configuration():
    keys = set(keys_of(Config))
    sections = "|".join(key for key in keys if "." not in key)
    named = re.findall(rf"(?<![\w./-])(?:{sections})(?:\.[a-z_0-9]+)+(?![\w/(])", PAGE.read_text())
    assert len(named) > 100 and set(named) <= keys


def test_a_message_that_no_code_prints_would_be_found():
    assert not can_be_printed("the engine … has never printed this")
    assert can_be_printed("the engine refuses to generate: …")
