"""Checkpoints of a run: what is on disk, which of it can be trusted, and what may go.

A checkpoint is a folder step_NNNNNN. `actor/` and `critic/` are unpacked `.nemo` archives with the optimizer's state in
`optimizer/` (trainer.optimizer_state); any parallel layout reads both. Orders and samples are functions of (seed,
step), so no generator's state belongs to it. The file `latest` beside the folders names the one to resume from.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from nemo_simplerl.model import torch_dist
from nemo_simplerl.model.archive import list_files
from nemo_simplerl.model.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.trainer import optimizer_state
from nemo_simplerl.trainer.files import atomic_write, sync_folder
from nemo_simplerl.trainer.learner import Learner
from nemo_simplerl.trainer.manifest import (
    Manifest,
    file_problems,
    read_manifest,
    read_values,
    share_of,
    write_manifest,
)

LATEST = "latest"
_TENSOR_SIZE = "tensor_model_parallel_size"
_SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class Found:
    """A checkpoint whose every byte is as it was written; `notes` say what was passed over to get to it."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Retention:
    """What stays: the newest `last`, every step that `every` divides (0: none), the best by the metric `best`."""

    last: int
    every: int
    best: str | None


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}"


def partial_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is written until it is complete."""
    return folder / f"step_{step:06d}.partial"


def steps_on_disk(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, in order. They were complete when they got their names."""
    return sorted(int(path.name[5:]) for path in folder.glob("step_*") if re.fullmatch(r"step_\d{6,}", path.name))


def layout_of(mesh: Mesh) -> dict[str, int]:
    return {
        _TENSOR_SIZE: mesh.tp_size,
        "pipeline_model_parallel_size": mesh.pp_size,
        "data_parallel_size": mesh.dp_size,
    }


def in_words(layout: Mapping[str, int]) -> str:
    tensor, pipeline, data = layout.values()
    return f"TP{tensor} x PP{pipeline} x DP{data}"


def find_intact(folder: Path, mesh: Mesh) -> Found | None:
    """The checkpoint that `latest` names if every file is as it was written, else the newest such before it.

    Collective. None where there are no checkpoints. Those passed over are set aside as step_NNNNNN.damaged, out of the
    way of the run that repeats their steps. Removes what broken-off saves left. ValueError where none can be used.
    """
    steps, notes = _of_first_rank(_candidates(folder) if mesh.rank == 0 else None)
    for place, step in enumerate(steps):
        path = step_folder(folder, step)
        manifest, problems = _examine(path, mesh)
        if manifest is not None and not problems:
            if mesh.rank == 0:
                _set_aside(folder, steps[:place])
            return Found(path, manifest, tuple(notes))
        notes.append(f"{path.name} cannot be used: {_listed(problems)}.")
    if notes:
        raise ValueError(
            f"{folder} holds no checkpoint to resume from. {' '.join(notes)} Bring one back from a copy, or remove "
            "that folder to start over."
        )
    return None


def load(found: Found, learners: Mapping[str, Learner], mesh: Mesh) -> None:
    """Weights and optimizer state of every role, into whatever layout this run has. Collective."""
    saved = found.manifest
    for name, learner in learners.items():
        source = open_source(found.path, "checkpoint", critic=learner.gpt.is_critic)
        load_weights(learner.gpt, source, mesh)
        optimizer_state.restore_state(
            learner,
            torch_dist.read_index(list_files(found.path / name), optimizer_state.FOLDER),
            source.hf,
            mesh,
            tp_size=saved.layout[_TENSOR_SIZE],
            updates=saved.updates[name],
        )


def commit(folder: Path, manifest: Manifest) -> None:
    """Make a checkpoint of the files in its partial folder: manifest, rename, then `latest`. On one rank.

    Raises OSError where that fails or a file is not there in its full size; what was there before then stands.
    """
    partial, final = partial_folder(folder, manifest.step), step_folder(folder, manifest.step)
    for name, facts in manifest.files.items():
        if not (partial / name).is_file() or (partial / name).stat().st_size != facts.size:
            raise OSError(f"{partial / name} is not there in full; all nodes must share the run directory")
    for inner in [path for path in partial.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    write_manifest(partial, manifest)
    shutil.rmtree(final, ignore_errors=True)  # of a history that `latest` was turned back from
    os.replace(partial, final)
    sync_folder(folder)
    atomic_write(folder / LATEST, final.name + "\n")


def drop_old(folder: Path, newest: int, keep: Retention) -> None:
    """Remove what `keep` does not ask for, up to the step just saved. On one rank. Raises OSError."""
    for step in superseded({step: _score(folder, step, keep.best) for step in steps_on_disk(folder)}, newest, keep):
        # Under a name that is no checkpoint's, so that half a removal is not met as one.
        os.replace(step_folder(folder, step), partial_folder(folder, step))
        shutil.rmtree(partial_folder(folder, step))


def superseded(scores: Mapping[int, float | None], newest: int, keep: Retention) -> list[int]:
    """Steps to remove, of those of `scores`; None is a checkpoint that was not evaluated.

    Later ones than `newest` belong to a history that the run has left, and are not this run's to remove.
    """
    steps = sorted(step for step in scores if step <= newest)
    kept = {newest, *steps[-keep.last :]}
    if keep.every:
        kept.update(step for step in steps if step % keep.every == 0)
    if keep.best is not None:
        evaluated = [(score, step) for step in steps if (score := scores[step]) is not None]
        kept.update(step for _, step in [max(evaluated, default=(0.0, newest))])
    return [step for step in steps if step not in kept]


def _score(folder: Path, step: int, metric: str | None) -> float | None:
    try:
        return read_values(step_folder(folder, step))["evaluation"].get(metric)
    except (ValueError, KeyError, AttributeError):
        return None  # damaged, or of weights alone: never the best


def _candidates(folder: Path) -> tuple[list[int], list[str]]:
    """Steps to try, in order, and what is odd about them."""
    for partial in folder.glob("step_*.partial"):
        shutil.rmtree(partial)
    steps = steps_on_disk(folder)[::-1]
    if not (folder / LATEST).is_file():
        return steps, []
    name = (folder / LATEST).read_text(errors="replace").strip()
    named = [step for step in steps if step_folder(folder, step).name == name]
    if not named:
        return steps, [f"{folder / LATEST} names {name[:80]!r}, which is not there."]
    return [step for step in steps if step <= named[0]], []


def _examine(path: Path, mesh: Mesh) -> tuple[Manifest | None, list[str]]:
    """The manifest, and what is wrong with it or with the files. Each rank reads a share of them. Collective."""
    manifest, problem = _of_first_rank(_manifest_of(path) if mesh.rank == 0 else None)
    if manifest is None:
        return None, [problem]
    mine = file_problems(path, share_of(manifest.files, mesh.rank, mesh.world_size))
    return manifest, [problem for share in gather_objects(mine, dist.group.WORLD) for problem in share]


def _manifest_of(path: Path) -> tuple[Manifest | None, str]:
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return None, str(error)
    if step_folder(path.parent, manifest.step) != path:
        return None, f"its manifest is that of step {manifest.step}"
    return manifest, ""


def _set_aside(folder: Path, steps: Sequence[int]) -> None:
    for step in steps:
        path = step_folder(folder, step)
        aside = path.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)


def _of_first_rank(value):
    """Rank 0's value on every rank: its view of the disk is the one that counts. Collective."""
    return gather_objects(value, dist.group.WORLD)[0]


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
