"""Checkpoints of the warm start: killed, it goes on in any layout, and ends with the weights it would have had."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist
import xxhash

from nemo_simplerl.config.run_dir import weight_affecting_settings
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.sft import SftExample
from nemo_simplerl.model.source import open_source, weights_fingerprint
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.saving import checkpoint
from nemo_simplerl.trainer.saving.manifest import Manifest, versions
from nemo_simplerl.trainer.saving.position import Place
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.setup.prepare import model_folder

log = logging.getLogger(__name__)

# Of the keys that decide a run's weights, those that decide the warm start's.
_KEYS = ("model.", "sft.", "data.sft_path", "data.template", "data.prompt_trailing_newline", "trainer.seed")


class WarmStartSaves:
    """Saves `learner` every sft.save_every updates beside sft.output, in a folder that goes when the warm start ends.

    All ranks call alike.
    """

    def __init__(self, config: Config, learner: Learner, examples: Sequence[SftExample], mesh: Mesh):
        output = Path(str(config.sft.output))
        self.folder = output.with_name(f"{output.name}.checkpoints")
        self._learners, self._mesh, self._every = {"actor": learner}, mesh, config.sft.save_every
        asked = [(key, value) for key, value in weight_affecting_settings(config).items() if key.startswith(_KEYS)]
        self._digest = _digest(repr(sorted(asked)), weights_fingerprint(open_source(config.model.path)), examples)
        self._saver = Saver(
            self.folder,
            mesh,
            model_folder=model_folder(config),
            keep=checkpoint.Retention(1, 0, None),
            in_background=config.trainer.async_save,
        )

    def resume(self) -> int:
        """The updates that a checkpoint of the same settings has done, restored; 0 without one. Collective."""
        found = checkpoint.find_intact(self.folder, self._mesh)
        if found is None:
            return 0
        if found.manifest.config_xxh3 != self._digest:
            log.warning(f"warm start: {self.folder} was begun with other settings and is left out; starting over")
            self.forget()
            return 0
        checkpoint.load(found, self._learners, self._mesh)
        log.info(f"warm start: resumed after update {found.manifest.step}")
        return found.manifest.step

    def after(self, update: int) -> None:
        """Save where `update` (from 1) is one to save after. Collective."""
        is_due = self._every > 0 and update % self._every == 0
        if is_due or self._saver.is_pending:
            self._saver.settle(wait_for_it=False)
        if is_due:
            self._saver.save(self._learners, self._manifest(update))

    def leave(self, update: int) -> None:
        """Save after `update` in any case. Collective. Raises RuntimeError where the save fails."""
        self._saver.settle(wait_for_it=True)
        if self._saver.saved != Place(update):
            self._saver.save(self._learners, self._manifest(update))
            self._saver.finish()

    def forget(self) -> None:
        """Remove the folder. Collective."""
        self._saver.settle(wait_for_it=True)
        if self._mesh.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        with waiting("barrier.forgotten"):
            dist.barrier()

    def close(self) -> None:
        self._saver.close()

    def _manifest(self, update: int) -> Manifest:
        return Manifest(
            step=update,
            updates_in_step=0,
            weight_version=0,
            **checkpoint.counts_of(self._learners),
            layout=checkpoint.layout_of(self._mesh),
            evaluation={},
            versions=versions(),
            config_xxh3=self._digest,
            files={},
        )


def _digest(settings: str, origin: str, examples: Sequence[SftExample]) -> str:
    """Of what decides the weights: files may be others under their old names."""
    hasher = xxhash.xxh3_64(f"{settings} {origin}".encode())
    for example in examples:
        for ids in (example.prompt_ids, example.response_ids):
            hasher.update(np.array([len(ids), *ids], dtype=np.int64))
    return hasher.hexdigest()
