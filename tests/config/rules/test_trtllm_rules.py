"""Rules of rollout.engine=trtllm: each finds one problem, and none runs where another engine samples."""

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, from_yaml, to_yaml
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.shape import read_shape

TRTLLM = "rollout.engine=trtllm"


def problems_of(*overrides: str, world_size: int = 2) -> list[str]:
    config = compose(["experiment=quickstart", "model.path=no/such/folder", *overrides])
    return check(config, read_shape(config.model), world_size)


# quickstart: 4 heads, prompts of 64 tokens.
RULES = [
    (["rollout.top_p=0.9"], "Set rollout.top_p=1.0, or rollout.engine=hf"),
    (["rollout.top_k=50"], "Set rollout.top_k=0"),
    (["rollout.trtllm.sampler_type=TorchSampler", "rollout.temperature=0.7"], "Set rollout.temperature=1.0"),
    (["rollout.trtllm.max_num_tokens=63"], "Set rollout.trtllm.max_num_tokens=64 or more"),
    (
        ["rollout.trtllm.tensor_parallel_size=3"],
        "does not divide the model's 4 attention heads. Sizes that work: 1, 2, 4",
    ),
    (["rollout.trtllm.tensor_parallel_size=4"], "does not divide 2 ranks into engines. Sizes that work: 1 or 2"),
]


@pytest.mark.parametrize(("overrides", "told"), RULES)
def test_a_broken_rule_says_what_would_work(overrides, told):
    assert len([problem for problem in problems_of(TRTLLM, *overrides) if told in problem]) == 1
    assert problems_of(*overrides) == []


def test_what_the_engine_can_do_passes():
    assert problems_of(TRTLLM) == []
    assert problems_of(TRTLLM, "rollout.temperature=0.7", "rollout.trtllm.tensor_parallel_size=2") == []
    assert problems_of(TRTLLM, "rollout.trtllm.max_num_tokens=64") == []


def test_all_problems_are_told_at_once():
    problems = problems_of(TRTLLM, "rollout.top_p=0.9", "rollout.top_k=5", "rollout.trtllm.tensor_parallel_size=3")
    assert len(problems) == 4


def test_raw_engine_arguments_are_a_section_with_any_keys():
    given = "rollout.trtllm.engine_args={kv_cache_config: {tokens_per_block: 64}, batch_wait_timeout_iters: 32}"
    config = compose(["experiment=quickstart", given])
    expected = {"kv_cache_config": {"tokens_per_block": 64}, "batch_wait_timeout_iters": 32}
    assert config.rollout.trtllm.engine_args == expected
    assert from_yaml(to_yaml(config)) == config
    with pytest.raises(ConfigErrors, match="engine_args=3 is an integer; accepted: a section with any keys"):
        compose(["experiment=quickstart", "rollout.trtllm.engine_args=3"])
