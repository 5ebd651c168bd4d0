"""Steps of a small model on pretended GPUs: six layouts, and faults that only a GPU would show."""

from pathlib import Path

import pytest

from nemo_simplerl.dry import shim
from nemo_simplerl.dry.execute import cases_of, in_child
from nemo_simplerl.dry.findings import TOLERANCE, Execution, execution_of
from nemo_simplerl.dry.shim import Unavailable
from support import dry_faults
from support.dry_layouts import LAYOUTS, SMALL, planned

COMPARED = ("as the recipe", "two stages")


def is_possible() -> bool:
    try:
        shim.require_tested()
        shim.built()
    except Unavailable:
        return False
    return True


pytestmark = [pytest.mark.slow, pytest.mark.skipif(not is_possible(), reason="torch, or no C++ compiler")]


@pytest.fixture(scope="module")
def found() -> dict[str, Execution]:
    """All layouts, executed in one child: ranks are compared in two of them, of the others there is rank 0 alone."""
    runs = {name: planned(changes, shape) for name, (changes, shape) in LAYOUTS.items()}
    cases = [
        case
        for name, (overrides, layout) in runs.items()
        for case in cases_of(overrides, layout, True, name)
        if case["rank"] == 0 or name in COMPARED
    ]
    results = in_child(cases)
    return {
        name: execution_of(layout, [one for one in results if one["layout"] == name], 0.0)
        for name, (_, layout) in runs.items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_runs_to_its_end_and_takes_the_memory_that_the_plan_says(name, found):
    execution = found[name]
    assert execution.problems == []
    refits = set() if name == "two stages" else {"start", "refit"}
    assert {row.phase for row in execution.rows} == {"log-probabilities", "critic update", "actor update"} | refits
    assert all(abs(row.difference) <= TOLERANCE for row in execution.rows if row.phase != "start")


def test_the_matrix_products_of_a_pass_are_those_of_its_tokens_and_parameters(found):
    execution = found["as the recipe"]
    tokens = execution.sample.tokens // 2  # of one of two replicas
    layers = 4 * (1024 * 2048 + 1024 * 1024 + 3 * 1024 * 4096)
    counts = execution.counts
    assert counts["values"]["flops"] == pytest.approx(2 * layers * tokens / 4, rel=0.02)
    assert counts["critic_update"]["flops"] == pytest.approx(4 * counts["values"]["flops"], rel=0.01)


def test_traffic_names_its_phase_group_and_caller(found):
    traffic = found["as the recipe"].traffic
    gathers = [one for one in traffic if one["phase"] == "values" and one["group_size"] == 4]
    assert any("Transformer Engine" in one["caller"] for one in gathers)
    assert any(one["phase"] == "refit" and one["caller"].split(":")[0].endswith("export.py") for one in traffic)


@pytest.fixture(scope="module")
def with_faults() -> dict[str, list[str]]:
    """The problems that a dry run tells of, by the fault that was planted."""
    overrides, layout = planned((), SMALL)
    cases = [case for case in cases_of(overrides, layout, True, "faults") if case["rank"] == 0]
    ranks = {"one rank reduces once more": (0, 1)}
    named = [
        {**case, "fault": fault, "rank": rank}
        for fault in dry_faults.FAULTS
        for case, rank in zip(cases * 2, ranks.get(fault, (0,)), strict=False)
    ]
    results = in_child(named, (str(Path(dry_faults.__file__)),))
    return {
        fault: execution_of(layout, [one for one in results if one["fault"] == fault], 0.0).problems
        for fault in dry_faults.FAULTS
    }


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("bounds of int64", "must both be in dtype torch.int32"),
        ("longest a tensor", "max_seqlen_q and max_seqlen_kv are numbers, not"),
        ("bounds on the host", "they belong on the GPU"),
        ("last sequence missing", "cu_seqlens_q tells of"),
        ("optimizer state on the host", "cuda"),
        ("targets of the head on the host", "device"),
        ("flag on the host", "int64 tensor in host memory"),
        ("gradients stay", "memory: actor update allocates"),
        ("one rank reduces once more", "ranks do not make the same calls"),
    ],
)
def test_a_planted_fault_is_found(fault, told, with_faults):
    assert any(told in problem for problem in with_faults[fault]), with_faults[fault]
