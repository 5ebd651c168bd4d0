"""What works at the same time where roles live on ranks of their own, by the trace of a run whose phases last."""

import json
import os
from pathlib import Path

import pytest

from support.ranks import run_ranks
from support.small_run import SMALL, few_problems, train_here

# Each phase lasts, so that phases that can overlap do on any machine.
PHASES = {"rollout": 2, "old_logprobs": 0, "values": 1, "critic_update": 1, "actor_update": 0}
SLEEPS = ";".join(f"delay@{phase}#{n},seconds=0.6,rank={rank}" for phase, rank in PHASES.items() for n in (1, 2))
RUN = ["trainer.max_steps=2", "trainer.eval_every=0", "trainer.save_every=0"]


def traced_run(overrides: list[str]) -> None:
    os.environ |= {"SIMPLERL_TRACE": "1", "SIMPLERL_FAULTS": SLEEPS}
    train_here(overrides)


def intervals(run_dir: Path, name: str) -> list[tuple[int, int]]:
    """Begin and end, in microseconds, of each time that the rank of this phase was in it."""
    lines = map(json.loads, (run_dir / f"trace/rank_{PHASES[name]}.jsonl").read_text().splitlines())
    return [(line["ts"], line["ts"] + line["dur"]) for line in lines if line["name"] == name]


@pytest.mark.slow
def test_values_are_computed_beside_logprobs_and_the_critic_is_updated_beside_the_actor(tmp_path):
    run_dir = tmp_path / "run"
    placement = ["placement.actor=0", "placement.critic=1", "placement.engine=2"]
    run_ranks(traced_run, 3, [*SMALL, *RUN, *placement, *few_problems(tmp_path), f"trainer.run_dir={run_dir}"])
    for one, other in (("old_logprobs", "values"), ("actor_update", "critic_update")):
        pairs = list(zip(intervals(run_dir, one), intervals(run_dir, other), strict=True))
        assert len(pairs) == 2
        assert all(max(a[0], b[0]) < min(a[1], b[1]) for a, b in pairs), f"{one} and {other} did not overlap"
    rollouts, updates = intervals(run_dir, "rollout"), intervals(run_dir, "actor_update")
    assert all(end <= begin for (_, end), (begin, _) in zip(rollouts, updates, strict=True))
    assert updates[0][1] <= rollouts[1][1], "the second step samples from what the first has trained"
