"""Checkpoints of a run: finding an intact one, loading it, completing a new one, and removing old ones.

A checkpoint is a folder named for its training position (saving.position). `actor/` and `critic/` are unpacked `.nemo`
archives with the optimizer's state in `optimizer/` (saving.optimizer_state); any parallel layout reads both. Orders and
samples are functions of (seed, step), so no generator's state is saved. In the middle of a step, `step/record.npz`
holds what the step goes on from (saving.record). Where steps are sampled ahead, by weights that are gone since, it
holds the samples of the step to come, and in the middle of a step `ahead/record.npz` those of the one after. The file
`latest` beside the folders names the one to resume from.
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_simplerl.files import atomic_write, sync_folder
from nemo_simplerl.model.formats import torch_dist
from nemo_simplerl.model.formats.archive import list_files
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.grid import Grid
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects, of_first_rank
from nemo_simplerl.trainer.guard.faults import fault_point
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.saving import optimizer_state
from nemo_simplerl.trainer.saving.manifest import (
    Manifest,
    file_problems,
    read_manifest,
    read_values,
    share_of,
    versions,
    write_manifest,
)
from nemo_simplerl.trainer.saving.position import TrainingPosition, position_of
from nemo_simplerl.trainer.saving.record import StepRecord, head_from, read_record

LATEST = "latest"
RECORD = "step/record.npz"  # of the step after those that are done
AHEAD = "ahead/record.npz"  # of the one after that
_TENSOR_SIZE = "tensor_model_parallel_size"
_FIRST_RANK = "first_rank"  # 0 where a manifest of an earlier version does not say
_SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class Found:
    """A checkpoint whose every byte is as it was written. `notes`: why newer ones were passed over, in words."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Retention:
    """The checkpoints to keep: the newest `last`, steps that `every` divides (0: none), the best by metric `best`."""

    last: int
    every: int
    best: str | None


def partial_folder(folder: Path, position: TrainingPosition) -> Path:
    """The folder that a checkpoint is written to until it is complete."""
    return folder / f"{position.name}.partial"


def positions_on_disk(folder: Path) -> list[TrainingPosition]:
    """Training positions of the checkpoints in `folder`, in order. They were complete when they got their names."""
    return sorted(position for path in folder.glob("step_*") if (position := position_of(path.name)) is not None)


@dataclass(frozen=True)
class RoleFacts:
    """What the ranks of a role know of it: updates of its optimizer, those left out, and its layout."""

    updates: int
    skipped: int
    layout: dict[str, int]


def facts_of(learners: Mapping[str, Learner], group: dist.ProcessGroup | None = None) -> dict[str, RoleFacts]:
    """The facts of all roles of the group's ranks, by role. Collective over the group; None is the world.

    learners: of the roles that live on this rank.
    """
    mine = {role: RoleFacts(one.updates, one.skipped, layout_of(one.mesh.grid)) for role, one in learners.items()}
    found: dict[str, RoleFacts] = {}
    for share in gather_objects(mine, group or dist.group.WORLD, "checkpoint"):
        found |= share
    return found


def layout_of(grid: Grid) -> dict[str, int]:
    """Parallel sizes and first rank of a role, as a manifest holds them."""
    return {
        _TENSOR_SIZE: grid.tp_size,
        "pipeline_model_parallel_size": grid.pp_size,
        "data_parallel_size": grid.dp_size,
        _FIRST_RANK: grid.ranks.start,
    }


def manifest_of(position: TrainingPosition, roles: Mapping[str, RoleFacts], **facts: Any) -> Manifest:
    """The manifest of what all roles' learners hold now, without its files, which the saver adds.

    facts: the fields that the caller knows: weight_version, evaluation, config_xxh3; and prompts_passed, but for the
    warm start.
    """
    return Manifest(
        step=position.steps,
        updates_in_step=position.updates,
        updates={role: known.updates for role, known in roles.items()},
        skipped={role: known.skipped for role, known in roles.items()},
        layout=roles["actor"].layout,
        layouts={role: known.layout for role, known in roles.items()},
        versions=versions(),
        files={},
        **facts,
    )


