"""Checkpoints of the warm start: a killed one continues in any parallel layout and ends with the same weights."""

import itertools
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch.distributed as dist
import xxhash

from nemo_simplerl.config.overrides import PATH_KEYS
from nemo_simplerl.config.rules.runner import value_at
from nemo_simplerl.config.run_dir import weight_affecting_settings
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.sft import SftExample
from nemo_simplerl.files import reason_of
from nemo_simplerl.model.source import open_source, weights_fingerprint
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.saving import checkpoint
from nemo_simplerl.trainer.saving.manifest import Manifest
from nemo_simplerl.trainer.saving.position import TrainingPosition
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.warm_start.folder import checkpoints_of

log = logging.getLogger(__name__)

# Prefixes of the settings that decide the weights of a warm start.
_KEYS = ("model.", "sft.", "data.sft_path", "data.template", "data.prompt_trailing_newline", "trainer.seed")


class WarmStartSaves:
    """Saves `learner` every sft.save_every updates in a folder beside sft.output, until `delete`.

    Every method is collective over the ranks of the mesh, the actor's.
    """

    def __init__(self, config: Config, learner: Learner, examples: Sequence[SftExample], mesh: Mesh):
        self.folder = checkpoints_of(str(config.sft.output))
        self._learners, self._mesh, self._every = {"actor": learner}, mesh, config.sft.save_every
        origin = weights_fingerprint(open_source(config.model.path))
        self._digest, *self._older = (_digest(settings, origin, examples) for settings in settings_texts(config))
        self._saver = Saver(
            self.folder,
            mesh,
            group=mesh.role,
            model_folder=partial(model_folder, config),
            keep=checkpoint.Retention(1, 0, None),
            in_background=config.trainer.async_save,
        )

    def resume(self) -> int:
        """Restore the newest checkpoint of the same settings; returns its number of updates, 0 without one.

        Checkpoints of other settings are renamed, out of the way of the warm start that begins. Raises ValueError, on
        every rank, where they cannot be.
        """
        found = checkpoint.find_intact(self.folder, self._mesh, self._mesh.role)
        if found is None:
            return 0
        if found.manifest.config_xxh3 not in (self._digest, *self._older):
            aside = self._set_aside()
            log.warning(
                f"warm start: {self.folder} was begun with other settings and is left out; starting over. It is kept "
                f"as {aside}: remove that folder, or rename it back and give the settings that it was begun with."
            )
            return 0
        checkpoint.load(found, self._learners)
        log.info(f"warm start: resumed after update {found.manifest.step}")
        return found.manifest.step

    def save_if_due(self, update: int) -> None:
        """Save where sft.save_every asks for it after `update`, counted from 1; else advance the pending save."""
        is_due = self._every > 0 and update % self._every == 0
        if is_due or self._saver.is_pending:
            self._saver.finish_pending(block=False)
        if is_due:
            self._saver.save(self._learners, self._manifest(update))

    def save_now(self, update: int) -> None:
        """Save after `update` and wait for it. Raises NotSaved where the save fails."""
        self._saver.finish_pending(block=True)
        if self._saver.saved != TrainingPosition(update):
            self._saver.save(self._learners, self._manifest(update))
            self._saver.finish()

    def way_on(self) -> str:
        """From where the warm start goes on once it is started again, in words. Waits for the pending save."""
        self._saver.finish_pending(block=True)
        saved = checkpoint.positions_on_disk(self.folder)
        return f"it goes on after update {saved[-1].steps}" if saved else "its updates are made again"

    def delete(self) -> None:
        """Wait for the pending save, then remove the folder."""
        self._saver.finish_pending(block=True)
        if self._mesh.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        with waiting("barrier.forgotten"):
            dist.barrier(self._mesh.role)

    def _set_aside(self) -> Path:
        """Rename the folder; returns its new name."""
        aside, problem = self.folder, None
        if self._mesh.rank == 0:
            names = (self.folder.with_name(f"{self.folder.name}.other_{number}") for number in itertools.count(1))
            aside = next(path for path in names if not os.path.lexists(path))
            try:
                self.folder.rename(aside)
            except OSError as error:  # raised below on every rank
                problem = reason_of(error)
        aside, problem = of_first_rank((aside, problem), "checkpoint", self._mesh.role)
        if problem is not None:
            raise ValueError(
                f"{self.folder} is of a warm start with other settings and cannot be renamed: {problem}. Move it away, "
                "or choose another sft.output."
            )
        return aside

    def close(self) -> None:
        """Close the saver."""
        self._saver.close()

    def _manifest(self, update: int) -> Manifest:
        return checkpoint.manifest_of(
            TrainingPosition(update),
            checkpoint.facts_of(self._learners, self._mesh.role),
            weight_version=0,
            evaluation={},
            config_xxh3=self._digest,
        )


def settings_texts(config: Config) -> tuple[str, str]:
    """The settings that decide the weights, as text: as they are digested, and as versions before this one did.

    Paths are in the second alone, as they were typed: a project that moves has the same contents under other names.
    """
    settings = {key: value for key, value in weight_affecting_settings(config).items() if key.startswith(_KEYS)}
    typed = {key: value_at(config, key) for key in settings if key in PATH_KEYS}
    without_paths = {key: value for key, value in settings.items() if key not in PATH_KEYS}
    return repr(sorted(without_paths.items())), repr(sorted((settings | typed).items()))


def _digest(settings: str, origin: str, examples: Sequence[SftExample]) -> str:
    """Digest of what decides the weights, contents included: other files may have the same names."""
    hasher = xxhash.xxh3_64(f"{settings} {origin}".encode())
    for example in examples:
        for ids in (example.prompt_ids, example.response_ids):
            hasher.update(np.array([len(ids), *ids], dtype=np.int64))
    return hasher.hexdigest()
