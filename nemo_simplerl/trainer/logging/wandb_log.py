"""Metrics and samples of a run at Weights & Biases, beside the run's own files.

One run directory is one run there: its id is kept in `wandb_id`. The first call that fails is logged, all are counted,
and training goes on; metrics.jsonl has everything in any case.
"""

import logging
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_simplerl.config.schema import WandbConfig
from nemo_simplerl.files import atomic_write
from nemo_simplerl.trainer.guard.stop import Stopping

log = logging.getLogger(__name__)

ID_FILE = "wandb_id"
COLUMNS = ("id", "prompt", "response", "gold", "verdict", "reward", "length", "finish_reason")
MAX_SAMPLES = 64  # rows of a table, spread evenly over the step's samples
FINISH_TIMEOUT_S = 60.0  # for what is not sent yet when the run ends


class WandbLog:
    """A run at Weights & Biases: the one that the run directory has begun, else a new one.

    Where the server cannot be reached at the start, the run is written offline.
    `failures` counts the calls that failed.
    """

    def __init__(self, settings: WandbConfig, run_dir: Path, config: Mapping[str, Any]):
        self.failures = 0
        self._samples_every, self._folder = settings.samples_every, run_dir / "wandb"
        self._run: Any = None
        for mode in dict.fromkeys((settings.mode, "offline")):
            self._try(lambda mode=mode: self._open(settings, mode, config))
            if self._run is not None:
                log.info(f"Weights & Biases: {f'offline, in {self._folder}' if self._run.offline else self._run.url}")
                break

    def metrics(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Send a step's metrics under their own names; those that are None are left out."""
        self._send(step, {name: value for name, value in numbers.items() if value is not None})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send a table of some of a step's samples, every trainer.wandb.samples_every steps.

        After a table that failed no more are sent: wandb asks the server about each, and waits long for no answer.
        """
        if self._samples_every and step % self._samples_every == 0:
            before = self.failures
            self._try(lambda: self._send(step, {"samples": _table(rows)}))
            if self.failures > before:
                self._samples_every = 0

    def close(self) -> None:
        """Send what is left, and log how many calls failed."""
        error = sys.exc_info()[1]
        exit_code = 0 if error is None or isinstance(error, Stopping) else 1
        if self._run is not None:
            self._try(lambda: self._run.finish(exit_code=exit_code))
        if self.failures:
            log.warning(f"Weights & Biases: {self.failures} calls failed; `wandb sync` sends what is in {self._folder}")

    def _open(self, settings: WandbConfig, mode: str | None, config: Mapping[str, Any]) -> None:
        import wandb  # an optional package, which takes a second

        run_dir = self._folder.parent
        if self.failures:
            wandb.teardown()  # the service still holds the id of the run that it could not begin
        self._run = wandb.init(
            project=settings.project,
            name=settings.name or run_dir.resolve().name,
            group=settings.group,
            id=_id_of(run_dir),
            resume=None if mode == "offline" else "allow",
            mode=mode,
            dir=run_dir,
            config=dict(config),
            # wandb must neither capture what the run prints nor wait for a network that is gone.
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True
            ),
        )
        # wandb's own count of steps cannot go back, as that of a resumed run does.
        self._run.define_metric("*", step_metric="step")

    def _send(self, step: int, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log({"step": step, **values}))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # of the network, the account or wandb's process: none may end the training
            self.failures += 1
            if self.failures == 1:
                log.warning(f"Weights & Biases failed, and the run goes on ({type(error).__name__}: {error})")


def _id_of(run_dir: Path) -> str:
    path = run_dir / ID_FILE
    if not path.is_file():
        atomic_write(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    chosen = rows[:: max(-(-len(rows) // MAX_SAMPLES), 1)]
    return wandb.Table(columns=list(COLUMNS), data=[[row[name] for name in COLUMNS] for row in chosen])
