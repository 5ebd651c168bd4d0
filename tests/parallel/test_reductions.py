"""Metrics and objects across ranks."""

import math

import torch
import torch.distributed as dist

from nemo_simplerl.parallel.reductions import all_reduce_metrics, any_rank, gather_objects, of_first_rank
from support.ranks import run_ranks


def test_alone_metrics_become_floats_in_the_order_given():
    metrics = {"ratio_max": torch.tensor(0.5), "loss": 2.0, "count": torch.tensor(3)}
    reduced = all_reduce_metrics(metrics, None)
    assert reduced == {"ratio_max": 0.5, "loss": 2.0, "count": 3.0}
    assert list(reduced) == list(metrics)
    assert all(type(value) is float for value in reduced.values())
    assert all_reduce_metrics({}, None) == {}


def test_alone_an_object_is_gathered_as_it_is():
    completion = object()
    assert gather_objects(completion, None)[0] is completion
    assert of_first_rank(completion, "checkpoint") is completion


def _reduce_and_gather() -> tuple:
    dist.init_process_group("gloo")
    rank, group = dist.get_rank(), dist.group.WORLD
    metrics = {
        "loss": torch.tensor(0.25 + rank),
        "ratio_max": torch.tensor(-1.0 - rank),
        "tokens": 2**24 + rank,
    }
    if rank == 1:
        metrics = dict(reversed(metrics.items()))
    only_sums = all_reduce_metrics({"tokens": 1}, group)
    return (
        all_reduce_metrics(metrics, group),
        only_sums,
        gather_objects({"rank": rank, "rows": [rank] * rank}, group),
        of_first_rank(f"rank {rank}", "checkpoint"),
    )


def test_two_ranks_sum_metrics_and_take_the_maximum_of_those_named_so():
    for rank, (metrics, only_sums, objects, first) in enumerate(run_ranks(_reduce_and_gather, 2)):
        # 2^25 + 1 needs more digits than float32 has.
        assert metrics == {"loss": 1.5, "ratio_max": -1.0, "tokens": 2.0**25 + 1}
        assert list(metrics) == (["loss", "ratio_max", "tokens"], ["tokens", "ratio_max", "loss"])[rank]
        assert only_sums == {"tokens": 2.0}
        assert objects == [{"rank": 0, "rows": []}, {"rank": 1, "rows": [1]}]
        assert first == "rank 0"


def _numbers_that_are_none() -> tuple:
    dist.init_process_group("gloo")
    rank, group = dist.get_rank(), dist.group.WORLD
    bad = {"loss": 1.0, "ratio_max": math.nan} if rank == 0 else {"loss": math.nan, "ratio_max": 1.0}
    flags = [any_rank(is_true, torch.device("cpu"), group) for is_true in (rank == 1, False)]
    return all_reduce_metrics(bad, group), flags


def test_what_is_not_a_number_on_one_rank_is_not_finite_on_all():
    for metrics, flags in run_ranks(_numbers_that_are_none, 2):
        assert math.isnan(metrics["loss"]) and metrics["ratio_max"] == math.inf
        assert flags == [True, False]
