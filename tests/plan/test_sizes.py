"""The experiments by size fit the GPUs that they are named for, with every algorithm kind, and the README says so."""

import sys
from pathlib import Path

import pytest

from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.layout import Cluster
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import plan_as_text

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts/bench"))

import sizes  # noqa: E402

OTHERS = {"24 GB": ("l4-24g", "rtx4090-24g"), "80 GB": ("a100-80g",)}  # of the same size, but for that of the table


def test_the_readmes_table_is_what_plan_computes():
    text = sizes.README.read_text()
    assert sizes.filled(text) == text, "python scripts/bench/sizes.py writes it anew"
    assert all(f"| `{experiment}` |" in text for experiment in sizes.HARDWARE)


@pytest.mark.parametrize("experiment", sizes.HARDWARE)
def test_an_experiment_fits_what_it_is_for_with_memory_to_spare_and_names_no_faster_batch(experiment):
    plan = sizes.plan_of(experiment)
    assert plan.problems == [] and plan.warnings == []
    assert plan.memory.headroom >= 0.05 * plan.memory.capacity
    words, nodes, ranks, _ = sizes.HARDWARE[experiment]
    for name in next(others for size, others in OTHERS.items() if words.endswith(size)):
        cluster = Cluster(nodes=nodes, gpus_per_node=ranks, gpu=gpu(name, ranks))
        assert make_plan([f"experiment={experiment}"], cluster).problems == [], name


@pytest.mark.parametrize("experiment", sizes.HARDWARE)
def test_by_a_recipe_without_a_critic_none_is_planned(experiment):
    plan, with_critic = sizes.plan_of(experiment, "algo=grpo"), sizes.plan_of(experiment)
    assert plan.problems == [] and "critic" not in plan_as_text(plan)
    assert plan.memory.worst.peak < with_critic.memory.worst.peak
    assert plan.time.total.middle < with_critic.time.total.middle
