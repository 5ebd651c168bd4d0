"""What a plan says of setups that cannot run, and of the 7B recipe on clusters of several sizes."""

import json

import pytest

from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import Plan, plan_as_dict, plan_as_text
from nemo_simplerl.plan.step_time import step_time

RECIPE = "experiment=simplerl_zero_qwen2.5_math_7b"
STAYS = "actor.offload_adam_states=false"


@pytest.fixture
def data(tmp_path) -> str:
    file = tmp_path / "train.json"
    file.write_text("[]")
    return f"data.train_path={file}"


def plan_of(
    *overrides: str, nodes: int = 1, ranks: int = 8, name: str = "h100-80g", shape="Qwen2.5-Math-7B", **asked
) -> Plan:
    cluster = Cluster(nodes=nodes, gpus_per_node=ranks, gpu=gpu(name, ranks))
    return make_plan([RECIPE, *overrides], cluster, KNOWN_MODELS.get(shape), **asked)


# Changes to the recipe on eight GPUs, and a piece of each problem that must be reported, no more and no fewer.
BROKEN = {
    "heads": (
        ["actor.tensor_model_parallel_size=8"],
        ["28 attention heads and 4 query groups. Sizes that work: 1, 2 or 4"],
    ),
    "layers": (
        [
            "actor.tensor_model_parallel_size=1",
            "actor.pipeline_model_parallel_size=8",
            "actor.sequence_parallel=false",
        ],
        ["pipeline_model_parallel_size=8 does not divide the model's 28 layers"],
    ),
    "batch": (
        ["actor.global_batch_size=102", "actor.micro_batch_tokens=null"],
        ["=102 does not divide the samples of a step", "=102 is not a multiple of actor.micro_batch_size=2"],
    ),
    "critic's batch": (
        ["critic.global_batch_size=96", "critic.micro_batch_size=5", "critic.micro_batch_tokens=null"],
        ["critic.global_batch_size=96 does not divide", "=96 is not a multiple of critic.micro_batch_size=5"],
    ),
    "positions": (
        ["rollout.max_response_tokens=3100"],
        ["= 4124, but the model's max_position_embeddings is 4096"],
    ),
    "world": (
        ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=7"],
        ["= 14 ranks a replica, but the run has 8"],
    ),
    "context": (["actor.context_parallel_size=2"], ["context_parallel_size=2 is not supported yet"]),
    "ranges": (
        ["actor.micro_batch_size=0", "rollout.temperature=0"],
        ["actor.micro_batch_size=0 is out of range", "rollout.temperature=0"],
    ),
    "names": (["actor.tensor_parallel=2"], ["actor.tensor_parallel is not a key"]),
    "engine": (
        [
            "rollout.engine=trtllm",
            "rollout.trtllm.tensor_parallel_size=3",
            "rollout.trtllm.free_gpu_memory_fraction=0.3",
            "rollout.top_p=0.9",
        ],
        [
            "rollout.top_p=0.9",
            "does not divide the model's 28 attention heads",
            "does not divide 8 ranks into engines",
        ],
    ),
    "no room for a sequence": (
        ["rollout.engine=trtllm", "rollout.trtllm.free_gpu_memory_fraction=0.001"],
        ["room for no sequence"],
    ),
    "sequence parallel alone": (
        ["actor.tensor_model_parallel_size=1", "actor.recompute_granularity=null", STAYS],
        [
            "actor.sequence_parallel=true splits",
            "memory: start",
            "memory: rollout",
            "memory: log-probabilities",
            "memory: critic update",
            "memory: actor update",
            "memory: refit",
            "room for no sequence",
        ],
    ),
    "many at once": (
        [
            "actor.tensor_model_parallel_size=3",
            "actor.context_parallel_size=2",
            "actor.global_batch_size=100",
            "critic.optim.min_lr=1",
            "rollout.max_response_tokens=4000",
            "trainer.eval_every=5",
        ],
        [
            "=100 does not divide",
            "critic.optim.min_lr=1",
            "trainer.eval_every=5",
            "attention heads",
            "max_position_embeddings",
            "ranks a replica",
            "is not supported yet",
        ],
    ),
}


