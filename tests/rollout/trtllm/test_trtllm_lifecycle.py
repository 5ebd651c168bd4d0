"""Engines that fail, die and end, and one that spans two ranks. Each test starts Ray clusters of its own."""

import asyncio
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from fakes.double import double_installed, install_double
from fakes.small_engine import NothingStays, buckets_of, save_model, start_engine
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.distribute import generate_sharded
from nemo_simplerl.rollout.own_process.engine_group import consecutive_ranks
from nemo_simplerl.rollout.own_process.handles import Staging
from nemo_simplerl.rollout.sending import receive, send
from nemo_simplerl.rollout.trtllm.host import Limits
from support.exports import FileExport
from support.ranks import run_ranks
from support.spread import whole

pytestmark = pytest.mark.slow

SAMPLED = SamplingParams(n=2, max_tokens=6, temperature=1.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=(3, 50))
GREEDY = replace(SAMPLED, n=1, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def weights(folder):
    return load_file(folder / "model.safetensors")


def test_an_argument_that_the_engine_does_not_know_is_told_and_nothing_stays_behind(folder):
    with double_installed("own"), NothingStays(), pytest.raises(ValueError, match="got invalid argument: max_turbo"):
        start_engine(folder, engine_args={"max_turbo": 3})


def test_a_dead_worker_is_an_error_and_close_leaves_no_process(folder, weights):
    with double_installed("own"), NothingStays() as processes:
        engine = start_engine(folder, limits=Limits(heartbeat=0.5), cuda_graph=False, sleep=False)
        try:
            engine.refit(buckets_of(weights), 1)
            engine.sleep()  # it keeps its memory, and refuses all the same
            with pytest.raises(RuntimeError, match=r"call wake\(\)"):
                engine.generate([[7]], GREEDY, [0])
            engine.wake()
            assert engine.generate([[7]], GREEDY, [0])[0].weight_version == 1
            names = {process.name(): process for process in processes.started()}
            assert {"raylet", "gcs_server"} <= names.keys()
            [worker] = [process for name, process in names.items() if "RayWorkerWrapper" in name]
            worker.kill()
            with pytest.raises(Exception, match="died"):
                engine.generate([[7]], GREEDY, [0])
        finally:
            engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate([[7]], GREEDY, [0])


def release_slowly(marker):
    """Make the double's engine release its memory after half a second, and then create the file `marker`."""
    from tensorrt_llm import AsyncLLM

    release = AsyncLLM.release

    async def slow(self, tags):
        await asyncio.sleep(0.5)
        await release(self, tags)
        marker.touch()

    AsyncLLM.release = slow


def cut_short(weights):
    yield list(weights.items())[:2]
    raise OSError("no memory left for a bucket")


def on_ranks_of_its_own(folder):
    """Digests, samples and errors of an engine of ranks 1 and 2, as they see them; rank 0 sends it the last weights.

    Errors are of refits that begin on ranks 1 and 2 alone.
    """
    dist.init_process_group("gloo")
    install_double("own")
    weights, rank = load_file(folder / "model.safetensors"), dist.get_rank()
    told = {}
    group = consecutive_ranks(2, ranks=range(1, 3))
    if rank == 0:
        assert group is None
        send(FileExport(weights, 100_000), 3, verify=True, group=dist.group.WORLD, replica=None)
        return told
    engine = start_engine(folder, group=group, tensor_parallel_size=2)
    try:
        told["digests"] = engine.refit(buckets_of(weights), 1, digests=True)
        if engine.generates:
            told["first"] = engine.generate([[5, 9], [7]], SAMPLED, [1, 2, 3, 4])
        else:
            with pytest.raises(RuntimeError, match="another rank hosts"):
                engine.generate([[7]], GREEDY, [0])
        if engine.generates:
            release_slowly(folder / "released")
        engine.sleep()
        assert (folder / "released").exists(), "a member goes on only when the memory is free"
        engine.wake()
        if rank == 2:
            Staging.handles, kept = None, Staging.handles
        with pytest.raises(RuntimeError, match="rank 1 of the engine's group: TypeError") as error:
            engine.refit(buckets_of(weights), 2)
        told["failure"], told["version"] = str(error.value), engine.weight_version
        if rank == 2:
            Staging.handles = kept
        damaged = cut_short(weights) if rank == 2 else buckets_of(weights)
        with pytest.raises(RuntimeError, match="rank 1 of the engine's group: OSError: no memory"):
            engine.refit(damaged, 2)
        lacking = {name: tensor for name, tensor in weights.items() if rank == 1 or "norm" not in name}
        with pytest.raises(RuntimeError, match="rank 1 of the engine's group: ValueError: .*norm"):
            engine.refit([list(lacking.items())], 2)
        receive(engine, 3, verify=True, group=dist.group.WORLD, device=torch.device("cpu"))
        sampler = engine if engine.generates else None
        told["second"] = whole(generate_sharded(sampler, [[5, 9], [7]], SAMPLED, [1, 2, 3, 4], group=group), group)
    finally:
        engine.close()
    return told


def test_one_engine_of_two_ranks_takes_weights_on_both_and_samples_on_its_leader(folder, weights):
    _, leader, member = run_ranks(on_ranks_of_its_own, 3, folder)
    assert leader["digests"] == member["digests"] == {name: digest(tensor) for name, tensor in weights.items()}
    assert leader["failure"] == member["failure"]
    assert leader["version"] is member["version"] is None
    assert [len(c.token_ids) > 0 for c in leader["first"]] == [True] * 4
    assert (
        leader["second"]
        == member["second"]
        == [replace(completion, weight_version=3) for completion in leader["first"]]
    )
