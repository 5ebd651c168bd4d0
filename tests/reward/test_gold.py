r"""What counts as the gold answer in a row's value, and which gold answers no response can equal."""

from decimal import Decimal

import pytest

from nemo_simplerl.reward import gold
from nemo_simplerl.reward.gold import check_golds, read_gold


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("11", "11"),
        (" 11\n", "11"),
        ("She has 5 - 2 = 3.\n#### 1,234", "1234"),
        ("#### 11", "11"),
        (r"\boxed{11}", "11"),
        (r"The answer is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"<answer> \boxed{11} </answer>", "11"),
        ("Final Answer: The final answer is $11$. I hope it is correct.", "$11$"),
        ("11<|im_end|>", "11"),
        ('["11"]', "11"),
        (["11"], "11"),
        ([r"\boxed{11}"], "11"),
        (11, "11"),
        (11.0, "11"),
        (0.5, "0.5"),
        (Decimal("11.50"), "11.50"),
        ("None", "None"),
        ("[2]", "[2]"),
        ("#### Step 1\nWe add", "#### Step 1\nWe add"),  # a heading, and no sure rule for what follows
        ("the answer is not 5", "the answer is not 5"),
        ("First \\boxed{5} apples remain. Then 5+6=11.\n#### 11", "11"),
        ("#### Answer\nIt is \\boxed{5}.", "5"),
        ("5+6=11 \\boxed{11}\n####", "11"),
        (r"\boxed{5} apples, then 6. #### \boxed{11}", "11"),
        (r"First \boxed{5}. Final Answer: $\boxed{11}$", "11"),
        (r"So $x = \boxed{0.5}$, which is $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        ("#### (1,200)", "(1,200)"),
        ("#### 1,200,300", "1200300"),
        ("#### $-1,234.50", "$-1234.50"),
        ("#### 1,200 and 1,300", "1,200 and 1,300"),
        ("Nat", "Nat"),
        ("A: 5", "5"),
        ("**Answer:** 5.", "5"),
        ("Therefore, x = 5.", "x = 5"),
        ("A:B", "A:B"),  # a ratio
        ("a, 5", "a, 5"),
        ("So what", "So what"),
        ("答案：11", "11"),
        ("<think>It is \\boxed{3}? No.</think> It is \\boxed{11}.", "11"),
        ("<think>Hm.</think>\n11", "11"),
        ("['11']", "11"),
        ("11\f", "11"),  # a page's end
        ("one\tan apple", "one\tan apple"),  # a table's cells
    ],
)
def test_a_gold_is_read_by_rule_where_the_rule_is_sure(value, text):
    assert read_gold(value).text == text
    assert read_gold(value).fault is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "missing"),
        ("", "empty"),
        ("####", "nothing follows"),
        (float("nan"), "nan"),
        ("NaN", "NaN"),
        ("<NA>", "<NA>"),
        ("NULL", "NULL"),
        (r"(a) It is \boxed{3}. (b) It is \boxed{7}.", "several boxes with different answers"),
        ("#### (a)\n\\boxed{3}\n#### (b)\n\\boxed{7}", "several boxes with different answers"),
        (float("-inf"), "-inf"),
        (Decimal("NaN"), "NaN"),
        (True, "true"),
        ([], "list of 0"),
        (["1", "2"], "list of 2"),
        ('["1", "2"]', "list of 2"),
        ([None], "missing"),
        ({"value": "11"}, "object of value"),
        ("\frac{1}{2}", "lost a backslash"),  # as JSON and Python read what is written with one
        ("#### \frac{1}{2}", "lost a backslash"),
        ("\boxed{11}", "lost a backslash"),
        ("\\boxed{2 \times 3}", "lost a backslash"),
        ("<think>Hm.</think>", "empty"),
        (b"11", "type bytes"),
    ],
)
def test_a_value_that_is_no_gold_says_why(value, why):
    found = read_gold(value)
    assert found.text == ""
    assert why in found.fault


def test_golds_that_need_a_look_are_found():
    prose = "The two lines meet where both of the equations hold."
    check = check_golds(["1/2", r"\boxed{11", "October 30", prose, r"\text{two lines}", "小明一共有三个苹果。"])
    assert (check.unreachable, check.text_alone, check.prose) == ([1], [2], [3, 5])


@pytest.mark.parametrize("gold", ["(C) 12", "C: 12", "C. 12"])
def test_a_letter_with_the_text_of_its_choice_needs_a_look(gold):
    assert check_golds([gold, "C", "(C)", "A = 12", "C, D"]).text_alone == [0]


def test_equal_golds_are_graded_once(monkeypatch):
    asked = []
    monkeypatch.setattr(gold, "grade_text", lambda text, response: asked.append(text) or "incorrect")
    assert check_golds(["1", "2", "1", "1"]).unreachable == [0, 1, 2, 3]
    assert sorted(asked) == ["1", "2"]
