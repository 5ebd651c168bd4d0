"""Rules of `placement`: a contradiction is told with all other problems, and each role's sizes fit its ranks."""

import pytest

from nemo_simplerl.config.load import compose, examine
from nemo_simplerl.config.placement import PlacementConfig, places_of
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.rules.layout import placement_notes
from nemo_simplerl.config.rules.machine import Machine
from nemo_simplerl.config.shape import read_shape

# Padded rows, whose sizes have rules of their own. quickstart: 4 heads, updates of 64 samples.
BASE = ["experiment=quickstart", "model.path=no/such/folder", "sft.output=null"]
BASE += [f"{role}.{key}" for role in ("actor", "critic") for key in ("micro_batch_tokens=null", "micro_batch_size=8")]
TP2 = "actor.tensor_model_parallel_size=2"
PROMPTS = ["data.rollout_batch_size=48"]
VLLM_TP2 = ["rollout.engine=vllm", "rollout.vllm.tensor_parallel_size=2"]


def problems_of(*overrides: str, world_size: int | None = 6, ranks_per_node: int | None = None) -> list[str]:
    config = compose([*BASE, *overrides])
    return check(config, read_shape(config.model), world_size, ranks_per_node=ranks_per_node)


@pytest.mark.parametrize(
    "overrides",
    [
        ["placement.actor=0-1", "placement.critic=2-3", "placement.engine=4-5", TP2],
        ["placement.engine=4-5"],
        ["placement.critic=4-5", "critic.tensor_model_parallel_size=2"],
        ["placement.engine=5", "placement.actor=0-3", "placement.critic=4"],
        ["placement.critic=null"],
        ["placement.actor=0-3", "placement.engine=4-5", "placement.critic=0-3", *VLLM_TP2],
    ],
)
def test_what_people_run_passes(overrides):
    assert problems_of(*overrides, world_size=None if overrides == ["placement.critic=null"] else 6) == []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["placement.critic=5-8", "trainer.stop_after_step=0"],
            ["stop_after_step=0 is out of range", "goes beyond the ranks"],
        ),
        (["placement.actor=x", "placement.critic=3-1"], ["actor=x names no ranks", "critic=3-1 names no ranks"]),
        (
            ["placement.actor=0-2", "placement.critic=3-3", "placement.engine=4-5", TP2],
            [
                "= 2 ranks a replica, but the actor has 3 of the run's 6 (placement: 0-2). Give placement.actor 2",
                "= 2 ranks a replica, but the critic has 1 of the run's 6 (placement: 3). Give placement.critic 2",
            ],
        ),
        (
            ["placement.engine=3-5", "critic.micro_batch_size=8", "critic.global_batch_size=32"],
            [
                "actor.global_batch_size=64 is not a multiple of actor.micro_batch_size=8 * 3 data-parallel",
                "critic.global_batch_size=32 is not a multiple of critic.micro_batch_size=8 * 3 data-parallel",
            ],
        ),
        (
            [
                "placement.engine=3-5",
                "actor.global_batch_size=192",
                "critic.global_batch_size=192",
                *VLLM_TP2,
                *PROMPTS,
            ],
            ["does not divide 3 ranks (placement.engine: 3-5) into engines. Sizes that work: 1 or 3."],
        ),
        (
            [
                "placement.critic=4-5",
                "algo.advantage=group",
                "actor.micro_batch_size=1",
                *PROMPTS,
                "actor.global_batch_size=192",
            ],
            ["Set placement.critic=null, or algo.advantage=gae"],
        ),
    ],
)
def test_each_contradiction_is_a_finding_of_its_own_beside_all_others(overrides, told):
    problems = problems_of(*overrides)
    for fragment in told:
        assert sum(fragment in problem for problem in problems) == 1, problems
    assert len(problems) == len(told), problems


def test_what_cannot_be_read_is_told_once_and_no_rule_of_ranks_reads_it():
    machine = Machine(has_gpu=False, has_transformer_engine=False)
    found = examine([*BASE, "algo.advantage=gea", "placement.critic=9", "model.path=new"], 6, machine)
    [told] = [problem for problem in found.problems if "data" not in problem]
    assert "algo.advantage" in told, "whether there is a critic is not known"


def test_an_engine_spans_no_two_nodes_wherever_its_ranks_begin():
    engine = ["placement.engine=3-6", "placement.actor=0-2", "placement.critic=0-2", *VLLM_TP2]
    sizes = ["actor.global_batch_size=96", "critic.global_batch_size=96", *PROMPTS]
    assert problems_of(*engine, *sizes, world_size=7) == []
    [problem] = problems_of(*engine, *sizes, world_size=7, ranks_per_node=4)
    assert "an engine on the ranks 3-4, of the nodes 0 to 1" in problem
    assert "or place the engines from the first rank of a node on." in problem
    [problem] = problems_of(*VLLM_TP2, world_size=4, ranks_per_node=1)
    assert "Choose a size that divides the 1 ranks of a node." in problem


def test_sleep_of_an_engine_on_ranks_of_its_own_is_said_to_have_no_effect():
    config = compose([*BASE, "rollout.engine=vllm"])
    apart, shared = (
        places_of(PlacementConfig(actor=None, critic=None, engine=engine), 6, has_critic=True)
        for engine in ("4-5", None)
    )
    [note] = placement_notes(config, apart)
    assert (
        "rollout.vllm.sleep=true has no effect where engines have ranks of their own (4-5)" in note
        and "gpu_memory_utilization=" in note
    )
    assert placement_notes(config, shared) == []
    assert placement_notes(compose([*BASE, "rollout.vllm.sleep=false", "rollout.engine=vllm"]), apart) == []
    assert placement_notes(compose(BASE), apart) == [], "hf does not sleep"


def test_a_warm_start_that_evaluates_needs_whole_engines_on_the_actors_ranks_too():
    places = ["placement.actor=0-2", "placement.critic=0-2", "placement.engine=3-6", *VLLM_TP2]
    sizes = ["actor.global_batch_size=96", "critic.global_batch_size=96", "sft.global_batch_size=96", *PROMPTS]
    warm = [*sizes, "sft.output=sft", "data.sft_path=sft.jsonl", "data.eval_path=eval.jsonl", "sft.eval_every=5"]
    [problem] = problems_of(*places, *warm, world_size=7)
    assert "does not divide 3 ranks (placement.actor: 0-2) into engines. Sizes that work: 1 or 3." in problem
    assert problem.endswith("or set sft.eval_every=0.")
    assert problems_of(*places, *warm, "sft.eval_every=0", world_size=7) == []
