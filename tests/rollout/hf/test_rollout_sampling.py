import pytest
import torch

from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf.sampling import filter_probs, inverse_cdf, sample, uniforms

PROBS = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


def test_uniforms_are_a_function_of_seed_and_step_alone():
    table = uniforms([7, 8, -1, 2**70 + 7], 50)
    assert (uniforms([8], 20)[0] == table[1, :20]).all()
    assert (table[3] == table[0]).all(), "seeds are taken modulo 2**64"
    assert (table[0] != table[1]).all()


def test_splitmix64_gives_its_published_sequence():
    # First outputs of SplitMix64 for state 1234567, as published with the reference implementation.
    # `uniforms` starts that sequence from the hash of the seed, so the seed whose hash is 1234567 is found by
    # inverting the finaliser.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    seed = (_unmix(1234567) - 0x9E3779B97F4A7C15) % 2**64
    assert uniforms([seed], 4)[0].tolist() == [(x >> 11) / 2**53 for x in published]


def _unmix(x: int) -> int:
    def unshift(y: int, bits: int) -> int:
        x = y
        for _ in range(64 // bits + 1):
            x = y ^ (x >> bits)
        return x

    x = unshift(x, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    x = unshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return unshift(x, 30)


def test_uniforms_of_neighbouring_seeds_are_uncorrelated_and_flat():
    table = torch.from_numpy(uniforms(range(400), 500))
    assert table.min() >= 0
    assert table.max() < 1
    assert abs(table.mean() - 0.5) < 0.003  # standard error 0.0006
    assert abs(torch.corrcoef(table).triu(1)).max() < 0.25  # standard error 0.045
    assert abs(torch.corrcoef(table.T).triu(1)).max() < 0.28  # standard error 0.05


def test_inverse_cdf_picks_the_first_id_whose_sum_passes_the_draw():
    draws = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(PROBS.expand(8, 4), draws).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_inverse_cdf_never_draws_an_id_of_probability_zero():
    probs = torch.tensor([[0.0, 0.3, 0.0, 0.4, 0.0]]).expand(3, 5)
    draws = torch.tensor([0.0, 0.43, 1 - 2.0**-53], dtype=torch.float64)
    assert inverse_cdf(probs, draws).tolist() == [1, 3, 3]


def test_frequencies_match_the_probabilities():
    draws = torch.from_numpy(uniforms(range(20000), 1)[:, 0])
    logits = PROBS.log().expand(20000, 4)
    tokens, _ = sample(logits, draws, temperature=1.0)
    shares = torch.bincount(tokens, minlength=4) / 20000
    assert (shares - PROBS[0]).abs().max() < 0.012  # 3.5 standard errors

    tokens, _ = sample(logits, draws, temperature=0.5)  # squares: 1, 16, 4, 9 of 30
    shares = torch.bincount(tokens, minlength=4) / 20000
    assert (shares - torch.tensor([1, 16, 4, 9]) / 30).abs().max() < 0.012


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (1, 1.0, [0, 0.4, 0, 0]),
        (2, 1.0, [0, 0.4, 0, 0.3]),
        (9, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (0, 1e-6, [0, 0.4, 0, 0]),
        (0, 0.39, [0, 0.4, 0, 0]),
        (0, 0.41, [0, 0.4, 0, 0.3]),
        (0, 0.69, [0, 0.4, 0, 0.3]),
        (0, 0.71, [0, 0.4, 0.2, 0.3]),
        (0, 0.91, [0.1, 0.4, 0.2, 0.3]),
        (3, 0.8, [0, 0.4, 0.2, 0.3]),  # of the 0.9 that top-k leaves, 0.7 is 0.78
        (3, 0.77, [0, 0.4, 0, 0.3]),
    ],
)
def test_top_k_then_top_p_keep_these_tokens(top_k, top_p, kept):
    assert filter_probs(PROBS, top_k=top_k, top_p=top_p).tolist() == torch.tensor([kept]).tolist()


def test_the_lower_id_ranks_first_among_equals():
    assert filter_probs(torch.full((1, 4), 0.25), top_k=2, top_p=1.0).tolist() == [[0.25, 0.25, 0, 0]]
    assert sample(torch.tensor([[1.0, 3.0, 3.0]]), torch.zeros(1), temperature=0.0)[0].tolist() == [1]


def test_logprobs_are_of_the_tempered_logits_over_the_whole_vocabulary():
    logits = PROBS.log()
    draw = torch.tensor([0.2], dtype=torch.float64)
    token, logprob = sample(logits, draw, temperature=0.5, top_k=1)
    assert token.tolist() == [1]
    assert logprob.exp().item() == pytest.approx(16 / 30)
    token, logprob = sample(logits, draw, temperature=0.0)
    assert (token.item(), logprob.exp().item()) == (1, pytest.approx(0.4))


def test_ids_from_the_vocabulary_limit_on_are_never_drawn():
    logits = torch.tensor([[0.0, 0.0, 9.0]]).expand(50, 3)
    draws = torch.from_numpy(uniforms(range(50), 1)[:, 0])
    for temperature in (0.0, 1.0):
        tokens, logprobs = sample(logits, draws, temperature=temperature, vocab_limit=2)
        assert tokens.max() <= 1
        assert logprobs.max() < -8, "the log-probability still counts the whole vocabulary"


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 0},
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"stop": ("",)},
    ],
)
def test_sampling_params_outside_their_range_are_refused(bad):
    good = {
        "n": 1,
        "max_tokens": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "stop": (),
        "stop_token_ids": (),
    }
    SamplingParams(**good)
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**(good | bad))
