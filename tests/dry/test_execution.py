"""Steps of a small model on pretended GPUs: seven layouts, and faults that only a GPU would show."""

from pathlib import Path
from typing import Any

import pytest

from nemo_simplerl.dry import shim
from nemo_simplerl.dry.execute import cases_of, in_child
from nemo_simplerl.dry.findings import TOLERANCE, Execution, execution_of
from nemo_simplerl.dry.shim import Unavailable
from support import dry_faults
from support.dry_layouts import LAYOUTS, planned

COMPARED = "two stages"  # the layout of which several ranks are executed; of the others there is rank 0 alone
PLANTED_IN = "as the recipe"
ON_RANK_1 = "one rank reduces once more"


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    """All layouts, and the faults in one of them, executed in one child."""
    try:
        shim.require_tested()
        shim.built()
    except Unavailable as reason:
        pytest.skip(str(reason))
    cases = [
        {**case, "fault": fault, "rank": 1 if fault == ON_RANK_1 else case["rank"]}
        for name in LAYOUTS
        for fault in (None, *(dry_faults.FAULTS if name == PLANTED_IN else ()))
        for case in cases_of(*planned(*LAYOUTS[name]), True, name)
        if case["rank"] == 0 or name == COMPARED
    ]
    return in_child(cases, (str(Path(dry_faults.__file__)),))


def execution(results: list[dict[str, Any]], name: str, fault: str | None = None) -> Execution:
    """What the results of a layout with this fault tell."""
    faults = (None, fault) if fault == ON_RANK_1 else (fault,)
    _, layout = planned(*LAYOUTS[name])
    return execution_of(layout, [one for one in results if one["layout"] == name and one["fault"] in faults], 0.0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_runs_to_its_end_and_takes_the_memory_that_the_plan_says(name, results):
    found = execution(results, name)
    assert found.problems == []
    refits = set() if name == "two stages" else {"start", "refit"}
    updates = {"actor update"} if name == "without a critic" else {"actor update", "critic update"}
    assert {row.phase for row in found.rows} == {"log-probabilities"} | updates | refits
    assert all(abs(row.difference) <= TOLERANCE for row in found.rows if row.phase != "start")


def test_the_matrix_products_of_a_pass_are_those_of_its_tokens_and_parameters(results):
    found = execution(results, "as the recipe")
    tokens = found.sample.tokens / 4  # of a replica on average; which of the short samples it draws makes the 10 %
    layers = 2 * (1024 * 2048 + 1024 * 1024 + 3 * 1024 * 4096)
    counts = found.counts
    assert counts["values"]["flops"] == pytest.approx(2 * layers * tokens / 2, rel=0.1)
    assert counts["critic_update"]["flops"] == pytest.approx(4 * counts["values"]["flops"], rel=0.01)


def test_traffic_names_its_phase_group_and_caller(results):
    traffic = execution(results, "TP4, nothing recomputed").traffic
    gathers = [one for one in traffic if one["phase"] == "values" and one["group_size"] == 4]
    assert any("Transformer Engine" in one["caller"] for one in gathers)
    assert any(one["phase"] == "refit" and one["caller"].split(":")[0].endswith("export.py") for one in traffic)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("bounds of int64", "must be in dtype torch.int32"),
        ("longest a tensor", "max_seqlen_q and max_seqlen_kv are numbers, not"),
        ("bounds on the host", "a kernel for the GPU is given tensors on ['cpu', 'cuda']"),
        ("last sequence missing", "cu_seqlens_q tells of"),
        ("optimizer state on the host", "cuda"),
        ("targets of the head on the host", "device"),
        ("flag on the host", "int64 tensor in host memory"),
        ("gradients stay", "memory: actor update allocates"),
        ("one rank reduces once more", "ranks do not make the same calls"),
    ],
)
def test_a_planted_fault_is_found(fault, told, results):
    problems = execution(results, PLANTED_IN, fault).problems
    assert any(told in problem for problem in problems), problems
