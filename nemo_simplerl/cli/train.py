"""`simplerl train`: runs PPO, after the warm start where one is configured, and writes the report at the end."""

import os
import sys
import time
from functools import partial
from pathlib import Path

from nemo_simplerl.cli import report
from nemo_simplerl.cli.start.guard import is_first_rank
from nemo_simplerl.cli.start.launch import launch
from nemo_simplerl.config.run_dir import check_run_dir
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.examples import check_examples
from nemo_simplerl.data.rows import read_rows
from nemo_simplerl.data.sampler import require_enough
from nemo_simplerl.files import reason_of


def run(argv: list[str]) -> int:
    """Exit status of `simplerl train OVERRIDES`; 75 (EX_TEMPFAIL) where it was stopped: started again, it goes on."""
    return launch("train", argv, _check, partial(_start, time.monotonic()))


def _check(config: Config) -> None:
    """Raises ValueError for a directory of another run, worked examples that are none, and too few problems to sample
    others in place of some."""
    check_run_dir(config)
    check_examples(config)
    data, rollout = config.data, config.rollout
    if rollout.keep_groups == "mixed" and Path(data.train_path).is_file():
        require_enough(len(read_rows(data.train_path)), data.rollout_batch_size, rollout.max_rounds)


def _start(started: float, config: Config) -> int:
    # torch loads here, once the configuration is right and no other run is in the way
    from nemo_simplerl.trainer.start import start_training

    if not start_training(config, started):
        return os.EX_TEMPFAIL
    if is_first_rank():
        _report(config.trainer.run_dir)
    return 0


def _report(run_dir: str) -> None:
    """Write the report of a run that has come to its end, which does without it: what is in the way is told."""
    try:
        report.run([run_dir])
    except (OSError, ValueError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else error
        print(f"the report was NOT written: {reason}. The run is complete; simplerl report writes it", file=sys.stderr)
