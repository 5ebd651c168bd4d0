"""The rewards that docs/grading.md shows, as a reader would use them."""

import re
import sys
from pathlib import Path

import pytest

from nemo_simplerl.reward.functions.call import load_reward
from nemo_simplerl.user_functions import require_usable, user_function

PAGE = (Path(__file__).parents[2] / "docs/grading.md").read_text()
SECTION = re.search(r"^## A reward of your own\n(.*?)^## ", PAGE, re.M | re.S)
BLOCKS = re.findall(r"^```python\n(.*?)^```$", SECTION[1], re.M | re.S)


@pytest.fixture
def rewards(tmp_path, monkeypatch):
    """What each of the two functions says of a gold answer and a response."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = []
    for index, (block, name) in enumerate(zip(BLOCKS, ("compute_score", "reward_func"), strict=True)):
        file = tmp_path / f"reward_{index}.py"
        file.write_text(block)
        function = user_function(f"{file}:{name}")
        require_usable(function)
        found.append(load_reward(function, file))
    return found


def test_each_of_them_is_ten_lines():
    assert [len(block.splitlines()) <= 12 and len(re.findall(r"^.*\S", block, re.M)) <= 10 for block in BLOCKS] == [
        True,
        True,
    ]


def test_the_length_limit_takes_up_to_a_half_off_and_counts_what_is_too_long(rewards):
    length, _ = rewards
    right = r"\boxed{2}"
    assert length("2", right, {}) == (1.0, {"too_long": 0.0})
    assert length("2", "x" * (3000 - len(right)) + right, {}) == (0.75, {"too_long": 1.0})
    assert length("2", "x" * 9000, {}) == (-0.5, {"too_long": 1.0})


def test_the_format_pays_a_half_beside_the_right_answer(rewards):
    _, form = rewards
    thought = "<think>1 + 1</think> so "
    said = [thought + r"\boxed{2}", r"\boxed{2}", thought + "3", "3"]
    assert [form("2", response, {}).score for response in said] == [1.5, 1.0, 0.5, 0.0]
