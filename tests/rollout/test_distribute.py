from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.distributed_c10d import _get_default_store

from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.rollout.distribute import BrokenOff, deal, generate_sharded
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.work_batches import work_batches
from support.ranks import run_ranks
from support.spread import whole
from support.tiny import save_hf_model

PARAMS = SamplingParams(n=2, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=(3, 50, 90))
PROMPTS = [[5, 9, 11], [7], [3, 1, 4, 1, 5, 9, 2, 6], [100, 101, 102, 103], [7, 8]]


def engine_of(folder):
    """An engine that decodes two prompts at a time."""
    engine = HfEngine(folder, tokenizer=None, max_batch_size=5)
    engine.refit([list(load_file(folder / "model.safetensors").items())], 1)
    return engine


def sample_on_ranks(folder, calls):
    """Completions or the error of each call on this rank. A call: prompts, and the ranks with an engine."""
    dist.init_process_group("gloo")
    engine = engine_of(folder)
    return [_answer(engine if dist.get_rank() in workers else None, prompts) for prompts, workers in calls]


def _answer(engine, prompts):
    try:
        spread = generate_sharded(engine, prompts, PARAMS, list(range(2 * len(prompts))), group=dist.group.WORLD)
        return whole(spread, dist.group.WORLD)
    except RuntimeError as error:
        return str(error)


def test_ranks_together_sample_to_the_bit_what_one_rank_samples_alone(tmp_path):
    folder = save_hf_model(tmp_path / "model")
    too_long = [*PROMPTS[:2], [1] * 125]
    everyone = {0, 1, 2}
    calls = [(PROMPTS, everyone), (PROMPTS[:1], everyone), (PROMPTS, {1}), (too_long, everyone), ([], everyone)]
    on_ranks = run_ranks(sample_on_ranks, 3, folder, calls)
    torch.set_num_threads(1)
    alone = [
        whole(generate_sharded(engine_of(folder), prompts, PARAMS, list(range(2 * len(prompts))), group=None), None)
        for prompts in (PROMPTS, PROMPTS[:1], PROMPTS)
    ]
    for *answers, failure, nothing in on_ranks:
        assert answers == alone
        assert "generation failed on rank " in failure, "every rank hears of the one that failed"
        assert "max_model_len=128" in failure
        assert nothing == []


class EchoEngine:
    """An engine that answers each prompt with itself, the longest of the five after all others."""

    def __init__(self, batch_size):
        self.batch_size, self.num_calls = batch_size, 0

    def generate(self, prompts, params, seeds):
        self.num_calls += 1
        store = _get_default_store()
        if PROMPTS[2] not in prompts:
            if store.add("answered", len(prompts)) == 4:
                store.set("all others", "")
        elif self.batch_size:
            store.wait(["all others"], timedelta(seconds=60))
        texts = [tuple(prompts[i // 2]) for i in range(len(seeds))]
        return [Completion(ids, (0.0,) * len(ids), "", "stop", 0, seed) for ids, seed in zip(texts, seeds, strict=True)]


def echo_on_ranks(calls):
    """Answers or the error of each call, and how often its engine was called. A call: each rank's batch size."""
    dist.init_process_group("gloo")
    engines = [EchoEngine(batch_sizes[dist.get_rank()]) for batch_sizes in calls]
    return [(_answer(engine, PROMPTS), engine.num_calls) for engine in engines]


def test_a_rank_that_is_done_early_takes_the_batches_a_slow_one_would_have_had():
    on_ranks = run_ranks(echo_on_ranks, 2, [(2, 2), (None, None), (2, 4)])
    for in_batches, in_shares, mixed in on_ranks:
        for answers, _ in (in_batches, in_shares):
            assert [list(answer.token_ids) for answer in answers[::2]] == PROMPTS
            assert [answer.seed for answer in answers] == list(range(10))
        assert in_shares[1] == 1, "an engine without a batch size is called once"
        assert mixed == ("the rollout engines of a group need one batch_size, found [2, 4].", 0)
    assert sorted(calls for (_, calls), _, _ in on_ranks) == [1, 4]


class CountingEngine:
    """An engine whose work batches hold one prompt."""

    batch_size = 2

    def __init__(self):
        self.num_calls = 0

    def generate(self, prompts, params, seeds):
        self.num_calls += 1
        return [Completion((1,), (0.0,), "", "stop", 0, seed) for seed in seeds]


def broken_off_on_ranks(batch_size):
    """Whether this rank raised, and how many batches it generated; rank 1 is asked to stop before its second."""
    dist.init_process_group("gloo")
    engine = CountingEngine()
    engine.batch_size = batch_size

    def should_stop() -> bool:
        is_asked = dist.get_rank() == 1 and engine.num_calls == 1
        if is_asked:
            _get_default_store().set("asked", "")
        elif dist.get_rank() == 0 and engine.num_calls == 2:
            _get_default_store().wait(["asked"], timedelta(seconds=60))
        return is_asked

    prompts, seeds = [[1]] * 500, list(range(1000))
    try:
        generate_sharded(engine, prompts, PARAMS, seeds, group=dist.group.WORLD, should_stop=should_stop)
    except BrokenOff:
        return True, engine.num_calls
    return False, engine.num_calls


def test_a_rollout_is_broken_off_on_every_rank_between_batches_when_one_is_told_to():
    (first, calls), (second, calls_of_second) = run_ranks(broken_off_on_ranks, 2, 2)
    assert first and second and calls_of_second == 1 and calls < 499
    # An engine without a batch size is asked to stop once, before its only call.
    assert run_ranks(broken_off_on_ranks, 2, None) == [(False, 1), (False, 1)]


def test_one_rank_alone_breaks_off_between_batches_too():
    engine = CountingEngine()
    with pytest.raises(BrokenOff):
        generate_sharded(
            engine, PROMPTS, PARAMS, list(range(10)), group=None, should_stop=lambda: engine.num_calls == 2
        )
    assert engine.num_calls == 2
    assert len(generate_sharded(engine, PROMPTS, PARAMS, list(range(10)), group=None)) == 10


def test_a_group_without_an_engine_is_told_so():
    with pytest.raises(RuntimeError, match="no rank of the group has a rollout engine"):
        generate_sharded(None, PROMPTS, PARAMS, list(range(10)), group=None)


def test_work_batches_are_cut_from_the_longest_prompts_down_and_differ_by_one_prompt():
    assert work_batches([3, 9, 1, 7, 5], n=2, max_samples=4) == [[1], [3, 4], [0, 2]]
    assert work_batches([3, 9, 1, 7, 5], n=2, max_samples=5) == work_batches([3, 9, 1, 7, 5], n=2, max_samples=4)
    assert work_batches([1, 1, 1], n=4, max_samples=64) == [[0, 1, 2]]
    assert work_batches([1, 2], n=100, max_samples=64) == [[1], [0]]
    assert work_batches([], n=4, max_samples=64) == []


def test_prompts_are_dealt_from_the_longest_down():
    assert deal([3, 9, 1, 7, 5], 2) == [[1, 4, 2], [3, 0]]
    assert deal([4], 3) == [[0], [], []]


def test_a_wrong_number_of_seeds_is_refused_before_any_rank_works():
    with pytest.raises(ValueError, match="need 10 seeds, got 3"):
        generate_sharded(None, PROMPTS, PARAMS, [1, 2, 3], group=None)
