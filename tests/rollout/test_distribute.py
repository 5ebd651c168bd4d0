import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.rollout.distribute import deal, generate_sharded, pack, unpack
from nemo_simplerl.rollout.hf import HfEngine
from ranks import run_ranks
from tiny import save_hf_model

PARAMS = SamplingParams(n=2, max_tokens=8, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=(3, 50, 90))
PROMPTS = [[5, 9, 11], [7], [3, 1, 4, 1, 5, 9, 2, 6], [100, 101, 102, 103], [7, 8]]


def engine_of(folder):
    engine = HfEngine(folder, tokenizer=None, max_batch_size=64)
    engine.refit(load_file(folder / "model.safetensors").items(), 1)
    return engine


def sample_on_ranks(folder, calls):
    """What each call answers on this rank: completions, or the error."""
    dist.init_process_group("gloo")
    engine = engine_of(folder)
    return [_answer(engine, prompts) for prompts in calls]


def _answer(engine, prompts):
    try:
        return generate_sharded(engine, prompts, PARAMS, list(range(2 * len(prompts))), group=dist.group.WORLD)
    except RuntimeError as error:
        return str(error)


def test_ranks_together_sample_what_one_rank_samples_alone(tmp_path):
    folder = save_hf_model(tmp_path / "model")
    too_long = [*PROMPTS[:2], [1] * 125]
    on_ranks = run_ranks(sample_on_ranks, 2, folder, [PROMPTS, PROMPTS[:1], too_long, []])
    torch.set_num_threads(1)
    engine = engine_of(folder)
    for index, prompts in enumerate((PROMPTS, PROMPTS[:1])):
        alone = generate_sharded(engine, prompts, PARAMS, list(range(2 * len(prompts))), group=None)
        for answers in on_ranks:
            assert [(c.token_ids, c.finish_reason, c.seed, c.weight_version) for c in answers[index]] == [
                (c.token_ids, c.finish_reason, c.seed, c.weight_version) for c in alone
            ]
            for sharded, single in zip(answers[index], alone, strict=True):
                assert sharded.logprobs == pytest.approx(single.logprobs, abs=1e-5)
        assert on_ranks[0][index] == on_ranks[1][index]
    for _, _, failure, nothing in on_ranks:
        assert "rank 0" in failure, "the longest prompt goes to rank 0, and every rank hears of it"
        assert "max_model_len=128" in failure
        assert nothing == []


def test_prompts_are_dealt_from_the_longest_down():
    assert deal([3, 9, 1, 7, 5], 2) == [[1, 4, 2], [3, 0]]
    assert deal([4], 3) == [[0], [], []]


def test_packed_completions_come_back_exactly():
    floats = torch.tensor([-0.1, -7.3, -1e-30]).tolist()
    completions = [
        Completion((5, 2**31 - 1), tuple(floats[:2]), "na\u00efve", "stop", 3, 2**63),
        Completion((), (), "", "length", 4, -1),
        Completion((0,), (floats[2],), "x", "length", 3, 7),
    ]
    assert unpack(pack(completions)) == completions
    assert unpack(pack([])) == []


def test_a_wrong_number_of_seeds_is_refused_before_any_rank_works():
    with pytest.raises(ValueError, match="need 10 seeds, got 3"):
        generate_sharded(None, PROMPTS, PARAMS, [1, 2, 3], group=None)
