"""A checkpoint of 300 MB written behind the training, one waited for, and a plain torch.save. Prints one JSON line.

usage: [torchrun --nproc_per_node N] scripts/bench/checkpoint.py [FOLDER]     (default: a temporary one)

The model is random and has made one update: weights and Adam's two moments, in float32. `blocking` is for how long the
training stands still: behind it for the copy (`copy`), and once all is written for the index, the manifest and the
name; waited for, from begin to end. `written` is until the checkpoint is there. `torch_save` is one torch.save of the
same tensors by rank 0, and an fsync. The kinds take turns and the fastest of each counts; the first round, which meets
memory never touched, does not.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Qwen2Config

from nemo_simplerl.config.load import compose
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.parallel.mesh import Mesh, build_mesh, destroy_mesh, leave_together
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.saving.checkpoint import Retention, facts_of, find_intact, manifest_of
from nemo_simplerl.trainer.saving.manifest import Manifest
from nemo_simplerl.trainer.saving.position import TrainingPosition
from nemo_simplerl.trainer.saving.saver import Saver

REPEATS = 7
MODEL = Qwen2Config(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)


def main(folder: Path) -> None:
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=600
    )
    if mesh.rank == 0:
        MODEL.save_pretrained(folder / "model")
    dist.barrier()
    learner = updated_learner(mesh)
    with (
        closing(saver(folder / "behind", mesh, True)) as behind,
        closing(saver(folder / "waited", mesh, False)) as waited,
    ):
        rounds = []
        for step in range(1, REPEATS + 2):
            seconds = {"torch_save": seconds_of(lambda: plain_save(folder / "plain.pt", learner, mesh))}
            seconds |= save_behind(behind, learner, step)
            seconds["waited_blocking"] = seconds_of(lambda step=step: waited.save(*state(learner, step)))
            rounds.append(seconds)
    best = {name: min(seconds[name] for seconds in rounds[1:]) for name in rounds[0]}
    checked = seconds_of(lambda: find_intact(folder / "behind", mesh))
    if mesh.rank == 0:
        num_bytes = sum(path.stat().st_size for path in (folder / "behind").rglob("*") if path.is_file())
        values = {"seconds": {name: round(value, 4) for name, value in (best | {"check": checked}).items()}}
        values["bytes_per_second"] = {
            "behind": round(num_bytes / best["behind_written"]),
            "waited": round(num_bytes / best["waited_blocking"]),
            "torch_save": round((folder / "plain.pt").stat().st_size / best["torch_save"]),
        }
        about = {"device": str(mesh.device), "ranks": mesh.world_size, "threads": torch.get_num_threads()}
        print(json.dumps({"bench": "checkpoint"} | about | {"bytes": num_bytes} | values))
    leave_together()
    destroy_mesh()


def updated_learner(mesh: Mesh) -> Learner:
    config = compose(["experiment=quickstart"])
    gpt = build_gpt_model(MODEL.to_dict(), config.actor, mesh, dtype=torch.float32, transformer_engine=False)
    for number, param in enumerate(gpt.parameters()):  # alike on all ranks
        torch.nn.init.normal_(param, generator=torch.Generator(mesh.device).manual_seed(number))
    learner = Learner(gpt, config.actor.optim, mesh, total_updates=1, use_distributed_optimizer=mesh.dp_size > 1)
    for param in gpt.parameters():
        param.main_grad.copy_(param.detach())
    learner.optimizer.step()
    learner.updates = 1
    return learner


def saver(folder: Path, mesh: Mesh, in_background: bool) -> Saver:
    keep = Retention(last=1, every=0, best=None)
    return Saver(
        folder, mesh, model_folder=lambda role: folder.parent / "model", keep=keep, in_background=in_background
    )


def state(learner: Learner, step: int) -> tuple[dict[str, Learner], Manifest]:
    learners = {"actor": learner}
    facts = {"weight_version": step, "evaluation": {}, "config_xxh3": ""}
    manifest = manifest_of(TrainingPosition(step), facts_of(learners), **facts)
    return learners, manifest


def save_behind(behind: Saver, learner: Learner, step: int) -> dict[str, float]:
    started = time.perf_counter()
    copy = seconds_of(lambda: behind.save(*state(learner, step)))
    settle = 0.0
    while behind.is_pending:
        time.sleep(0.002)
        settle = seconds_of(lambda: behind.finish_pending(block=False))
    return {"behind_copy": copy, "behind_blocking": copy + settle, "behind_written": time.perf_counter() - started}


def plain_save(path: Path, learner: Learner, mesh: Mesh) -> None:
    if mesh.rank != 0:
        return
    tensors: list[Tensor] = [param.detach() for param in learner.gpt.parameters()]
    for inner in learner.optimizer.chained_optimizers:
        tensors += [tensor for moments in inner.optimizer.state.values() for tensor in moments.values()]
    with open(path, "wb") as file:
        torch.save(tensors, file)
        file.flush()
        os.fsync(file.fileno())


def seconds_of(run: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
