"""Plans of roles on ranks of their own: who holds what, what waits for what, and what goes between them."""

import json
from dataclasses import replace

import pytest

from nemo_simplerl.dry.execute import executions
from nemo_simplerl.dry.shim import Unavailable
from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster
from nemo_simplerl.plan.memory import Room
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import Plan, plan_as_dict, plan_as_text
from nemo_simplerl.plan.seconds import NONE, Seconds
from nemo_simplerl.plan.step_time import step_time
from nemo_simplerl.plan.timeline import Task, length, longest_chain, spans

APART = ["placement.actor=0-3", "placement.critic=4-7", "placement.engine=8-15"]
ENGINE_APART = ["placement.engine=8-15"]
VLLM = ["rollout.engine=vllm", "rollout.vllm.sleep=false"]


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory):
    """The plan of the 7B recipe on two nodes of eight GPUs."""
    file = tmp_path_factory.mktemp("data") / "train.json"
    file.write_text("[]")
    made: dict[tuple[str, ...], Plan] = {}

    def plan(*overrides: str, **asked) -> Plan:
        if asked or overrides not in made:
            cluster = Cluster(nodes=2, gpus_per_node=8, gpu=gpu("h100-80g", 8))
            given = ["experiment=simplerl_zero_qwen2.5_math_7b", f"data.train_path={file}", *overrides]
            made[overrides] = make_plan(given, cluster, KNOWN_MODELS["Qwen2.5-Math-7B"], **asked)
        return made[overrides]

    return plan


def rooms_of(plan: Plan) -> dict[str, Room]:
    return {"+".join(room.roles): room for room in plan.memory.rooms}


def parts_of(room: Room) -> dict[str, set[str]]:
    """The first words of what each phase holds."""
    return {phase.name: {name.split()[0] for name in phase.parts} for phase in room.phases}


def test_each_rank_holds_the_models_of_its_roles_alone(plan_of):
    rooms = rooms_of(plan_of(*APART, *VLLM))
    assert list(rooms) == ["actor", "critic", "engine"]
    actor, critic, engine = (parts_of(room) for room in rooms.values())
    assert list(actor) == ["start", "log-probabilities", "actor update", "refit"]
    assert list(critic) == ["start", "values", "critic update"]
    assert list(engine) == ["start", "rollout", "refit"]
    assert not any({"critic", "critic's", "engine"} & names for names in actor.values())
    assert not any({"actor", "engine", "reference"} & names for names in critic.values())
    assert not any({"actor", "critic"} & names for names in engine.values())
    # 7.6e9 parameters at TP 2 and DP 2: 12 bytes of Adam's state over the replicas.
    state = next(phase for phase in rooms["actor"].phases if phase.name == "actor update").parts["actor optimizer"]
    assert state == pytest.approx(12 * 7_615_616_512 / 2 / 2, rel=1e-3)
    # No process of an engine's takes memory beside the trainer's.
    assert rooms["actor"].capacity - rooms["engine"].capacity == 3 * 2**30


def test_an_engine_alone_may_have_the_gpu_for_its_cache(plan_of):
    share = "rollout.vllm.gpu_memory_utilization=0.85"
    apart, shared = plan_of(*ENGINE_APART, *VLLM, share), plan_of(*VLLM, share)
    assert apart.problems == [] and any("memory: " in problem for problem in shared.problems)
    assert apart.memory.cache.sequences > 200
    hf = plan_of(*ENGINE_APART, "rollout.max_batch_size=320")
    trtllm = plan_of(*ENGINE_APART, "rollout.engine=trtllm")
    assert trtllm.layout.engine.sleeps is False and "sleeping engine's weights" not in trtllm.memory.host
    assert hf.problems == [] and hf.memory.cache.sequences == 320


def test_what_does_not_fit_is_told_with_the_ranks_that_lack_it(plan_of):
    ranks = ["placement.actor=0-7", "placement.critic=15", "placement.engine=8-14"]
    plan = plan_of(*ranks, "critic.tensor_model_parallel_size=1")
    assert plan.problems and all(" on ranks 15 needs " in problem for problem in plan.problems)
    assert plan.memory.tightest.roles == ("critic",)