@pytest.mark.parametrize("changes, told", BROKEN.values(), ids=BROKEN)
def test_every_problem_of_a_broken_setup_is_told_at_once(changes, told, data):
    plan = plan_of(data, *changes)
    for piece in told:
        assert [piece in problem for problem in plan.problems].count(True) == 1, (piece, plan.problems)
    assert len(plan.problems) == len(told), plan.problems
    assert not plan.can_run


def test_a_missing_data_set_and_a_missing_model_are_told_together():
    plan = plan_of("data.train_path=nowhere.json", "model.path=nowhere", shape=None)
    assert len(plan.problems) == 2
    assert any("data.train_path='nowhere.json' is not a file" in problem for problem in plan.problems)
    assert any("model.path='nowhere' holds no config.json" in problem for problem in plan.problems)


def test_a_run_that_cannot_start_gets_no_time_and_the_plan_says_so(data):
    for plan in (plan_of(data, STAYS), plan_of(data, "trainer.eval_every=5")):
        assert plan.problems and plan.memory is not None and plan.time is None
        assert "no time is estimated: the run cannot start" in plan_as_text(plan)
        assert not any("seconds" in warning or " s," in warning for warning in plan.warnings)
    assert plan_as_dict(plan)["step_seconds"] is None and "cannot start" in plan_as_dict(plan)["no_step_seconds"]
    assert plan_as_dict(plan_of(data))["no_step_seconds"] is None


def test_a_well_known_critic_needs_no_folder_and_another_one_does(data):
    known = "critic.path=models/Qwen2.5-Math-1.5B"
    plan = plan_of(known, "actor.tensor_model_parallel_size=2", shape=None)
    assert plan.problems == [] and plan.source.endswith("sizes are those published for Qwen2.5-Math-1.5B")
    weights = next(phase for phase in plan.memory.phases if phase.name == "critic update").parts["critic weights"]
    assert weights < 0.25 * plan.memory.phases[-1].parts["actor weights"]
    assert "2 query groups" in plan_of(known, "actor.tensor_model_parallel_size=4", shape=None).problems[0]
    for refused in (plan_of("critic.path=models/mine", shape=None), plan_of(data, known, shape=None, needs_files=True)):
        assert any("critic.path=" in problem and "is no model" in problem for problem in refused.problems)


def test_weights_that_a_sleeping_engine_drops_take_no_host_memory(data):
    drops = "rollout.trtllm.engine_args={sleep_config: {restore_modes: {model_weights: NONE}}}"
    kept, dropped = (plan_of(data, "rollout.engine=trtllm", *more).memory.host for more in ([], [drops]))
    assert kept.items() - dropped.items() == {("sleeping engine's weights", 8 * 2 * 7_615_616_512)}
    assert dropped.items() <= kept.items()


def test_an_engine_across_nodes_is_refused(data):
    plan = plan_of(
        data, "rollout.engine=trtllm", "rollout.trtllm.tensor_parallel_size=4", nodes=4, ranks=2, name="h200-141g"
    )
    assert any("an engine cannot span nodes" in problem for problem in plan.problems)


def test_tensor_parallelism_across_nodes_runs_with_a_warning(data):
    plan = plan_of(data, "actor.tensor_model_parallel_size=4", nodes=4, ranks=2)
    assert plan.problems == []
    assert any("tensor-parallel groups span nodes" in warning for warning in plan.warnings)
    assert not any("span nodes" in warning for warning in plan_of(data).warnings)


def test_further_rounds_of_sampling_are_told_beside_the_figures_of_the_first(data):
    warnings = plan_of(data, "rollout.keep_groups=mixed", "rollout.max_rounds=4").warnings
    assert any("first round" in warning and "in up to 4 rounds" in warning for warning in warnings)


def test_the_machine_that_plans_needs_no_gpu_and_no_transformer_engine(data):
    assert plan_of(data, "model.transformer_engine=true").problems == []
    cpu = plan_of(data, "model.transformer_engine=true", name="cpu", ranks=4)
    assert any("model.transformer_engine=true needs a GPU" in problem for problem in cpu.problems)


