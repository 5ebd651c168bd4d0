"""Checkpoints of a run, complete or absent.

`actor/` and `critic/` are unpacked `.nemo` archives, which any layout can read; the optimizers' states are one file a
rank. Orders and samples are functions of (seed, step), so no generator's state belongs to a checkpoint.
"""

import json
import os
import shutil
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_simplerl.model.load import load_weights
from nemo_simplerl.model.provider import read_hf_config
from nemo_simplerl.model.shards import save_shards, small_files
from nemo_simplerl.model.source import HF_FILES, open_source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.trainer.files import atomic_write, sync_folder
from nemo_simplerl.trainer.learner import Learner


def save(
    folder: Path, step: int, learners: dict[str, Learner], mesh: Mesh, *, model_folder: Path, keep_last: int
) -> Path:
    """Write step_NNNNNN under a temporary name, rename it, drop all but the newest `keep_last`. Collective.

    model_folder: config.json and the tokenizer, packed beside each model's weights.
    """
    final = folder / f"step_{step:06d}"
    partial = final.with_suffix(".partial")
    if mesh.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    hf = read_hf_config(model_folder)
    for name, learner in learners.items():
        tokenizer = (final / name / HF_FILES).absolute()
        files = small_files(model_folder, learner.gpt.is_critic)
        save_shards(partial / name, learner.gpt, hf, files, str(tokenizer), mesh)
    with open(partial / _rank_file(mesh.rank), "wb") as file:
        torch.save({name: learner.state() for name, learner in learners.items()}, file)
        file.flush()
        os.fsync(file.fileno())
    dist.barrier()
    if mesh.rank == 0:
        atomic_write(partial / "manifest.json", json.dumps({"step": step} | _layout(mesh), indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync_folder(folder)
        for _, old in _complete(folder)[:-keep_last]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    complete = _complete(folder)
    return complete[-1][1] if complete else None


def step_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / "manifest.json").read_text())["step"]


def load(checkpoint: Path, learners: dict[str, Learner], mesh: Mesh) -> int:
    """Restore the learners; returns the checkpoint's step. Collective.

    Raises ValueError when the checkpoint is missing or was written in another parallel layout.
    """
    manifest_file = checkpoint / "manifest.json"
    if not manifest_file.is_file():
        raise ValueError(f"{checkpoint} is no complete checkpoint: it holds no manifest.json.")
    manifest = json.loads(manifest_file.read_text())
    if manifest.get("weights_only"):
        raise ValueError(f"{checkpoint} holds weights alone, nothing to resume; start from it with model.path.")
    saved = {key: manifest[key] for key in _layout(mesh)}
    if saved != _layout(mesh):
        raise ValueError(
            f"{checkpoint} was written with {_words(saved)}; this run has {_words(_layout(mesh))}. "
            "Resume in the layout of the checkpoint, or start another trainer.run_dir."
        )
    state = torch.load(checkpoint / _rank_file(mesh.rank), map_location=mesh.device, weights_only=True)
    for name, learner in learners.items():
        load_weights(learner.gpt, open_source(checkpoint, "checkpoint", critic=learner.gpt.is_critic), mesh)
        learner.restore(state[name])
    return manifest["step"]


def _layout(mesh: Mesh) -> dict[str, int]:
    return {
        "tensor_model_parallel_size": mesh.tp_size,
        "pipeline_model_parallel_size": mesh.pp_size,
        "data_parallel_size": mesh.dp_size,
    }


def _words(layout: dict[str, int]) -> str:
    return ", ".join(f"{key}={value}" for key, value in layout.items())


def _rank_file(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def _complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, path), oldest first."""
    return sorted((int(path.name[5:]), path) for path in folder.glob("step_*") if path.name[5:].isdigit())