def test_host_memory_is_that_of_the_node_whose_roles_need_most(plan_of):
    host, shared = plan_of(*APART, *VLLM).memory.host, plan_of(*VLLM).memory.host
    # Actor and critic on the first node, with all of their optimizers; graders and engines on the second.
    assert host["offloaded optimizers"] == pytest.approx(2 * shared["offloaded optimizers"], rel=1e-3)
    assert host["reference weights"] == shared["reference weights"] / 2
    assert "reward workers' limit" not in host


def test_without_overlap_nothing_waits_less_and_with_roles_apart_the_longest_chain_is_the_step(plan_of):
    shared, apart = plan_of("rollout.engine=vllm").time, plan_of(*APART, *VLLM).time
    assert shared.total.low == pytest.approx(sum(phase.low for phase in shared.phases.values()))
    assert list(apart.phases) == ["rollout", "log-probabilities", "values", "critic update", "actor update", "refit"]
    chain = longest_chain(apart.spans)
    assert chain == ["rollout", "log-probabilities", "actor update", "refit"]
    assert apart.total.high == pytest.approx(sum(apart.phases[name].high for name in chain), rel=0.01)
    values, critic_update = apart.spans["values"], apart.spans["critic update"]
    assert values.begin.low == pytest.approx(apart.spans["log-probabilities"].begin.low, rel=0.01)
    assert critic_update.waits_for == "log-probabilities" and critic_update.end.high < apart.spans["refit"].begin.high


def test_with_engines_apart_actor_and_critic_take_turns(plan_of):
    time = plan_of(*ENGINE_APART, *VLLM).time
    assert time.total.low == pytest.approx(sum(phase.low for phase in time.phases.values()), rel=0.01)
    assert longest_chain(time.spans) == list(time.phases)


def test_one_step_ahead_a_step_takes_the_longer_of_sampling_and_training(plan_of):
    layout = plan_of(*ENGINE_APART, "rollout.max_batch_size=64").layout
    now, ahead = step_time(layout), step_time(replace(layout, ahead=1))
    sampling, refit = now.phases["rollout"].middle, now.phases["refit"].middle
    training = sum(now.phases[name].middle for name in ("log-probabilities", "critic update", "actor update"))
    assert now.total.middle == pytest.approx(sampling + training + refit, rel=0.02)
    assert ahead.total.middle == pytest.approx(max(sampling, training) + refit, rel=0.02)
    faster = step_time(replace(layout, ahead=1, engine=replace(layout.engine, refills=True, batch=256)))
    assert faster.total.middle == pytest.approx(training + refit, rel=0.02)
    asked = plan_of(
        *ENGINE_APART,
        "rollout.max_batch_size=64",
        "rollout.ahead=1",
        "rollout.consistency.policy=correct",
        "algo.old_logprobs=trainer",
    )
    assert asked.problems == [] and asked.layout.ahead == 1
    assert asked.memory.host["weights of the step before"] == asked.memory.host["reference weights"]


def test_a_phase_begins_when_its_ranks_are_free_and_what_it_needs_has_arrived():
    a, b = range(2), range(2, 4)

    def task(name: str, ranks: tuple[range, ...], time: float, **after: float) -> Task:
        return Task(name, (), ranks, Seconds(time, 2 * time), {key: Seconds(way, way) for key, way in after.items()})

    found = spans([task("x", (a,), 3), task("y", (b,), 1), task("z", (b,), 1, x=0.5), task("end", (a, b), 1, z=0)])
    assert [(name, span.begin.low, span.end.low) for name, span in found.items()] == [
        ("x", 0, 3),
        ("y", 0, 1),
        ("z", 3.5, 4.5),
        ("end", 4.5, 5.5),
    ]
    assert found["end"].end.high == 6 + 0.5 + 2 + 2
    assert longest_chain(found) == ["x", "z", "end"] and length(found) == found["end"].end and length({}) == NONE