@pytest.mark.parametrize("nodes", [1, 4])
def test_the_7b_recipe_runs_on_nodes_of_eight_80_gb_gpus(nodes, data):
    plan = plan_of(data, nodes=nodes, suggest=True)
    assert plan.problems == []
    assert not any("rollout" in warning for warning in plan.warnings)
    costs = [(change.layout.tensor, change.layout.pipeline) for change in plan.suggestions]
    assert (2, 1) in costs and (4, 1) in costs  # the layout the recipe comes with, and one of twice the tensor ranks
    refused = {(no.tensor, no.pipeline): no.reason for no in plan.refusals}
    assert refused[(8, 1)] == "TP 8 does not divide 28 attention heads"
    assert refused[(1, 8)] == "PP 8 does not divide 28 layers"
    if nodes == 1:
        assert "lacks" in refused[(1, 1)]
        assert any((no.tensor, no.pipeline) == (2, 1) for no in plan_of(data, STAYS, suggest=True).refusals)
    assert set(costs).isdisjoint(refused)


def test_the_7b_recipe_does_not_fit_one_gpu_of_141_gb_and_the_plan_says_why(data):
    plan = plan_of(
        data,
        "actor.tensor_model_parallel_size=1",
        "actor.sequence_parallel=false",
        STAYS,
        ranks=1,
        name="h200-141g",
        suggest=True,
    )
    assert plan.suggestions == []
    (only,) = plan.refusals
    assert "lacks" in only.reason and "actor optimizer, 85.1 GiB" in only.reason  # 7.6e9 x 12 bytes
    parts = next(phase for phase in plan.memory.phases if phase.name == "rollout").parts
    # 18 bytes a parameter: weights 2, gradients 4, masters 4, moments 8. The critic's output layer is a value head.
    count, without_output = 7_615_616_512, 7_615_616_512 - 152_064 * 3584 + 3584
    assert sum(size for name, size in parts.items() if name.startswith("actor")) == 18 * count
    assert sum(size for name, size in parts.items() if name.startswith("critic")) == 18 * without_output
    assert parts["engine weights"] == 2 * count
    assert "helps most, and still" in plan.first_change


def test_a_small_model_gets_layouts_on_one_gpu_of_141_gb(data):
    plan = plan_of(
        data,
        "actor.tensor_model_parallel_size=1",
        "actor.sequence_parallel=false",
        ranks=1,
        name="h200-141g",
        shape="Qwen2.5-Math-1.5B",
        suggest=True,
    )
    assert plan.problems == [] and plan.suggestions


def test_a_suggested_layout_runs_when_it_is_asked_for(data):
    asked = ["rollout.engine=trtllm", "actor.tensor_model_parallel_size=8"]
    suggested = plan_of(data, *asked, suggest=True).suggestions
    assert suggested
    for change in suggested:
        assert plan_of(data, *asked, *change.text.split()).problems == []


def test_the_first_change_makes_the_run_fit(data):
    plan = plan_of(data, "rollout.engine=trtllm", STAYS)
    change, is_enough = plan.first_change.split(" ")[0], plan.first_change.endswith("makes it fit.")
    assert plan.problems and is_enough
    assert plan_of(data, "rollout.engine=trtllm", STAYS, change).problems == []


def test_offloaded_state_is_on_the_gpu_in_the_updates_of_its_role_alone(data):
    stays, waits = (plan_of(data, *more, "rollout.engine=trtllm").memory for more in ([STAYS], []))
    parts = {phase.name: phase.parts for phase in waits.phases}
    of_stays = {phase.name: phase.parts for phase in stays.phases}
    for role, other in (("actor", "critic"), ("critic", "actor")):
        mine = {f"{role} gradients", f"{role} optimizer"}
        assert mine <= parts[f"{role} update"].keys()
        assert mine.isdisjoint(parts[f"{other} update"])
        for phase in ("start", "rollout", "log-probabilities", "refit"):
            assert mine.isdisjoint(parts[phase]) and mine <= of_stays[phase].keys()
    # Of both roles over the node: 12 bytes a parameter, each held by one of the eight ranks but for the norms.
    assert waits.host["offloaded optimizers"] == pytest.approx(12 * (7_615_616_512 + 7_070_626_304), rel=1e-3)
    assert "offloaded optimizers" not in stays.host
    assert waits.cache.sequences > 1.7 * stays.cache.sequences


