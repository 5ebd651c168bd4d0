"""Which functions a run takes, told before one of them is run, and what is read in what they return."""

import inspect
import math
from dataclasses import replace

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules.machine import Machine, check_machine
from nemo_simplerl.reward.functions.call import read_result
from nemo_simplerl.user_functions import OPENRLHF, TRL, VERL, arguments_of, form_of, require_usable, user_function

FORMS = {
    "def f(data_source, solution_str, ground_truth, extra_info): ...": VERL,
    "def f(solution_str, ground_truth=None, method='strict'): ...": VERL,
    "async def f(*, data_source, solution_str, ground_truth, **kwargs): ...": VERL,
    "def f(completions, **kwargs): ...": TRL,
    "def f(prompts, completions, completion_ids, answer, log_metric=None): ...": TRL,
    "def f(queries, prompts, labels): ...": OPENRLHF,
    "def f(queries, prompts, labels, **kwargs): ...": OPENRLHF,
}
NONE = [
    "def f(response, gold): ...",
    "def f(solution_str, tokenizer): ...",
    "def f(completions, images): ...",
    "def f(**kwargs): ...",
    "def f(solution_str, /): ...",
    "def f(queries, *, scale): ...",
]


@pytest.mark.parametrize("source", FORMS)
def test_a_form_is_told_by_the_arguments_as_written_and_as_loaded(tmp_path, source):
    (tmp_path / "r.py").write_text(source)
    require_usable(user_function(f"{tmp_path}/r.py:f"))
    defined: dict = {}
    exec(source, defined)
    assert form_of(arguments_of(defined["f"])) is FORMS[source]
    assert inspect.isfunction(defined["f"])


@pytest.mark.parametrize("source", NONE)
def test_what_fits_no_form_is_refused_naming_the_three(tmp_path, source):
    (tmp_path / "r.py").write_text(source)
    with pytest.raises(ValueError, match=r"none of verl's \(.*TRL's \(.*OpenRLHF's \("):
        require_usable(user_function(f"{tmp_path}/r.py:f"))
    defined: dict = {}
    exec(source, defined)
    with pytest.raises(ValueError, match="none of verl's"):
        form_of(arguments_of(defined["f"]))


@pytest.mark.parametrize(
    "source",
    [
        "from other import f",
        "from other import *",
        "@decorated\ndef f(x): ...",
        "f = make()",
        "if True:\n    f = g = 1",
        "try:\n    import fast\nexcept ImportError:\n    def f(x): ...",
    ],
)
def test_a_function_that_is_no_plain_one_is_looked_at_when_it_is_loaded(tmp_path, source):
    (tmp_path / "r.py").write_text(source)
    require_usable(user_function(f"{tmp_path}/r.py:f"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("r.py", "is not FILE.py:NAME"),
        ("r.txt:f", "is not FILE.py:NAME"),
        ("r.py:f()", "is not FILE.py:NAME"),
        ("none.py:f", "names no file (looked for "),
        ("r.py:g", "names no function of r.py, which defines: f."),
        ("broken.py:f", "cannot be read as Python"),
        ("r.py:f", "which is none of verl's"),
    ],
)
def test_the_configuration_says_what_is_wrong_with_it(tmp_path, monkeypatch, value, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text("import os\ndef f(response): ...\n")
    (tmp_path / "broken.py").write_text("def f(:")
    config = compose(["experiment=quickstart", f"reward.function={value}"])
    machine = Machine(has_gpu=False, has_transformer_engine=False)
    (problem,) = [p for p in check_machine(config, machine) if p.startswith("reward.function=")]
    assert told in problem
    elsewhere = check_machine(config, replace(machine, has_files=False))  # planned where no file of the run need be
    assert (problem in elsewhere) == (value != "none.py:f")


class Scalar:
    def __float__(self):
        return 0.5


@pytest.mark.parametrize(
    ("result", "score", "metrics"),
    [
        (1, 1.0, {}),
        (True, 1.0, {}),
        ([0.25], 0.25, {}),
        (Scalar(), 0.5, {}),
        ({"score": -1, "acc": False, "pred": "x", "none": None}, -1.0, {"acc": 0.0}),
        ({"rewards": [Scalar()], "scores": [1.0], "extra_logs": {"length": [3]}}, 0.5, {"scores": 1.0, "length": 3.0}),
        ({"score": 0.5, "nan": math.nan}, 0.5, {}),
    ],
)
def test_a_number_is_a_score_and_a_dicts_other_numbers_are_metrics(result, score, metrics):
    assert read_result(result, {"logged": 2}) == (score, {"logged": 2.0} | metrics)


@pytest.mark.parametrize(
    "result",
    [None, "1", math.nan, math.inf, 1e39, -(10**400), [], [1.0, 2.0], {"acc": 1}, {"score": None}, {"rewards": ["x"]}],
)
def test_what_is_no_finite_score_is_an_error(result):
    with pytest.raises(ValueError, match="it returned"):
        read_result(result)
