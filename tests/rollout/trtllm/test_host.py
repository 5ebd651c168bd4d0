"""An engine that is lost: what says so, how soon, and what stays behind."""

import asyncio
import os
import time

import pytest
from safetensors.torch import load_file

from fakes.double import double_installed
from fakes.small_engine import NothingStays, buckets_of, save_model, start_engine
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.trtllm import host
from nemo_simplerl.rollout.trtllm.host import EngineHost, Limits
from nemo_simplerl.rollout.trtllm.releases import RELEASES

GREEDY = SamplingParams(n=1, max_tokens=4, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
FATAL = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.mark.slow
def test_an_event_loop_that_dies_in_a_living_worker_ends_the_rollout_and_all_that_comes_after(folder):
    with double_installed("own"), NothingStays():
        os.environ["TLLM_DOUBLE_FATAL_TOKEN"] = str(FATAL)
        engine = start_engine(folder, limits=Limits(heartbeat=0.5))
        try:
            engine.refit(buckets_of(load_file(folder / "model.safetensors")), 1)
            engine.generate([[7]], GREEDY, [0])
            begun = time.monotonic()
            with pytest.raises(RuntimeError) as error:
                engine.generate([[7, FATAL]], GREEDY, [0])
            for told in (
                "the TensorRT-LLM engine of rank 0 on ",
                " is lost in a rollout: the event loop of worker 0 has ended: ",
                "RuntimeError: CUDA error: an illegal memory access was encountered",
            ):
                assert told in str(error.value)
            with pytest.raises(RuntimeError, match="the event loop of worker 0 has ended"):
                engine.sleep()
            assert time.monotonic() - begun < 30
        finally:
            engine.close()


class DeafLlm:
    """An AsyncLLM whose workers answer until they are asked to give back memory or to take weights."""

    def __init__(self):
        self.is_shut_down = False

    async def collective_rpc(self, method, args=()):
        return [f"answer to {method}"]

    async def release(self, tags):
        await asyncio.Event().wait()

    resume = update_weights = release

    def shutdown(self):
        self.is_shut_down = True


@pytest.fixture
def deaf(monkeypatch, tmp_path):
    """A host of such an engine, without Ray, and the engine."""
    llm = DeafLlm()

    async def build(self, arguments):
        await asyncio.sleep(arguments["seconds"])
        self._llm = llm

    monkeypatch.setattr(EngineHost, "_build", build)
    monkeypatch.setattr(host, "start_ray", lambda num_gpus: tmp_path)
    monkeypatch.setattr(host, "stop_ray", lambda folder: folder.joinpath("ended").touch())
    found = EngineHost("the engine of rank 3", RELEASES["1.2"], Limits(start=0.2, call=0.2))
    yield found, llm
    found.close()
    assert (tmp_path / "ended").exists() and not llm.is_shut_down, "lost workers would be waited for"


def test_a_call_that_does_not_come_back_is_given_up_with_the_engine_and_the_call_named(deaf):
    found, _ = deaf
    assert found.start({"seconds": 0}, 1, []) == ["answer to report_device_id"]
    for call, told in (
        (lambda: found.release(cache=True), "releasing its memory"),
        (found.restore_weights, "restoring its memory"),
        (found.restore_cache, "restoring its KV cache"),
        (lambda: found.update_weights({}), "loading a bucket of weights"),
        (lambda: found.update_weights(None), "the end of a refit"),
    ):
        with pytest.raises(RuntimeError, match=f"the engine of rank 3 is lost: {told} did not come within 0.2 s"):
            call()


def test_a_start_that_does_not_come_to_its_end_is_given_up(deaf):
    with pytest.raises(RuntimeError, match="the engine of rank 3 is lost: its start did not come within 0.2 s"):
        deaf[0].start({"seconds": 60}, 1, [])