def layouts_in_words(layouts: Mapping[str, Mapping[str, int]]) -> str:
    """The layouts of the roles as `TP2 x PP1 x DP4`, each with its role where they differ, and with its ranks where
    those do."""
    sizes = {role: [size for key, size in layout.items() if key != _FIRST_RANK] for role, layout in layouts.items()}
    words = {role: "TP{} x PP{} x DP{}".format(*of_role) for role, of_role in sizes.items()}
    firsts = {role: layout.get(_FIRST_RANK, 0) for role, layout in layouts.items()}
    ranks = {role: range(firsts[role], firsts[role] + math.prod(sizes[role])) for role in layouts}
    if len(set(ranks.values())) > 1:
        words = {role: f"{text} on {_in_words(ranks[role])}" for role, text in words.items()}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    return ", ".join(f"{role} {of_role}" for role, of_role in words.items())


def _in_words(ranks: range) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"


def find_intact(folder: Path, mesh: Mesh, group: dist.ProcessGroup | None = None) -> Found | None:
    """The checkpoint that `latest` names if every file is as it was written, else the newest intact one before it.

    None where there are no checkpoints. Those passed over are renamed to NAME.damaged, out of the way of the run that
    repeats their steps. Removes what interrupted saves left. Raises ValueError where none can be used. Collective over
    the group, to which rank 0 belongs; None is the world.
    """
    group = group or dist.group.WORLD
    positions, notes = of_first_rank(_candidates(folder) if mesh.rank == 0 else ([], []), "checkpoint", group)
    for index, position in enumerate(positions):
        path = folder / position.name
        manifest, problems = _examine(path, mesh.rank, group)
        if manifest is not None and not problems:
            if mesh.rank == 0:
                _set_aside(folder, positions[:index])
            return Found(path, manifest, tuple(notes))
        notes.append(f"{path.name} cannot be used: {_listed(problems)}.")
    if notes:
        raise ValueError(
            f"{folder} holds no checkpoint to resume from. {' '.join(notes)} Bring one back from a copy, or remove "
            "that folder to start over."
        )
    return None


def load(found: Found, learners: Mapping[str, Learner]) -> None:
    """Load weights and optimizer state of every role that lives on this rank into its parallel layout of this run. No
    communication."""
    saved = found.manifest
    for name, learner in learners.items():
        source = open_source(found.path, "checkpoint", critic=learner.gpt.is_critic)
        load_weights(learner.gpt, source, learner.mesh)
        optimizer_state.restore_state(
            learner,
            torch_dist.read_index(list_files(found.path / name), optimizer_state.FOLDER),
            source.hf,
            learner.mesh,
            tp_size=saved.layout_of(name)[_TENSOR_SIZE],
            updates=saved.updates[name],
            skipped=saved.skipped.get(name, 0),
        )


def load_record(found: Found, mesh: Mesh, name: str) -> StepRecord | None:
    """The checkpoint's record of this name, its parts dealt out to all ranks of the world; None where it has none.
    Collective.

    Raises ValueError, on all ranks, where it cannot be read.
    """
    if name not in found.manifest.files:
        return None
    path, head, problem = found.path / name, None, ""
    if mesh.rank == 0:
        try:
            head = head_from(path.read_bytes())
        except (OSError, ValueError) as error:
            problem = f"{path}: {error}"
    if problem := of_first_rank(problem, "checkpoint"):
        raise ValueError(problem)
    read = read_record(head, lambda name: path.parent / name, dist.group.WORLD)
    assert read is not None, "rank 0 has read its head"
    return read[0]


