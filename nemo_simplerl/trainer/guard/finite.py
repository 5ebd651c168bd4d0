"""NaN and infinity: an update that has one is left out and saved for inspection, a rollout that has one ends the run.

Legend: B samples of this data rank, T predicted tokens.
"""

import io
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.data.batch import Batch, MicroBatch
from nemo_simplerl.files import Unessential, atomic_write
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import any_rank, gather_objects

log = logging.getLogger(__name__)

FOLDER = "bad_updates"  # in the run directory


def not_finite(metrics: Mapping[str, float], grad_norm: float) -> list[str]:
    """Names of the metrics, `grad_norm` among them, that are NaN or infinite."""
    return [name for name, value in {**metrics, "grad_norm": grad_norm}.items() if not math.isfinite(value)]


@dataclass(frozen=True)
class BadUpdates:
    """Saves the micro-batches of one model's updates that are left out, and ends the run past a limit of them.

    `folder` is shared by all ranks and models. An update that a resumed run leaves out again overwrites its own file,
    so a run counts each update once however often it was stopped.
    """

    folder: Path
    role: str
    first_step: int  # of the model's first update
    updates_per_step: int
    limit: int  # of updates left out, over the run and all models

    def record(self, update: int, micro_batches: Sequence[MicroBatch], names: Sequence[str], mesh: Mesh) -> None:
        """Save the micro-batches of the model's update `update`, counted from 0. Collective.

        names: the metrics that are not finite. Raises RuntimeError on every rank past the limit.
        """
        steps, within = divmod(update, self.updates_per_step)
        step = self.first_step + steps
        stem = f"step_{step:06d}_{self.role}_{within + 1}"
        facts = {"step": step, "role": self.role, "update": within + 1, "rank": mesh.rank, "not_finite": list(names)}
        path = self.folder / f"{stem}_rank{mesh.rank}.pt"
        with Unessential().write(f"{FOLDER}/{path.name}", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch()  # it counts, also where a full disk has no room for its content
            write_micro_batches(path, micro_batches, facts)
        # A shared disk may show one rank more than another: the largest count is the true one.
        count = max(gather_objects(len(_left_out(self.folder)), mesh.role, "updates_left_out"))
        what = (
            f"step {step}: {self.role} update {within + 1} was left out, since {', '.join(names) or 'a number'} is not "
            f"finite; its micro-batches are in {self.folder}/{stem}_rank*.pt"
        )
        if count > self.limit:
            raise RuntimeError(
                f"{what}. That makes {count} updates, and trainer.max_bad_updates={self.limit}. Look at those files; "
                "a lower learning rate or clip_grad, or fp32, often helps."
            )
        log.warning(f"{what} ({count} of at most {self.limit})")


def delete_bad_updates(run_dir: str | Path, roles: Sequence[str], after: int) -> None:
    """Remove the files of the roles' updates in steps after step `after`: the run makes those steps again."""
    for path in (Path(run_dir) / FOLDER).glob("step_*.pt"):
        match = re.match(r"step_(\d+)_([a-z]+)_", path.name)
        if match and match[2] in roles and int(match[1]) > after:
            path.unlink()


def write_micro_batches(path: Path, micro_batches: Sequence[MicroBatch], facts: Mapping[str, object]) -> None:
    """Save micro-batches and `facts`. Tensors are copied to host memory, without the larger ones they are views of."""
    rows = [
        {field.name: getattr(micro, field.name).detach().cpu().clone() for field in fields(Batch)}
        | {"columns": {name: column_BT.detach().cpu().clone() for name, column_BT in micro.columns.items()}}
        | {"rows": micro.rows.cpu().clone(), "is_packed": micro.is_packed}
        for micro in micro_batches
    ]
    stream = io.BytesIO()
    torch.save({**facts, "micro_batches": rows}, stream)
    atomic_write(path, stream.getvalue())


def read_micro_batches(path: Path) -> list[MicroBatch]:
    """The micro-batches that `write_micro_batches` saved."""
    return [MicroBatch(**row) for row in torch.load(path, weights_only=True)["micro_batches"]]


def require_finite(columns_BT: Mapping[str, Tensor], rows: Sequence[int], n: int, step: int, mesh: Mesh) -> None:
    """Raise RuntimeError on every rank, naming the samples, where a column has a number that is not finite. Collective.

    rows: for each row of the columns its sample's index in the rollout, which holds `n` samples of each prompt in turn.
    """
    bad = {name: (~column_BT.isfinite()).any(dim=1) for name, column_BT in columns_BT.items()}
    if not any_rank(any(bool(is_bad_B.any()) for is_bad_B in bad.values()), mesh.device, mesh.role):
        return
    mine = {name: [rows[row] for row in is_bad_B.nonzero()[:, 0].tolist()] for name, is_bad_B in bad.items()}
    shares = gather_objects(mine, mesh.data, "samples_not_finite")
    found = {name: sorted({sample for share in shares for sample in share[name]}) for name in columns_BT}
    listed = "; ".join(f"{name} of {_samples(samples, n)}" for name, samples in found.items() if samples)
    raise RuntimeError(
        f"step {step}: not finite before any update: {listed or 'a number of another replica'}. They would spoil every "
        "advantage of the rollout. Look at the weights of the last checkpoint, and at these prompts."
    )


def _samples(samples: Sequence[int], n: int) -> str:
    shown = ", ".join(f"sample {sample} (prompt {sample // n}, completion {sample % n})" for sample in samples[:8])
    return shown + (f" and {len(samples) - 8} more" if len(samples) > 8 else "")


def _left_out(folder: Path) -> set[str]:
    """Names of the updates that were left out; each has one file for every rank."""
    return {match[1] for path in folder.glob("step_*.pt") if (match := re.fullmatch(r"(.+)_rank\d+\.pt", path.name))}
