"""What is made of a dry run's counts, without one."""

import pytest

from nemo_simplerl.dry import shim
from nemo_simplerl.dry.collectives import RECEIVE, SEND, Collective, differences, on_the_host, traffic
from nemo_simplerl.dry.execute import execute, in_child
from nemo_simplerl.dry.findings import Row, extrapolated
from nemo_simplerl.dry.sample import ranks_of, sample_of
from nemo_simplerl.dry.shim import Unavailable
from support.dry_layouts import LAYOUTS, SMALL, planned


def call(operation="allreduce", ranks=(0, 1), elements=4, *, device="cuda", phase="refit", caller="a.py:1"):
    return Collective(phase, operation, ranks, "bfloat16", elements, 2 * elements, device, caller)


def test_ranks_that_call_the_same_in_one_order_agree_whoever_calls():
    assert differences({0: [call(caller="a.py:1")], 1: [call(caller="b.py:2")]}) == []


@pytest.mark.parametrize(
    ("theirs", "told"),
    [
        ([call("broadcast")], "call 1 is allreduce of 4 bfloat16"),
        ([call(elements=8)], "on rank 1"),
        ([call(device="cpu")], "on cpu"),
        ([], "rank 0 makes 1 calls, rank 1 0"),
    ],
)
def test_a_call_that_another_rank_does_not_match_is_told_with_both_callers(theirs, told):
    (problem,) = differences({0: [call()], 1: theirs})
    assert problem.startswith("group 0, 1: ") and told in problem


def test_a_send_matches_the_receive_of_its_size_alone():
    pair = (0, 4)
    assert differences({0: [call(SEND, pair)], 4: [call(RECEIVE, pair)]}) == []
    assert differences({0: [call(SEND, pair)], 4: [call(RECEIVE, pair, 8)]})


def test_groups_are_compared_one_by_one():
    tensor, data = call(ranks=(0, 1)), call(ranks=(0, 2))
    assert differences({0: [tensor, data], 1: [tensor], 2: [data]}) == []


def test_a_tensor_in_host_memory_is_told_and_objects_are_not():
    objects = Collective("refit", "all_gather_object", (0, 1), "object", 0, 0, "cpu", "a.py:1")
    assert on_the_host([call(), objects]) == []
    assert on_the_host([call(device="cpu")] * 2) == [
        "refit: allreduce of a bfloat16 tensor in host memory, by a.py:1, 2 times"
    ]


def test_traffic_adds_up_calls_of_one_kind_most_bytes_first():
    calls = [call(), call(caller="b.py:2", elements=400), call()]
    assert [(one.caller, one.calls, one.bytes) for one in traffic(calls)] == [("b.py:2", 1, 800), ("a.py:1", 2, 16)]


def test_a_depth_between_and_beyond_two_lies_on_their_line():
    assert extrapolated({2: 10, 4: 16}, 28) == 88
    assert extrapolated({4: 16}, 28) == 16


@pytest.mark.parametrize(("executed", "is_right"), [(100, True), (102, True), (103, False), (98, True), (97, False)])
def test_memory_is_right_within_two_per_cent_either_way(executed, is_right):
    assert Row("refit", 100, executed).is_right is is_right


def test_the_start_may_take_less_than_the_plan_says():
    assert Row("start", 100, 50).is_right and not Row("start", 100, 103).is_right


def test_the_samples_fill_the_micro_batches_of_every_update_of_every_rank():
    for changes, shape in LAYOUTS.values():
        _, layout = planned(changes, shape)
        sample, small = sample_of(layout)
        updates = 2
        assert len(sample.response_tokens) == small.samples == updates * small.actor.update
        a_rank = small.actor.update // layout.data
        num_short = sum(tokens < layout.response_tokens for tokens in sample.response_tokens)
        # Whatever the draw, even if all short ones meet in one update.
        assert a_rank - -(-num_short // layout.data) >= layout.pipeline * layout.actor.micro


def test_every_group_has_two_of_the_ranks_and_the_last_stage_comes_first():
    _, layout = planned((), SMALL)
    assert ranks_of(layout) == [0, 1, 6]
    _, staged = planned(*LAYOUTS["two stages"])
    assert ranks_of(staged) == [4, 5, 6, 0]


@pytest.mark.parametrize(
    ("package", "version", "told"),
    [
        ("torch", "2.99.0+cpu", "torch is 2.99.0+cpu; the dry run was tested with 2.13"),
        ("torch", "2.13.0", "a build with CUDA"),
        ("megatron-core", "0.99.0", "megatron-core is 0.99.0"),
    ],
)
def test_an_environment_that_was_not_tested_is_refused_in_words(package, version, told, monkeypatch):
    versions = {"torch": "2.13.0+cpu", "megatron-core": "0.16.1", package: version}
    monkeypatch.setattr(shim.metadata, "version", versions.__getitem__)
    with pytest.raises(Unavailable, match=told.replace("+", r"\+")):
        execute([], None)


def test_the_childs_progress_is_told_as_it_comes_and_its_other_words_are_not(tmp_path, monkeypatch):
    program = """
import pathlib, sys
print("a warning of some library")
for count in (1, 2):
    print(f"executed {count} of 2: rank {count}", flush=True)
pathlib.Path(sys.argv[2]).write_text("[1, 2]")
sys.exit("torn")
"""
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(shim, "built", lambda: tmp_path)
    told: list[str] = []
    assert in_child([{}, {}], (str(tmp_path / "child.py"),), told.append) == [1, 2]
    assert told == ["executed 1 of 2: rank 1", "executed 2 of 2: rank 2"]
    with pytest.raises(Unavailable, match="ended with status 1: torn"):
        in_child([{}, {}, {}], (str(tmp_path / "child.py"),))


def test_without_a_compiler_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(Unavailable, match="no C\\+\\+ compiler"):
        shim.built()
