"""What a plan says of rollout.engine=vllm: its share of a GPU, awake and asleep."""

import pytest

from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import Plan
from nemo_simplerl.plan.shapes import rank_parameters

GIB = 2**30
RECIPE = ["experiment=simplerl_zero_qwen2.5_math_7b", "rollout.engine=vllm"]
SHAPE = KNOWN_MODELS["Qwen2.5-Math-7B"]


@pytest.fixture
def plan_of(tmp_path):
    (tmp_path / "train.json").write_text("[]")

    def plan(*overrides: str, ranks: int = 8, name: str = "h100-80g", nodes: int = 1, **asked) -> Plan:
        cluster = Cluster(nodes=nodes, gpus_per_node=ranks, gpu=gpu(name, ranks))
        return make_plan([*RECIPE, f"data.train_path={tmp_path}/train.json", *overrides], cluster, SHAPE, **asked)

    return plan


def parts_of(plan: Plan) -> dict[str, dict[str, int]]:
    return {phase.name: phase.parts for phase in plan.memory.phases}


def test_weights_process_and_cache_together_are_its_share_of_the_whole_gpu(plan_of):
    plan = plan_of("rollout.vllm.gpu_memory_utilization=0.5", "rollout.vllm.tensor_parallel_size=2")
    rollout = parts_of(plan)["rollout"]
    assert rollout["engine weights"] == 2 * rank_parameters(SHAPE, 2)  # bf16
    total = gpu("h100-80g", 8).total
    assert rollout["engine weights"] + rollout["engine KV cache"] + 3 * GIB == total // 2
    assert (
        plan.memory.cache.bytes_per_token == 2 * 28 * 2 * 128 * 2
    )  # keys and values, layers, 2 of 4 heads, size, bf16


def test_asleep_it_leaves_the_gpu_and_keeps_nothing_in_host_memory(plan_of):
    plan = plan_of()
    for phase in ("log-probabilities", "critic update", "actor update"):
        assert not [name for name in parts_of(plan)[phase] if name.startswith("engine")]
    assert not [name for name in plan.memory.host if "engine" in name]
    awake = parts_of(plan_of("rollout.vllm.sleep=false"))["actor update"]
    assert awake["engine weights"] > 0 and awake["engine KV cache"] > 0


def test_a_share_that_the_trainer_needs_itself_does_not_fit_and_a_smaller_one_is_proposed(plan_of):
    plan = plan_of("rollout.vllm.gpu_memory_utilization=0.9")
    assert any("memory: rollout" in problem for problem in plan.problems)
    assert "rollout.vllm.gpu_memory_utilization=" in (plan.first_change or "")


def test_an_engine_across_nodes_is_refused(plan_of):
    plan = plan_of("rollout.vllm.tensor_parallel_size=4", ranks=2, name="h200-141g", nodes=4)
    assert any("an engine cannot span nodes" in problem for problem in plan.problems)


def test_on_cpus_the_cache_is_what_its_key_says_and_never_leaves(plan_of):
    plan = plan_of("rollout.vllm.cpu_kv_cache_mb=256", "model.precision=fp32", ranks=4, name="cpu")
    assert plan.memory.cache.bytes == 256 * 2**20
    assert parts_of(plan)["actor update"]["engine KV cache"] == 256 * 2**20
    assert parts_of(plan)["rollout"]["engine sampling"] == 800 * 2**20
