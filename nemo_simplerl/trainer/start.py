"""`simplerl train` and `simplerl sft` on one rank of the world."""

import time
from contextlib import ExitStack, closing
from pathlib import Path

from nemo_simplerl.config.load import to_dict
from nemo_simplerl.config.schema import Config
from nemo_simplerl.trainer.guard.stop import Stop, Stopping
from nemo_simplerl.trainer.guard.watchdog import report_failures
from nemo_simplerl.trainer.logging.run_log import MessageLog
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.logging.wandb_log import WandbLog
from nemo_simplerl.trainer.loop import train
from nemo_simplerl.trainer.open_run import open_run
from nemo_simplerl.trainer.setup.world import join_world
from nemo_simplerl.trainer.warm_start.run import StoppedEarly, stoppable_warm_start


def start_training(config: Config, started: float | None = None) -> bool:
    """Train, after the warm start where there is one. False where the run was stopped before its end and can go on.

    started: time.monotonic() when the process began; now, where it is not given. Raises ValueError for input that
    cannot be used.
    """
    started = time.monotonic() if started is None else started
    with join_world(config) as world:
        try:
            with open_run(config, world, started) as run, report_failures(), run.stop:
                try:
                    train(run)
                except Stopping as asked:
                    run.save_and_stop(str(asked))
                    return False
        except StoppedEarly:
            return False
    return True


def start_warm_start(config: Config, started: float | None = None) -> bool:
    """Run the warm start alone. False where it was stopped before its end and can go on; `started` as above.

    Raises ValueError for input that cannot be used.
    """
    started = time.monotonic() if started is None else started
    trainer, run_dir = config.trainer, Path(config.trainer.run_dir)
    with join_world(config) as world, ExitStack() as opened:
        is_first_rank = world.rank == 0
        opened.enter_context(messages_to(print, is_first_rank=is_first_rank, keep=MessageLog(run_dir)))
        stop = Stop(run_dir, is_first_rank=is_first_rank, max_time=trainer.max_time, started=started)
        wandb = None
        if is_first_rank:
            stop.delete_files()
            if trainer.wandb.enabled:
                wandb = WandbLog(trainer.wandb, run_dir, to_dict(config))
                opened.enter_context(closing(wandb))
        try:
            stoppable_warm_start(config, world.actor, wandb, stop)
        except StoppedEarly:
            return False
    return True
