"""Saving while training continues: the state is copied to host memory, and a thread on each rank writes the copy.

Optimizer state that waits in host memory (learners.offload) is not copied but written from where it is: updates that
are made meanwhile work on copies on the device, and their results wait until it is written.

Each rank writes its share of the roles that live on it. The threads do not communicate. The ranks agree on their main
threads that all have written; rank 0's thread then completes the checkpoint.
"""

import errno
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.files import NotSaved, reason_of, room_in
from nemo_simplerl.model.conversion import shards
from nemo_simplerl.model.formats import torch_dist
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.readers.nemo import HF_FILES, WEIGHTS
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.guard.faults import fault_point
from nemo_simplerl.trainer.learners.host_memory import pinned_like
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.saving import optimizer_state
from nemo_simplerl.trainer.saving.checkpoint import Retention, commit, drop_old, partial_folder
from nemo_simplerl.trainer.saving.manifest import FileFacts, HashedFolder, Manifest
from nemo_simplerl.trainer.saving.position import TrainingPosition

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Block:
    """A block of a global tensor, or an object, to be written under a key."""

    key: str
    tensor: Tensor | None  # None: an object
    value: Any
    global_shape: tuple[int, ...]
    offsets: tuple[int, ...]


@dataclass
class _Blocks:
    """The blocks that a rank writes into one of its files, in order. rank: its number among those of the role."""

    rank: int
    items: list[_Block] = field(default_factory=list)

    def add(self, key: str, tensor: Tensor, global_shape: Sequence[int], offsets: Sequence[int]) -> None:
        self.items.append(_Block(key, tensor.detach(), None, tuple(global_shape), tuple(offsets)))

    def add_object(self, key: str, value: Any) -> None:
        self.items.append(_Block(key, None, value, (), ()))

    @property
    def num_bytes(self) -> int:
        return sum(block.tensor.nbytes for block in self.items if block.tensor is not None)

    def write(self, file: torch_dist.RankFile) -> None:
        for block in self.items:
            if block.tensor is None:
                file.add_object(block.key, block.value)
            else:
                file.add(block.key, block.tensor, block.global_shape, block.offsets)


@dataclass(frozen=True)
class _Share:
    """The files that one rank has written, or why it has not."""

    num_bytes: int
    written: dict[str, list[torch_dist.WrittenBlock]]  # by the folder whose index lists them
    files: dict[str, FileFacts]
    problem: str | None


@dataclass(frozen=True)
class _Pending:
    """Work on this rank's thread; `then` is called on every rank with the results of all ranks."""

    position: TrainingPosition
    future: Future
    then: Callable[[list], "_Pending | None"]


