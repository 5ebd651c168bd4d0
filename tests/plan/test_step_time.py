"""The time of a step: its counts, worked by hand or counted on the real code, and what follows from the estimates."""

from dataclasses import replace

import pytest

from nemo_simplerl.plan import seconds
from nemo_simplerl.plan.decoding import decoding, even_batches
from nemo_simplerl.plan.engines.base import footprint_of, wider_sizes
from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster, Layout
from nemo_simplerl.plan.memory import memory
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import Plan, plan_as_dict, plan_as_text
from nemo_simplerl.plan.seconds import Seconds
from nemo_simplerl.plan.step_time import layer_flops, step_time
from nemo_simplerl.plan.suggest import Change, faster_batch, suggestions

SHAPE = KNOWN_MODELS["Qwen2.5-Math-7B"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text("[]")
    return f"data.train_path={file}"


def plan_of(data: str, *overrides: str, nodes: int = 1, name: str = "h100-80g", **asked) -> Plan:
    cluster = Cluster(nodes=nodes, gpus_per_node=8, gpu=gpu(name, 8))
    return make_plan(["experiment=simplerl_zero_qwen2.5_math_7b", data, *overrides], cluster, SHAPE, **asked)


@pytest.fixture(scope="module")
def recipe(data) -> Layout:
    return plan_of(data).layout


def batch_of(layout: Layout, size: int) -> Layout:
    return replace(layout, engine=replace(layout.engine, batch=size))


def test_the_products_of_a_layer_are_those_that_were_counted_on_the_real_code():
    # Values of 130,458 tokens on one rank of TP 4: 425.6 TFLOP in the matrix products of 28 layers.
    attention = 2 * 3584 * 1.0  # of a sequence of one token, which layer_flops counts too
    assert 28 * (layer_flops(SHAPE, 1) - attention) * 130_458 / 4 == pytest.approx(425.6e12, rel=1e-3)
    # Causal attention of s tokens: half of 4 s^2 a d.
    assert layer_flops(SHAPE, 2000) - 2000 * layer_flops(SHAPE, 1) == pytest.approx(2 * 3584 * (2000**2 - 2000))


def test_training_alone_is_as_long_as_its_products_at_the_assumed_share_of_the_peak(recipe):
    found = step_time(recipe)
    # Eleven forwards of 8,192 samples of 1,006 tokens over eight GPUs.
    layers = 11 * 8192 * 28 * layer_flops(SHAPE, 1006) / 8 / 989e12
    training = found.total.low - found.phases["rollout"].low - found.phases["refit"].low
    assert layers / seconds.LAYERS[0] < training < 1.3 * layers / seconds.LAYERS[0]
    assert all(phase.low < phase.high for phase in found.phases.values())
    assert list(found.phases) == ["rollout", "log-probabilities", "critic update", "actor update", "refit"]


def test_what_is_not_done_takes_no_time(recipe):
    whole = step_time(recipe).phases
    assert step_time(replace(recipe, keeps_reference=False)).phases["log-probabilities"].low < (
        0.7 * whole["log-probabilities"].low
    )
    passes = step_time(replace(recipe, old_logprobs_share=1 / 64)).phases["log-probabilities"]
    assert passes.low < 0.7 * whole["log-probabilities"].low
    stored = step_time(replace(recipe, recompute=None)).phases["actor update"]
    assert stored.low == pytest.approx(0.8 * whole["actor update"].low, rel=0.05)  # 3 forwards of the layers, not 4


def test_half_the_tensor_ranks_send_a_third_and_a_step_is_shorter(recipe):
    def traffic(tensor: int) -> float:
        """Of a pass without gradients, on GPUs that compute in no time."""
        instant = replace(recipe.cluster.gpu, speeds=replace(recipe.cluster.gpu.speeds, flops=1e30))
        cluster = replace(recipe.cluster, gpu=instant)
        layout = replace(recipe, tensor=tensor, cluster=cluster, keeps_reference=False, old_logprobs_share=0)
        return step_time(layout).phases["log-probabilities"].low

    # TP 4: 3/4 of the hidden states of half the samples; TP 2: 1/2 of those of a quarter.
    assert traffic(4) / traffic(2) == pytest.approx(3)
    size = 4 / 2 * 2048 * 1006 * 3584 * 2 * 28
    assert traffic(2) == pytest.approx(size / (450e9 * seconds.PEERS[0]))
    assert step_time(recipe).total.high < step_time(replace(recipe, tensor=4)).total.high
    # Over a network it is another matter.
    apart = replace(recipe.cluster, nodes=8, gpus_per_node=1)
    assert step_time(replace(recipe, cluster=apart)).total.low > 1.2 * step_time(recipe).total.low


def test_a_rollout_without_graphs_waits_for_launches(recipe):
    small = decoding(replace(batch_of(recipe, 64), engine=replace(recipe.engine, batch=64, is_graphed=False)))
    assert small.host == Seconds(1540 * 6e-6, 1540 * 9e-6)  # 55 kernels in each of 28 layers
    assert small.is_host_bound and small.steps == 16 * 3000  # 128 batches of eight prompts on eight GPUs
    graphed = decoding(recipe)
    launched = decoding(replace(recipe, engine=replace(recipe.engine, is_graphed=False)))
    assert not graphed.is_host_bound and graphed.seconds.high < launched.seconds.high
    # 15.2 GB of weights at the memory's speed are the least that a step takes.
    assert graphed.gpu.low > 15.2e9 / 3.35e12
    refills = replace(recipe.engine, refills=True, batch=256)
    assert decoding(replace(recipe, engine=refills)).steps == 3000 + (1024 - 256) * 750 / 256


def test_batches_divide_an_engines_prompts_evenly(recipe):
    assert even_batches(recipe)[:6] == [1024, 512, 344, 256, 208, 176]  # 128 prompts in 1 to 6 parts, times 8
    assert even_batches(replace(recipe, engine=replace(recipe.engine, batch_key=None))) == []


def test_the_largest_batch_that_leaves_memory_to_spare_is_named_and_runs(data, recipe):
    assert faster_batch(recipe) is None  # the recipe has it
    no_graphs = ["actor.tensor_model_parallel_size=4", "rollout.cuda_graphs=false"]
    for changes, why, size in (([], "reads all weights", 208), (no_graphs, "waits for launches of kernels", 256)):
        plan = plan_of(data, *changes, "rollout.max_batch_size=64")
        (told,) = [warning for warning in plan.warnings if "rollout" in warning]
        assert f"{why} in each of 48000 decoding steps. rollout.max_batch_size={size}" in told
        wider = plan_of(data, *changes, f"rollout.max_batch_size={size}")
        assert wider.problems == [] and wider.memory.headroom > 0.05 * wider.memory.capacity
        assert not any("rollout" in warning for warning in wider.warnings)
    assert memory(batch_of(recipe, 256)).headroom < 0.01 * memory(recipe).capacity
    assert not any("rollout" in warning for warning in plan_of(data, "rollout.engine=trtllm").warnings)


def test_suggestions_are_ranked_by_the_time_of_a_step_and_spare_memory(data, recipe):
    found, _ = suggestions(batch_of(recipe, 64))
    times = [change.seconds for change in found]
    assert times == sorted(times)
    best = {(change.layout.tensor, change.layout.pipeline): change for change in found}
    assert best[2, 1].seconds < Change("", recipe).seconds  # it keeps activations where memory is left
    for change in found:
        assert change.memory.headroom >= 0.05 * change.memory.capacity
        asked = plan_of(data, "rollout.max_batch_size=64", *change.text.split())
        assert asked.problems == [] and step_time(asked.layout).total == change.time.total
    trtllm, _ = suggestions(plan_of(data, "rollout.engine=trtllm").layout)
    assert (trtllm[0].layout.tensor, trtllm[0].layout.pipeline) == (2, 1)


def test_the_estimate_is_told_as_ranges_with_what_bounds_the_rollout(data):
    plan = plan_of(data, suggest=True)
    text, found = plan_as_text(plan), plan_as_dict(plan)
    assert "seconds of a step, estimated for samples of 1006 tokens (0.25 of the longest): " in text
    assert "15000 decoding steps of " in text
    launched = plan_of(data, "rollout.cuda_graphs=false")
    assert "15000 decoding steps, host-bound: 9.2 to 14 ms of launches each, beside" in plan_as_text(launched)
    assert plan_as_dict(launched)["step_seconds"]["decoding"]["is_host_bound"]
    low, high = found["step_seconds"]["total"]
    assert low < high
    assert sum(low for low, _ in found["step_seconds"]["phases"].values()) == pytest.approx(low, rel=1e-2)
    assert [one["cost"] for one in found["suggestions"]] == sorted(one["cost"] for one in found["suggestions"])
    of_cpu = plan_of(data, "model.precision=fp32", name="cpu")
    assert of_cpu.time is None and plan_as_dict(of_cpu)["step_seconds"] is None


def test_an_update_computes_the_output_layer_four_times_and_each_pass_once(recipe, monkeypatch):
    monkeypatch.setattr(seconds, "HEAD", (1e-9, 1e-9))  # so slow that nothing else counts
    phases = step_time(recipe).phases
    assert phases["actor update"].low == pytest.approx(4 / 2 * phases["log-probabilities"].low, rel=1e-3), "two passes"


def test_no_change_parts_the_samples_of_a_prompt(recipe):
    texts = [text for text, _ in footprint_of("hf").changes(batch_of(recipe, 64))]
    assert texts == ["rollout.max_batch_size=32", "rollout.max_batch_size=16", "rollout.max_batch_size=8"]


def test_an_engine_spans_what_divides_a_node_and_the_key_value_groups(recipe):
    assert list(wider_sizes(recipe)) == [2, 4]  # of 8 GPUs and 4 groups
    assert list(wider_sizes(replace(recipe, cluster=replace(recipe.cluster, gpus_per_node=6)))) == [2]
