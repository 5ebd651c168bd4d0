"""Verdicts and rewards of whole responses, and what the grader imports."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.reward.grade import SIMPLERL_REWARDS, Verdict, grade_text, judge, reward_of


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("5", r"So the answer is $\boxed{5}$.", "correct"),
        ("5", r"So the answer is $\boxed{6}$.", "incorrect"),
        ("5", "So the answer is 5.", "no_answer"),
        ("5", r"The answer is \boxed{5", "no_answer"),
        ("5", r"First \boxed{5}, then \boxed{6}.", "incorrect"),
        (r"\frac{1}{2}", r"\[ \boxed{\dfrac{1}{2}} \]", "correct"),
        ("0.5", r"\boxed{\frac{2}{4}}", "correct"),
        ("", r"\boxed{5}", "incorrect"),
        ("1, 2", r"$\boxed{2}$ and $\boxed{1}$", "correct"),
        ("2", r"$\boxed{2}$ or $\boxed{3}$", "incorrect"),
        ("5", r"\boxed{5}<|im_end|>\boxed{6}", "correct"),
        ("5", "\\boxed{\ud800}", "incorrect"),
        ("5", "\\boxed{\x00}", "incorrect"),
    ],
)
def test_a_response_gets_its_verdict(gold, response, verdict):
    assert grade_text(gold, response) == verdict


def test_the_rewards_are_those_of_the_recipe_unless_a_configuration_says_otherwise():
    assert [reward_of(verdict) for verdict in ("correct", "incorrect", "no_answer")] == [1.0, -0.5, -1.0]
    config = replace(compose(["experiment=quickstart"]).reward, correct=2.0, incorrect=0.25, no_answer=-3.0)
    assert [reward_of(verdict, config) for verdict in ("correct", "incorrect", "no_answer")] == [
        2.0,
        0.25,
        -3.0,
    ]


def test_a_judgement_says_whether_the_answer_could_be_read():
    assert judge("5", r"\boxed{6}") == ("incorrect", True)
    assert judge("5", r"\boxed{6 +}") == ("incorrect", False)
    assert judge("5", r"\boxed{" + "1" * 5000 + "}") == ("incorrect", False)
    assert judge("5", "no box").verdict == "no_answer"


def test_every_verdict_has_a_reward():
    assert set(SIMPLERL_REWARDS) == set(get_args(Verdict))


def test_the_grader_loads_no_torch_and_no_sympy():
    modules = ("extract", "grade", "parsing.readings", "comparing.equivalence", "comparing.evaluate")
    modules += ("serving.pool", "serving.worker", "serving.worker_process")
    lines = [f"import nemo_simplerl.reward.{name}" for name in modules]
    lines += [
        "import sys",
        "print([n for n in ('torch', 'sympy', 'mpmath', 'numpy', 'megatron', 'hydra') if n in sys.modules])",
    ]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
