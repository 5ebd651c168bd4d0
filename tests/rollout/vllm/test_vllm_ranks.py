"""Several ranks: one engine of two, two engines of one each, and faults of which every rank hears."""

import os
import re
import signal
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.distribute import generate_sharded
from nemo_simplerl.rollout.own_process.engine_group import consecutive_ranks
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.rollout.sending import receive, send
from support.exports import FileExport
from support.links import Linked, flipped, on
from support.ranks import run_ranks
from support.spread import whole
from support.vllm_engine import GREEDY, PROMPTS, DoubleProcess, buckets_of, make_engine, save_model, weights_of

O_PROJ = "model.layers.1.self_attn.o_proj.weight"
LAST_BIT = 64 * 64 * 32 - 9  # of its last column, which the second worker holds


def sampled_by_all(engine) -> list:
    return whole(generate_sharded(engine, PROMPTS, SAMPLED, list(range(16)), group=dist.group.WORLD), dist.group.WORLD)


def cannot_be_made(name, tensor):
    raise OSError("no memory left for a bucket")


FAULTS = {
    f"holds other values than were sent: {O_PROJ}": lambda name, tensor: [(name, flipped(tensor, LAST_BIT))],
    f"missing {O_PROJ}": lambda name, tensor: [],
    f"duplicate {O_PROJ}": lambda name, tensor: [(name, tensor)] * 2,
    f"unknown {O_PROJ}s": lambda name, tensor: [(name + "s", tensor)],
    "OSError: no memory left for a bucket": cannot_be_made,
}
SAMPLED = replace(GREEDY, n=4, temperature=0.7)


def error_of(act) -> str:
    try:
        return f"no error: {act()}"
    except (RuntimeError, ValueError) as error:
        return str(error)


def join() -> None:
    dist.init_process_group("gloo")


def refit(engine, folder: Path, version: int, fault=None) -> dict[str, float]:
    linked = engine if fault is None else Linked(engine, on(O_PROJ, fault))
    return verified_refit(linked, buckets_of(weights_of(folder)), version, verify=True, group=dist.group.WORLD)


class SlicedDouble(DoubleProcess):
    """Two workers, of which the second holds what the second rank sent."""

    def load(self, handles):
        super().load(handles)
        whole = self.held
        self.held = self.__dict__.setdefault("second", {})
        super().load(handles[1:])
        self.held = whole

    def finish(self, version, digests):
        return [{name: digest(tensor) for name, tensor in held.items()} for held in (self.held, self.second)]


def faults_on_rank_1(folder: Path, scratch: Path, tp: int) -> list[tuple[str, str, str]]:
    join()
    numbers = count()
    double = SlicedDouble if tp == 2 else DoubleProcess
    engine = make_engine(
        folder,
        "sh",
        group=consecutive_ranks(tp),
        tensor_parallel_size=tp,
        start=lambda *args: double(*args, scratch / f"{dist.get_rank()}_{next(numbers)}"),
    )
    refit(engine, folder, 1)
    heard = []
    for version, (told, fault) in enumerate(FAULTS.items(), 2):
        message = error_of(lambda fault=fault, v=version: refit(engine, folder, v, fault if dist.get_rank() else None))
        heard.append((told, message, error_of(lambda: engine.generate([[5]], GREEDY, [0]))))
    refit(engine, folder, 9)
    heard.append(("", str(engine.weight_version), ""))
    return heard


@pytest.mark.parametrize("tp", [1, 2])
def test_a_damaged_refit_on_one_rank_is_heard_on_both_and_nothing_is_sampled(tmp_path, tp):
    folder = save_model(tmp_path / "model")
    first, second = run_ranks(faults_on_rank_1, 2, folder, tmp_path, tp)
    assert [message for _, message, _ in first] == [message for _, message, _ in second]
    for rank, heard in enumerate((first, second)):
        for told, message, refusal in heard[:-1]:
            if tp == 2 and "holds other values" in told:
                told = "workers hold different tensors: " + O_PROJ
            assert re.search(f"rank 1.*{re.escape(told)}", message), message
            expected = "refuses to generate" if rank == 0 or tp == 1 else "another rank hosts"
            assert expected in refusal
        assert heard[-1][1] == "9"