class HostCopies:
    """Host copies of tensors, in memory that is reused: copying into fresh memory takes several times as long.

    Pinned where the tensors are on a GPU, so that copies run at the full speed of the bus. plan/memory.py counts them.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple, Tensor] = {}

    def copy(self, folder: str, blocks: _Blocks, in_place: Set[int]) -> _Blocks:
        """The blocks with each tensor replaced by its copy, which is complete once the device is synchronised.

        in_place: addresses of storages whose tensors need no copy.
        """

        def is_copied(block: _Block) -> bool:
            return block.tensor is not None and block.tensor.untyped_storage().data_ptr() not in in_place

        missing = {
            self._place(folder, block): block.tensor
            for block in blocks.items
            if is_copied(block) and self._place(folder, block) not in self._kept
        }
        self._kept |= zip(missing, pinned_like(list(missing.values())), strict=True)
        items = [self._copied(folder, block) if is_copied(block) else block for block in blocks.items]
        return replace(blocks, items=items)

    def _copied(self, folder: str, block: _Block) -> _Block:
        copy = self._kept[self._place(folder, block)]
        return replace(block, tensor=copy.copy_(block.tensor, non_blocking=True))

    def _place(self, folder: str, block: _Block) -> tuple:
        return folder, block.key, block.offsets


class Saver:
    """Writes the checkpoints of a run into `folder`, one at a time, and removes those that `keep` does not keep.

    A save that fails is logged and leaves older checkpoints untouched; the next one tries again.
    mesh: the actor's. group: of the ranks that save together; None is the world.
    model_folder: the folder of a role's config.json, tokenizer and so on, which are packed beside its weights.
    in_background: `save` returns when the state is copied; without it, when the state is on disk, and no copy is made.
    on_complete: called with the position of each complete checkpoint, on rank 0's thread; its OSErrors are logged.
    """

    def __init__(
        self,
        folder: Path,
        mesh: Mesh,
        *,
        group: dist.ProcessGroup | None = None,
        model_folder: Callable[[str], Path],
        keep: Retention,
        in_background: bool,
        on_complete: Callable[[TrainingPosition], None] = lambda position: None,
    ):
        self._folder, self._mesh, self._model_folder, self._keep = folder, mesh, model_folder, keep
        self._of_group = group
        self._on_complete = on_complete
        self._copies = HostCopies() if in_background else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._closing = threading.Event()
        self._pending: _Pending | None = None
        self._failure: str | None = None  # of the last save
        self.saved: TrainingPosition | None = None  # the last that is complete

    @property
    def _group(self) -> dist.ProcessGroup | None:
        return self._of_group or dist.group.WORLD

    @property
    def is_pending(self) -> bool:
        """Whether a save has begun and is not complete."""
        return self._pending is not None

    def save(
        self, learners: Mapping[str, Learner], manifest: Manifest, files: Mapping[str, bytes] | None = None
    ) -> None:
        """Finish the pending save, then begin to write what the learners hold now. Collective.

        learners: of the roles that live on this rank. manifest: of all roles, without its files. files: further files
        by name, which this rank writes as they are.
        """
        self.finish_pending(block=True)
        blocks = self._blocks(learners)
        offloads = [learner.offload for learner in learners.values() if learner.offload is not None]
        if self._copies is not None:
            in_place = set[int]().union(*(offload.storages() for offload in offloads))
            blocks = {folder: self._copies.copy(folder, part, in_place) for folder, part in blocks.items()}
            if self._mesh.device.type == "cuda":
                torch.cuda.synchronize()
        has_room = self._has_room(sum(part.num_bytes for part in blocks.values()))
        future = self._thread.submit(self._write, manifest.position, blocks, learners, files or {}, has_room)
        for offload in offloads:
            offload.lend(future)
        self._pending = _Pending(manifest.position, future, partial(self._all_written, manifest))
        if self._copies is None:
            self.finish_pending(block=True)

    def finish_pending(self, *, block: bool) -> None:
        """Advance the pending save as far as the threads of all ranks have come; `block`: to its end. Collective."""
        while self._pending is not None:
            if block:
                with waiting("checkpoint.writers"):
                    wait([self._pending.future])
            future = self._pending.future
            results = gather_objects(future.result() if future.done() else None, self._group, "checkpoint")
            if any(result is None for result in results):
                return
            self._pending = self._pending.then(results)

    def finish(self) -> None:
        """Wait for the last save. Collective. Raises NotSaved where it failed, since no later save tries again."""
        self.finish_pending(block=True)
        if self._failure is not None:
            raise NotSaved(
                f"the last checkpoint of the run could not be saved: {self._failure}. Make room, and start the same "
                "command again: it goes on from the checkpoint before."
            )

    def close(self) -> None:
        """End the thread; what it is writing is abandoned, and removed."""
        self._closing.set()
        self._thread.shutdown()
        if self._pending is not None and self._mesh.rank == 0:
            shutil.rmtree(partial_folder(self._folder, self._pending.position), ignore_errors=True)

    def _blocks(self, learners: Mapping[str, Learner]) -> dict[str, _Blocks]:
        """The learners' live tensors as blocks, by the folder whose index lists them."""
        found: dict[str, _Blocks] = {}
        for role, learner in learners.items():
            mesh = learner.mesh
            hf, rank = read_hf_config(self._model_folder(role)), mesh.role.rank()
            weights, optimizer = _Blocks(rank), _Blocks(rank)
            if mesh.dp_rank == 0:
                shards.add_shards(weights, learner.gpt, hf, mesh)
            optimizer_state.add_state(optimizer, learner, hf, mesh)
            found |= {f"{role}/{WEIGHTS}": weights, f"{role}/{optimizer_state.FOLDER}": optimizer}
        return found

    def _write(
        self,
        position: TrainingPosition,
        blocks: Mapping[str, _Blocks],
        learners: Mapping[str, Learner],
        files: Mapping[str, bytes],
        has_room: bool,
    ) -> _Share:
        """Write this rank's files, and what is not sharded of the roles whose first rank it is. On the thread."""
        target = self._target(position)
        written: dict[str, list[torch_dist.WrittenBlock]] = {}
        problem = None
        try:
            if not has_room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for folder, part in blocks.items():
                written[folder] = self._write_rank_file(target, folder, part) if part.items else []
            for role, learner in learners.items():
                if learner.mesh.role.rank() == 0:
                    self._write_rest(target, role, learner, position)
            for name, content in files.items():
                with target.create(name) as stream:
                    stream.write(content)
        except Exception as error:  # rank 0 logs it when the save ends
            problem = _in_words(error)
        return _Share(sum(part.num_bytes for part in blocks.values()), written, target.files, problem)

    def _has_room(self, num_bytes: int) -> bool:
        """Whether the shares of all ranks fit together: begun, they would fill the disk that the run's log needs.

        num_bytes: of this rank's. Collective: no rank writes before all have looked.
        """
        try:
            place = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
            free = shutil.disk_usage(place).free
        except OSError:  # the thread meets it too, and its problem reaches every rank
            free = sys.maxsize
        counts, rooms = zip(*gather_objects((num_bytes, free), self._group, "checkpoint"), strict=True)
        return sum(counts) <= min(rooms)

    def _write_rank_file(self, target: HashedFolder, folder: str, blocks: _Blocks) -> list[torch_dist.WrittenBlock]:
        name = torch_dist.rank_file_name(blocks.rank)
        with target.create(f"{folder}/{name}") as stream:
            file = torch_dist.RankFile(stream, name)
            blocks.write(file)
        return file.written

    def _write_rest(self, target: HashedFolder, role: str, learner: Learner, position: TrainingPosition) -> None:
        folder = self._model_folder(role)
        hf, files = read_hf_config(folder), shards.small_files_of_model(folder, learner.gpt.is_critic)
        tokenizer = (self._folder / position.name / role / HF_FILES).absolute()
        shards.write_config_files(lambda name: target.create(f"{role}/{name}"), learner.gpt, hf, files, str(tokenizer))

    def _all_written(self, manifest: Manifest, shares: list[_Share]) -> _Pending | None:
        num_bytes = sum(share.num_bytes for share in shares)
        problems = [f"rank {rank}: {share.problem}" for rank, share in enumerate(shares) if share.problem is not None]
        if problems:
            return self._end(manifest.position, num_bytes, [problems])
        future = self._thread.submit(self._commit, manifest, shares)
        return _Pending(manifest.position, future, partial(self._end, manifest.position, num_bytes))

    def _commit(self, manifest: Manifest, shares: Sequence[_Share]) -> list[str]:
        """Write indices and manifest, complete the checkpoint, remove old ones; on rank 0. Returns the problems."""
        if self._mesh.rank != 0:
            return []
        target = self._target(manifest.position)
        try:
            for folder in dict.fromkeys(folder for share in shares for folder in share.written):
                written = [item for share in shares for item in share.written.get(folder, ())]
                torch_dist.write_index(lambda name, folder=folder: target.create(f"{folder}/{name}"), written)
            files = target.files
            for share in shares:
                files |= share.files
            commit(self._folder, replace(manifest, files=dict(sorted(files.items()))))
        except (OSError, RuntimeError) as error:  # torch.save turns the first into the second
            return [_in_words(error)]
        try:
            drop_old(self._folder, manifest.position, self._keep)
            self._on_complete(manifest.position)
        except OSError as error:
            log.warning(f"an old checkpoint or journal could not be removed: {_in_words(error)}.")
        return []

    def _end(self, position: TrainingPosition, num_bytes: int, problems: Sequence[list[str]]) -> None:
        """Record the result of the save; after a failed one, remove its files and log why."""
        self._failure = "; ".join(problems[0]) or None
        if self._failure is None:
            self.saved = position
            return
        if self._mesh.rank == 0:
            self._clean_up(position, num_bytes)
        # The next save may be of the same position, and no rank may begin it while the first still removes this one.
        with waiting("barrier.checkpoint"):
            dist.barrier(self._group)

    def _clean_up(self, position: TrainingPosition, num_bytes: int) -> None:
        shutil.rmtree(partial_folder(self._folder, position), ignore_errors=True)
        log.warning(
            f"the checkpoint of {position.in_words} was NOT saved: {self._failure}. It takes {num_bytes / 1e9:.3g} GB "
            f"and {room_in(self._folder)}. Older checkpoints are untouched and the next save tries again; make room or "
            "mend the disk before it."
        )

    def _target(self, position: TrainingPosition) -> HashedFolder:
        return HashedFolder(
            partial_folder(self._folder, position), self._raise_if_closing, partial(fault_point, "checkpoint.write")
        )

    def _raise_if_closing(self) -> None:
        if self._closing.is_set():
            raise InterruptedError("the run ended before it was written")


def _in_words(error: Exception) -> str:
    return reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
