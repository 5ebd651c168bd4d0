"""The adapter on the doubles of the releases after 1.2, in real Ray processes."""

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from fakes.double import double_installed
from fakes.small_engine import NothingStays, buckets_of, save_model, start_engine
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine

pytestmark = pytest.mark.slow

SAMPLED = SamplingParams(n=2, max_tokens=6, temperature=0.7, top_p=1.0, top_k=0, stop=(), stop_token_ids=(3, 50))
PROMPTS, SEEDS = [[5, 9, 11], [7]], [11, 12, 13, 14]
DISCARD = {"sleep_config": {"restore_modes": {"model_weights": "NONE"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.mark.parametrize(("release", "args"), [("1.3", DISCARD), ("1.4", {})], ids=["1.3 that discards", "1.4"])
def test_a_later_release_is_refitted_sleeps_wakes_and_samples(folder, release, args):
    weights = load_file(folder / "model.safetensors")
    hf = HfEngine(folder, tokenizer=None, max_batch_size=64)
    hf.refit(buckets_of(weights), 1)
    expected = hf.generate(PROMPTS, SAMPLED, SEEDS)
    with double_installed("hf_engine", release), NothingStays():
        engine = start_engine(folder, engine_args=args)
        try:
            engine.refit(buckets_of(weights), 1)
            for _ in range(2):
                found = engine.generate(PROMPTS, SAMPLED, SEEDS)
                assert [replace(c, logprobs=()) for c in found] == [replace(c, logprobs=()) for c in expected]
                for one, other in zip(found, expected, strict=True):
                    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
                engine.sleep()
                assert engine.weight_version == 1
                engine.wake()
                if args:
                    assert engine.weight_version is None
                    with pytest.raises(RuntimeError, match="its weights were discarded while it slept"):
                        engine.generate(PROMPTS, SAMPLED, SEEDS)
                    engine.refit(buckets_of(weights), 1)
        finally:
            engine.close()