def engine_of_ranks_1_and_2(folder: Path, scratch: Path) -> list[str]:
    """How a good refit ended, one whose second engine rank cannot load its part, and another good one."""
    join()
    group, numbers = consecutive_ranks(2, ranks=range(1, 3)), count()
    if dist.get_rank() == 0:
        assert group is None
        everyone = {"verify": True, "group": dist.group.WORLD}
        export = FileExport(weights_of(folder), 50_000)
        return [error_of(lambda v=v: send(export, v, replica=None, **everyone)) for v in (1, 2, 3)]
    engine = make_engine(
        folder,
        "sh",
        group=group,
        tensor_parallel_size=2,
        start=lambda *args: SlicedDouble(*args, scratch / f"{dist.get_rank()}_{next(numbers)}"),
    )
    damaged = Linked(engine, on(O_PROJ, cannot_be_made)) if dist.get_rank() == 2 else engine
    damaged.wake = engine.wake
    heard = []
    for version, one in ((1, engine), (2, damaged), (3, engine)):
        facts = {"verify": True, "group": dist.group.WORLD, "device": torch.device("cpu")}
        heard.append(error_of(partial(receive, one, version, **facts)))
    assert engine.weight_version == 3
    return heard


def test_an_engine_on_ranks_of_its_own_is_refitted_from_another_rank(tmp_path):
    folder = save_model(tmp_path / "model")
    sender, *members = run_ranks(engine_of_ranks_1_and_2, 3, folder, tmp_path)
    assert members == [sender, sender]
    good, bad, again = sender
    assert "'refit/version': 1.0" in good and "'refit/version': 3.0" in again
    assert re.search("rank 1: .*rank 2: .*no memory left for a bucket", bad)


def one_engine_of_two_ranks(folders: list[Path], python: str) -> dict:
    join()
    engine = make_engine(folders[0], python, group=consecutive_ranks(2), tensor_parallel_size=2)
    if engine.generates:
        for process in [psutil.Process(engine._process.pid), *psutil.Process(engine._process.pid).children()]:
            process.send_signal(signal.SIGTERM)  # as a launcher does that ends a job
    seen = []
    for version, folder in enumerate([*folders, *folders]):
        refit(engine, folder, version)
        seen.append(sampled_by_all(engine if engine.generates else None))
    broken = error_of(lambda: refit(engine, folders[0], 9, list(FAULTS.values())[0] if dist.get_rank() else None))
    refit(engine, folders[1], 10)
    again = sampled_by_all(engine if engine.generates else None)
    left = None
    if engine.generates:
        process = psutil.Process(engine._process.pid)
        workers = process.children(recursive=True)
        process.kill()
        gone, left = psutil.wait_procs(workers, timeout=10)
        left = [worker.name() for worker in left if worker.status() != psutil.STATUS_ZOMBIE], len(gone)
    engine.close()
    return {"seen": seen, "broken": broken, "again": again, "left": left}


@pytest.mark.vllm
@pytest.mark.slow
def test_one_engine_of_two_ranks_holds_what_both_sent(tmp_path, vllm_python):
    folders = [save_model(tmp_path / str(seed), "llama", tied=False, seed=seed) for seed in range(2)]
    before = set(os.listdir("/dev/shm"))
    first, second = run_ranks(one_engine_of_two_ranks, 2, folders, vllm_python, timeout_s=400)
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "vllm" in name]
    assert first["seen"] == second["seen"]
    base, actor, base_again, actor_again = [[replace(c, weight_version=0) for c in found] for found in first["seen"]]
    assert base == base_again and actor == actor_again and base != actor
    model = AutoModelForCausalLM.from_pretrained(folders[1])
    for index, completion in enumerate(actor):
        prompt = PROMPTS[index // 4]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
    assert O_PROJ in first["broken"] and first["broken"] == second["broken"]
    assert [replace(c, weight_version=0) for c in first["again"]] == actor
    left, gone = first["left"]
    assert left == [] and gone >= 2, "vLLM's workers end with the process that started them"


def an_engine_each(folder: Path, python: str) -> list:
    join()
    engine = make_engine(folder, python)
    refit(engine, folder, 1)
    together = sampled_by_all(engine)
    alone = list(generate_sharded(engine, PROMPTS, SAMPLED, list(range(16)), group=None).held)
    engine.close()
    return [together, alone]


@pytest.mark.vllm
@pytest.mark.slow
def test_two_ranks_with_an_engine_each_sample_what_one_engine_does(tmp_path, vllm_python):
    folder = save_model(tmp_path / "model", "qwen3", tied=True)
    (together, alone), (other_together, other_alone) = run_ranks(an_engine_each, 2, folder, vllm_python, timeout_s=400)
    assert alone == other_alone and together == other_together
    for one, other in zip(
        together, alone, strict=True
    ):  # two engines share the prompts: other company, other last bits
        assert one.token_ids == other.token_ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
