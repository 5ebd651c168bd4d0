"""Rules of rollout.engine=vllm: each finds one problem, and none runs where another engine samples."""

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.rules.engines.vllm import PYTHON_VARIABLE, engine_python
from nemo_simplerl.config.rules.machine import Machine, check_machine
from nemo_simplerl.config.run_dir import FREE_KEYS
from nemo_simplerl.config.shape import read_shape
from support.programs import program

VLLM = "rollout.engine=vllm"


def problems_of(*overrides: str, world_size: int = 4) -> list[str]:
    config = compose(["experiment=quickstart", "model.path=no/such/folder", "sft.global_batch_size=64", *overrides])
    return check(config, read_shape(config.model), world_size)


# quickstart: 4 heads, 2 key-value heads.
RULES = [
    (
        ["rollout.temperature=0.004"],
        "rollout.temperature=0.004 with rollout.engine=vllm, which samples at 0.01",
    ),
    (["rollout.temperature=2.5"], "rollout.temperature=2.5 with rollout.engine=vllm, which takes at most 2."),
    (["rollout.vllm.tensor_parallel_size=3"], "4 attention heads and 2 key-value heads. Sizes that work: 1 or 2"),
    (["rollout.vllm.tensor_parallel_size=3"], "does not divide 4 ranks into engines. Sizes that work: 1, 2 or 4"),
]


@pytest.mark.parametrize(("overrides", "told"), RULES)
def test_a_broken_rule_says_what_would_work(overrides, told):
    assert len([problem for problem in problems_of(VLLM, *overrides) if told in problem]) == 1
    assert problems_of(*overrides) == []


def test_what_the_engine_can_do_passes():
    assert problems_of(VLLM, "rollout.top_p=0.9", "rollout.top_k=5") == []
    assert problems_of(VLLM, "rollout.vllm.tensor_parallel_size=2") == []
    assert problems_of(VLLM, "rollout.vllm.tensor_parallel_size=4") == [], "key-value heads are copied"


def machine_problems(*overrides: str, is_this_one: bool = True) -> list[str]:
    config = compose(["experiment=quickstart", *overrides])
    machine = Machine(has_gpu=False, has_transformer_engine=False, is_this_one=is_this_one)
    return [problem for problem in check_machine(config, machine) if "vllm" in problem]


def test_a_python_that_is_not_there_is_told_before_work_starts():
    [problem] = machine_problems(VLLM, "rollout.vllm.python=/no/python")
    assert "/no/python (rollout.vllm.python) is no program" in problem and "scripts/engine_env.sh vllm" in problem
    assert machine_problems("rollout.vllm.python=/no/python") == []
    assert machine_problems(VLLM, "rollout.vllm.python=/no/python", is_this_one=False) == [], "planned for another"


def test_a_program_that_is_no_python_with_vllm_is_told_too(tmp_path):
    [problem] = machine_problems(VLLM, "rollout.vllm.python=true")
    assert "/true is no Python with vLLM. Make one with `scripts/engine_env.sh vllm`" in problem
    with_vllm = program(tmp_path, "python", "echo True")
    assert machine_problems(VLLM, f"rollout.vllm.python={with_vllm}") == []


def test_the_python_comes_from_the_setting_then_the_variable_then_the_repository(monkeypatch, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "one"))
    assert engine_python(None) == str(tmp_path / "one")
    assert engine_python(str(tmp_path / "other")) == str(tmp_path / "other")
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=f"{PYTHON_VARIABLE}. is no program"):
        engine_python(None)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    assert engine_python(str(tmp_path / "link")) == str(tmp_path / "link"), "an environment's Python is a link"


def test_where_vllm_is_installed_does_not_decide_the_weights():
    assert {"rollout.vllm.python", "rollout.vllm.timeout_s"} <= FREE_KEYS
