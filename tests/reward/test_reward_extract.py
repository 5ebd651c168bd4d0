r"""Extraction, tested apart from equivalence: which text counts as the answer."""

import random
import time

import pytest

from nemo_simplerl.reward.extract import boxes_in, final_answers


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so $\boxed{5}$.", "5"),
        (r"\boxed{41}, no: \boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\sqrt{\frac{3}{4}}} and a stray } after", r"\sqrt{\frac{3}{4}}"),
        (r"{\bf \boxed{7}", "7"),
        (r"\fbox{8}", "8"),
        (r"\boxed{\fbox{12}}", "12"),
        (r"\boxed{\text{The answer is } \boxed{5}}", "5"),
        ("\\boxed\n {\n17\n}", "17"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x \right.}", r"\left\{x \right."),
        (r"\boxed{5\\}", r"5\\"),
        (r"x\\\boxed{6}", "6"),
        (r"quoted: \\boxed{9}", "9"),
        (r"$\boxed 5$", "5"),
        (r"\boxed{5}<|im_end|> Next: \boxed{6}", "5"),
        (r"\boxed{5}</s>\boxed{6}", "5"),
    ],
)
def test_the_content_of_the_last_box_is_the_answer(response, answer):
    assert final_answers(response) == [answer]


@pytest.mark.parametrize(
    "response",
    [
        "",
        "The answer is 5.",
        "#### 5",
        r"\boxed",
        r"\boxed x",
        r"\boxed(5)",
        r"boxed{5}",
        r"\framebox{5}",
        r"\boxed5}",
    ],
)
def test_a_response_without_a_box_has_no_answer_even_where_it_ends_in_a_number(response):
    assert final_answers(response) == []


@pytest.mark.parametrize("response", [r"\boxed{", r"\boxed{5", r"\boxed{\frac{1}{2}", r"\boxed{5\}", r"\boxed{5)"])
def test_a_box_that_never_closes_is_no_answer(response):
    assert final_answers(response) == []


@pytest.mark.parametrize(
    "response", [r"\boxed{}", "\\boxed{ \n\t}", r"\fbox{ }", r"\boxed{\,}", r"\boxed{\text{ }}", r"\boxed{\boxed{}}"]
)
def test_a_blank_box_is_no_answer(response):
    assert final_answers(response) == []


def test_an_incomplete_or_blank_box_does_not_hide_the_complete_one_before_it():
    assert final_answers(r"\boxed{5}. Checking: \boxed{5") == ["5"]
    assert final_answers(r"\boxed{5}. I put it in \boxed{} as asked.") == ["5"]


def test_a_complete_box_inside_one_that_never_closes_counts():
    assert final_answers(r"\boxed{12 is what I had, but \boxed{13}") == ["13"]


@pytest.mark.parametrize(
    "unit",
    [
        "\\boxed{",
        "\\boxed ",
        "\\boxed{1",
        "{",
        "}",
        "{}",
        "\\",
        "\\{",
        "\\boxed{}",
        "\\boxed{ ",
        "a",
        "\ud800",
        "\x00",
    ],
)
def test_a_megabyte_of_any_fragment_is_scanned_in_linear_time(unit):
    text = unit * (1_000_000 // len(unit))
    start = time.perf_counter()
    final_answers(text)
    assert time.perf_counter() - start < 3.0
    assert final_answers(text + r"\boxed{6}") == ["6"]


def test_a_box_full_of_spaces_and_nested_boxes_full_of_spaces_are_read_in_linear_time():
    start = time.perf_counter()
    assert final_answers(r"\boxed{" + " " * 1_000_000 + "}") == []
    depth = 20_000
    assert final_answers(r"\boxed{" * depth + " " * 400_000 + "}" * depth) == []
    assert time.perf_counter() - start < 3.0


@pytest.mark.parametrize(
    ("response", "answers"),
    [
        (r"\boxed{1}, \boxed{2}", ["1", "2"]),
        (r"$\boxed{1}$ and $\boxed{2}$.", ["1", "2"]),
        (r"\(\boxed{1}\) or \(\boxed{2}\)", ["1", "2"]),
        (r"$x = \boxed{1}$ and $y = \boxed{2}$", ["1", "2"]),
        (r"\boxed{1} \quad \text{and} \quad \boxed{2}", ["1", "2"]),
        (r"\boxed{1} \boxed{2}", ["2"]),
        (r"First \boxed{1}. Then, on reflection and with care, \boxed{2}", ["2"]),
        (r"\boxed{1}, \boxed{2}. Wrong! It is \boxed{3}", ["3"]),
        ("no box", []),
    ],
)
def test_boxes_joined_by_a_comma_or_a_connector_are_one_list(response, answers):
    assert final_answers(response) == answers


def test_what_stands_between_many_boxes_is_read_in_linear_time():
    start = time.perf_counter()
    assert len(final_answers(r"\boxed{1}, " * 100_000)) == 20
    assert time.perf_counter() - start < 3.0


def test_nothing_before_the_first_box_changes_what_is_found():
    """A word that is no box makes the scan begin at the start; without it the scan begins at the first box."""
    draw = random.Random(2)
    pieces = ["{", "}", "\\", "\\{", "\\}", " ", "x", "\n", r"\boxed{", r"\fbox {", r"\boxed 5 ", r"\frac12", "</s>"]
    for _ in range(3_000):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 25)))
        start = r"\fboxx "
        shifted = [tuple(place + len(start) for place in box) for box in boxes_in(text)]
        assert boxes_in(start + text) == shifted, text