def commit(folder: Path, manifest: Manifest) -> None:
    """Complete a checkpoint whose files are in its partial folder: manifest, rename, then `latest`. On one rank.

    Raises OSError where that fails or a file is not there in its full size; older checkpoints and `latest` then stand.
    """
    partial, final = partial_folder(folder, manifest.position), folder / manifest.position.name
    for name, facts in manifest.files.items():
        if not (partial / name).is_file() or (partial / name).stat().st_size != facts.size:
            raise OSError(f"{partial / name} is not there in full; all nodes must share the run directory")
    for inner in [path for path in partial.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    write_manifest(partial, manifest)
    fault_point("checkpoint.rename")
    shutil.rmtree(final, ignore_errors=True)  # of a history that `latest` was turned back from
    os.replace(partial, final)
    sync_folder(folder)
    fault_point("checkpoint.latest")
    atomic_write(folder / LATEST, final.name + "\n")


def drop_old(folder: Path, newest: TrainingPosition, keep: Retention) -> None:
    """Remove checkpoints up to the newest that `keep` does not keep, and those within steps before it. On one rank.

    Raises OSError.
    """
    positions = positions_on_disk(folder)
    scores = {position.steps: _score(folder, position, keep.best) for position in positions if not position.updates}
    old = [position for position in positions if position.updates and position < newest]
    for position in [*old, *map(TrainingPosition, superseded(scores, newest.steps, keep))]:
        # Renamed first, so that a removal that is interrupted leaves no folder with a checkpoint's name.
        os.replace(folder / position.name, partial_folder(folder, position))
        shutil.rmtree(partial_folder(folder, position))


def superseded(scores: Mapping[int, float | None], newest: int, keep: Retention) -> list[int]:
    """The steps among `scores` whose checkpoints are to be removed. A score of None: it was not evaluated.

    Steps after `newest` belong to a history that the run has left, and are kept.
    """
    steps = sorted(step for step in scores if step <= newest)
    kept = {newest, *steps[-keep.last :]}
    if keep.every:
        kept.update(step for step in steps if step % keep.every == 0)
    if keep.best is not None:
        evaluated = [(score, step) for step in steps if (score := scores[step]) is not None]
        kept.update(step for _, step in [max(evaluated, default=(0.0, newest))])
    return [step for step in steps if step not in kept]


def _score(folder: Path, position: TrainingPosition, metric: str | None) -> float | None:
    """The metric that a checkpoint was evaluated with; None where it has none."""
    try:
        return read_values(folder / position.name)["evaluation"].get(metric)
    except (ValueError, KeyError, AttributeError):
        return None  # damaged, or with weights only: never the best


def _candidates(folder: Path) -> tuple[list[TrainingPosition], list[str]]:
    """Training positions to try, newest first, and notes on what is wrong with `latest`. Removes partial folders."""
    for partial in folder.glob("step_*.partial"):
        shutil.rmtree(partial)
    positions = positions_on_disk(folder)[::-1]
    if not (folder / LATEST).is_file():
        return positions, []
    name = (folder / LATEST).read_text(errors="replace").strip()
    named = position_of(name)
    if named not in positions:
        return positions, [f"{folder / LATEST} names {name[:80]!r}, which is not there."]
    return [position for position in positions if position <= named], []


def _examine(path: Path, rank: int, group: dist.ProcessGroup | None) -> tuple[Manifest | None, list[str]]:
    """The manifest, and what is wrong with it or the files. Each rank reads a share of the files. Collective."""
    manifest, problem = of_first_rank(_manifest_of(path) if rank == 0 else (None, ""), "checkpoint", group)
    if manifest is None:
        return None, [problem]
    mine = file_problems(path, share_of(manifest.files, rank, 1 if group is None else group.size()))
    return manifest, [problem for share in gather_objects(mine, group, "checkpoint") for problem in share]


def _manifest_of(path: Path) -> tuple[Manifest | None, str]:
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return None, str(error)
    if manifest.position.name != path.name:
        return None, f"its manifest is that of {manifest.position.in_words}"
    return manifest, ""


def _set_aside(folder: Path, positions: Sequence[TrainingPosition]) -> None:
    """Rename the checkpoints to NAME.damaged."""
    for position in positions:
        path = folder / position.name
        aside = path.with_suffix(".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)


def _listed(problems: Sequence[str]) -> str:
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return "; ".join(problems[:_SHOWN]) + more