def test_what_goes_between_roles_is_counted_by_the_token(plan_of):
    layout = plan_of(*APART, *VLLM).layout
    found = {(one.source, one.target, one.bytes_a_token): one.size for one in step_time(layout).traffic}
    tokens = 8192 * 3000 / 4
    assert found == {
        ("engine", "actor", 8): 8 * tokens * 2,  # to both tensor ranks of a replica
        ("engine", "critic", 8): 8 * tokens * 2,
        ("critic", "actor", 4): 4 * tokens * 2,
        ("actor", "critic", 4): 4 * tokens * 2,
        ("actor", "engine", None): 2 * 7_615_616_512 * 8,  # bf16 weights to each of eight ranks
    }
    assert sum(edge[2] or 0 for edge in found) == 24
    assert step_time(plan_of(*VLLM).layout).traffic == ()
    for together in ([], ["algo=grpo"]):  # actor and critic in one layout have one batch
        found = step_time(plan_of(*ENGINE_APART, *together).layout).traffic
        assert {(one.source, one.target) for one in found} == {("engine", "actor"), ("actor", "engine")}


def test_the_plan_says_which_nodes_hold_which_role_and_draws_the_time_line(plan_of):
    plan = plan_of(*APART, *VLLM)
    text, found = plan_as_text(plan), json.loads(json.dumps(plan_as_dict(plan)))
    assert "placement: actor on ranks 0-3 (node 0), critic on ranks 4-7 (node 0), engine on ranks 8-15 (node 1)" in text
    assert "the longest chain: rollout, log-probabilities, actor update, refit" in text
    assert "  8-15     engine: idle " in text and "critic TP 2 x PP 1 x DP 2" in text
    assert found["placement"]["engine"] == {"ranks": "8-15", "nodes": [1]}
    line = {one["phase"]: one for one in found["step_seconds"]["time_line"]}
    assert line["values"]["waits_for"] == "rollout" and line["refit"]["roles"] == ["actor", "engine"]
    assert [room["ranks"] for room in found["memory"]["rooms"]] == ["0-3", "4-7", "8-15"]
    shared = plan_as_text(plan_of("rollout.engine=vllm"))
    assert "placement:" not in shared and "time line" not in shared and "critic TP" not in shared
    over_nodes = plan_as_text(plan_of("placement.engine=4-15"))
    assert (
        "actor on ranks 0-3 (node 0), critic on ranks 0-3 (node 0), engine on ranks 4-15 (nodes 0 to 1)" in over_nodes
    )


def test_replicas_and_engines_over_two_nodes_are_warned_of_or_refused(plan_of):
    odd = [*VLLM, "placement.engine=7-14", "placement.actor=0-6", "placement.critic=15"]
    asked = [
        "actor.tensor_model_parallel_size=1",
        "actor.sequence_parallel=false",
        "rollout.vllm.tensor_parallel_size=2",
    ]
    plan = plan_of(*odd, *asked)
    assert any("an engine on the ranks 7-8, of the nodes 0 to 1" in problem for problem in plan.problems)
    ranks = ["placement.actor=0-1", "placement.critic=2-9", "placement.engine=10-15"]
    torn = plan_of(*ranks, "critic.tensor_model_parallel_size=4")
    [warning] = [warning for warning in torn.warnings if "span nodes" in warning]
    assert warning.startswith("critic.tensor_model_parallel_size=4") and "the critic's ranks 6-9 first" in warning


def test_suggestions_keep_the_placement(plan_of):
    plan = plan_of(*ENGINE_APART, *VLLM, suggest=True)
    assert plan.suggestions and all(change.layout.places == plan.layout.places for change in plan.suggestions)
    assert {change.layout.data * change.layout.tensor * change.layout.pipeline for change in plan.suggestions} == {8}
    assert "Suggestions keep the placement" in plan_as_text(plan)
    again = plan_of(*ENGINE_APART, *VLLM, *plan.suggestions[0].text.split())
    assert again.problems == [] and again.time.total == plan.suggestions[0].time.total


def test_a_contradiction_leaves_no_layout_and_is_told_with_the_rest(plan_of):
    plan = plan_of("placement.critic=12-17", "trainer.eval_every=5")
    assert plan.layout is None and len(plan.problems) == 2
    assert any("goes beyond the ranks" in problem for problem in plan.problems)


def test_a_dry_run_of_roles_apart_is_refused_in_a_line(plan_of):
    with pytest.raises(Unavailable, match="roles on ranks of their own"):
        executions([([], plan_of(*APART, *VLLM).layout)])
