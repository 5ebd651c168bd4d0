"""`simplerl train`: runs PPO, after the warm start where one is configured, and writes the report at the end."""

import os
import time
from functools import partial

from nemo_simplerl.cli import report
from nemo_simplerl.cli.start.guard import is_first_rank
from nemo_simplerl.cli.start.launch import launch
from nemo_simplerl.config.run_dir import check_run_dir
from nemo_simplerl.config.schema import Config


def run(argv: list[str]) -> int:
    """Exit status of `simplerl train OVERRIDES`; 75 (EX_TEMPFAIL) where it was stopped: started again, it goes on."""
    return launch("train", argv, check_run_dir, partial(_start, time.monotonic()))


def _start(started: float, config: Config) -> int:
    # torch loads here, once the configuration is right and no other run is in the way
    from nemo_simplerl.trainer.start import start_training

    if not start_training(config, started):
        return os.EX_TEMPFAIL
    return report.run([config.trainer.run_dir]) if is_first_rank() else 0
