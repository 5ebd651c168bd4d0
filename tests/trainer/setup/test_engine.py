"""The engine of a run, made as training, evaluation and distillation make it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nemo_simplerl.config.load import compose
from nemo_simplerl.data.tokenizer import build_tokenizer, num_ids
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from support.tiny import save_hf_model


def test_no_row_of_the_embedding_that_stands_for_no_token_is_sampled(tmp_path):
    save_hf_model(tmp_path, vocab_size=500)
    tokenizer = build_tokenizer(["a b c"], 259, tmp_path)
    tokenizer.add_tokens(["<think>", "</think>"])
    assert num_ids(tokenizer) == 261
    rollout = replace(
        compose(["experiment=quickstart"]).rollout, n_samples_per_prompt=16, max_response_tokens=32, stop=[]
    )
    mesh = SimpleNamespace(device=torch.device("cpu"), is_member=True)
    engine = build_engine(rollout, "fp32", tmp_path, mesh, tokenizer)
    engine.refit([list(load_file(tmp_path / "model.safetensors").items())], 0)
    params = replace(sampling_of(rollout, tokenizer, tmp_path), stop_token_ids=())
    sampled = engine.generate([[5, 9]], params, range(16))
    greedy = engine.generate([[5, 9]], replace(params, n=1, temperature=0.0), [0])
    ids = {token for completion in [*sampled, *greedy] for token in completion.token_ids}
    # Of the ids that stand for tokens all may come, the added ones among them.
    assert max(ids) < 261 and max(ids) > 250


def test_on_ranks_without_an_engine_stands_one_that_holds_nothing_and_knows_the_version(tmp_path):
    rollout = compose(["experiment=quickstart"]).rollout
    engine = build_engine(rollout, "fp32", tmp_path, SimpleNamespace(is_member=False), None)
    left = iter([[("a", torch.ones(1))]])
    engine.wake()
    assert engine.refit(left, 4, digests=True) == {} and list(left) == []
    engine.sleep()
    assert (engine.weight_version, engine.generates) == (4, False)
    with pytest.raises(RuntimeError, match="generate on the ranks of placement.engine"):
        engine.generate([[5]], None, [0])
    engine.invalidate("another rank says so")
    assert engine.weight_version is None
    engine.close()
