"""Log-probabilities are those of the full vocabulary, whatever vLLM left out of the draw."""

from types import SimpleNamespace

import pytest
import torch

from nemo_simplerl.rollout.vllm.sampling import over_all_ids

LOGITS = torch.tensor([[0.0, 1.0, 2.0, 9.0], [3.0, 0.5, -1.0, 4.0]])


def most_probable(logits, sampling_metadata):
    """Stands in for vLLM's sampler: it draws the most probable id and gives it the log-probability 0."""
    sampled = logits.argmax(-1, keepdim=True).int()
    return SimpleNamespace(
        sampled_token_ids=sampled, logprobs_tensors=SimpleNamespace(logprobs=torch.zeros(len(logits), 1))
    )


def draw(limit=None, temperature=None, top_k=None, top_p=None):
    metadata = SimpleNamespace(temperature=temperature, top_k=top_k, top_p=top_p)
    output = over_all_ids(most_probable, limit)(logits=LOGITS.clone(), sampling_metadata=metadata)
    return output.sampled_token_ids[:, 0].tolist(), output.logprobs_tensors.logprobs[:, 0]


@pytest.mark.parametrize("temperature", [None, torch.tensor([0.5, 0.0])], ids=["greedy", "mixed"])
def test_ids_beyond_the_limit_are_not_drawn_and_keep_their_probability(temperature):
    ids, logprobs = draw(limit=3, temperature=temperature)
    assert ids == [2, 0]
    divided = LOGITS / (torch.tensor([[0.5], [1.0]]) if temperature is not None else 1.0)
    assert torch.equal(logprobs, divided.log_softmax(-1)[[0, 1], [2, 0]])


def test_filters_do_not_change_what_is_reported():
    ones = torch.ones(2)
    for filters in ({"top_k": ones}, {"top_p": ones}):
        assert torch.equal(draw(temperature=ones, **filters)[1], LOGITS.log_softmax(-1)[:, 3])


def test_vllms_own_are_kept_where_nothing_is_left_out():
    assert draw(temperature=torch.ones(2))[1].tolist() == [0.0, 0.0]