def test_the_numbers_of_a_step_are_those_worked_by_hand(data):
    found = json.loads(json.dumps(plan_as_dict(plan_of(data, STAYS))))
    numbers = found["numbers"]
    assert numbers["data_parallel_size"] == 4  # 8 / TP 2
    assert numbers["samples_per_step"] == 8192  # 1024 prompts x 8
    assert numbers["samples_per_rank"] == 2048
    assert numbers["actor_updates_per_step"] == 64  # 8192 / 128
    assert numbers["actor_micro_batches_per_update"] == 8  # 128 / 4 samples, 4 of 4,024 tokens in 16,384
    assert numbers["max_tokens_per_step"] == 8192 * 4024
    assert numbers["kv_bytes_per_token"] == 2 * 28 * 4 * 128 * 2  # keys and values x layers x groups x head size x bf16
    assert numbers["engines"] == 8
    assert plan_of(data).time.decoding.steps == 5 * 3000  # 40 batches of 26 prompts on 8 engines
    phases = found["memory"]["phases"]
    assert list(phases) == ["start", "rollout", "log-probabilities", "critic update", "actor update", "refit"]
    # TP 2 holds (7,615,616,512 - norms) / 2 + norms; norms: 28 x 2 x 3584 + 3584 = 204,288.
    count = (7_615_616_512 - 204_288) // 2 + 204_288
    parts = phases["actor update"]["parts"]
    assert parts["actor weights"] == 2 * count
    assert parts["actor gradients"] == 4 * count
    assert parts["actor optimizer"] == 12 * (count // 4)  # masters and moments over DP 4
    assert phases["start"]["parts"]["actor optimizer"] == 4 * (count // 4)  # no moments before the first update
    assert found["memory"]["host_per_node"]["reference weights"] == 8 * 2 * count
    assert all(phase["peak"] == sum(phase["parts"].values()) for phase in phases.values())


WEIGHTS, NORMS = 2 * (7_615_616_512 + 7_070_626_304), 2 * 2 * 204_288  # bytes of both roles; norms: on each TP rank


@pytest.mark.parametrize(
    ("changes", "copied"),
    [
        ([], WEIGHTS + NORMS),  # by the first data rank; the optimizers wait in host memory and are written from there
        ([STAYS], 7 * (WEIGHTS + NORMS)),  # masters and moments too, 12 bytes a parameter, each once
        ([STAYS, "actor.use_distributed_optimizer=false"], 7 * (WEIGHTS + NORMS)),
        (["trainer.async_save=false"], None),
    ],
    ids=["offloaded", "on the GPU", "on every replica", "waited for"],
)
def test_what_a_save_behind_the_training_copies_is_counted(data, changes, copied):
    found = plan_of(data, *changes).memory.host.get("saves' copies")
    assert found == (None if copied is None else pytest.approx(copied, rel=1e-4))


def test_the_first_data_rank_of_each_stage_copies_the_weights_on_the_node_it_is_on(data):
    four_nodes = plan_of(data, nodes=4)
    assert four_nodes.memory.host["saves' copies"] == pytest.approx(WEIGHTS, rel=1e-4)  # on the first node, all of it
    stages = plan_of(data, "actor.pipeline_model_parallel_size=4", nodes=4)
    assert stages.memory.host["saves' copies"] < 0.4 * WEIGHTS  # the stages' first ranks are on four nodes


def test_a_smaller_critic_needs_less_and_is_held_to_the_same_layout(data, tmp_path):
    preset = KNOWN_MODELS["Qwen2.5-Math-7B"]
    hf = {
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 1536,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "intermediate_size": 8960,
        "vocab_size": preset.vocab_size,
        "max_position_embeddings": preset.max_position_embeddings,
    }
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic/config.json").write_text(json.dumps(hf))
    critic = f"critic.path={tmp_path / 'critic'}"
    own, apart = plan_of(data), plan_of(data, critic, "actor.tensor_model_parallel_size=2")
    assert apart.problems == []
    of_update = {
        phase.name: phase.parts["critic weights"] for phase in apart.memory.phases if "critic weights" in phase.parts
    }
    assert max(of_update.values()) < min(
        phase.parts["critic weights"] for phase in own.memory.phases if "critic weights" in phase.parts
    )
    (problem,) = plan_of(data, critic, "actor.tensor_model_parallel_size=4").problems
    assert "does not divide the critic's 2 query groups" in problem


def test_a_critic_in_a_layout_of_its_own_is_planned_in_it(data):
    shared, own = (plan_of(data, STAYS, *more) for more in ([], ["critic.tensor_model_parallel_size=4"]))
    parts, of_shared = (
        next(phase.parts for phase in plan.memory.phases if phase.name == "critic update") for plan in (own, shared)
    )
    assert parts["critic weights"] == pytest.approx(2 * 7_070_626_304 / 4, rel=1e-3)
    assert parts["critic optimizer"] == pytest.approx(12 * 7_070_626_304 / 4 / 2, rel=1e-3)  # TP 4 leaves DP 2
    assert parts["actor weights"] == of_shared["actor weights"]
    assert parts["critic's batch"] > 0 and "critic's batch" not in of_shared
    assert "TP 2 x PP 1 x DP 4, critic TP 4 x PP 1 x DP 2, " in plan_as_text(own)
    stages = plan_of(data, "actor.pipeline_model_parallel_size=4", "critic.pipeline_model_parallel_size=2").layout
    held = stages.stages_on(stages.places.actor)
    assert [(stage["actor"], stage["critic"]) for stage in held] == [(0, 0), (1, 0), (2, 1), (3, 1)]


def test_a_prompts_samples_are_decoded_together_however_small_the_batch(data):
    small, whole = (plan_as_dict(plan_of(data, f"rollout.max_batch_size={size}"))["memory"] for size in ("4", "8"))
    assert small == whole


def test_without_a_critic_neither_its_memory_nor_its_time_is_planned_nor_its_settings_named(data):
    group = ["algo.advantage=group", "critic.global_batch_size=96", "critic.micro_batch_tokens=1"]
    with_critic, without = plan_of(data, STAYS), plan_of(data, STAYS, *group, suggest=True)
    assert without.suggestions and "critic" not in plan_as_text(without) + json.dumps(plan_as_dict(without))
    before, after = ({phase.name: phase for phase in plan.memory.phases} for plan in (with_critic, without))
    assert [name for name in before if name not in after] == ["critic update"]
    # Of 7.07 B parameters at TP 2: weights in bf16, gradients in float32, and a quarter of 12 bytes of Adam's state.
    of_critic = (2 + 4 + 12 / 4) * 7_070_626_304 / 2
    for name in ("log-probabilities", "actor update", "refit"):
        freed = before[name].parts.keys() - after[name].parts.keys()
        assert freed == {f"critic {kind}" for kind in ("weights", "gradients", "optimizer")}
        assert before[name].peak - after[name].peak >= 0.99 * of_critic
    columns = before["actor update"].parts["rollout batch"] - after["actor update"].parts["rollout batch"]
    assert columns == 2048 * 4024 * 2 * 4  # values and returns of a replica's samples, float32
    assert without.memory.host["saves' copies"] < 0.55 * with_critic.memory.host["saves' copies"]
    before, after = step_time(with_critic.layout), step_time(without.layout)
    phases = before.phases
    spared = phases["critic update"].middle + phases["log-probabilities"].middle / 3  # one of three equal passes
    assert before.total.middle - after.total.middle == pytest.approx(spared, rel=0.1)
