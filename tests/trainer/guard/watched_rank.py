"""A rank that does what a training rank does, without a model: phases, collectives, a reward worker. Run as a script.

Megatron stays out: on a busy machine it takes half a minute to import.
watched_rank.py RUN_DIR OVERRIDE... ; SIMPLERL_FAULTS as in guard.faults; the ranks in FAILS raise in actor_update. With
PLACES=actor,critic,engine each rank is of one of these roles, and they wait for each other.
"""

import os
import signal
import sys
import time
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from nemo_simplerl.config.load import compose
from nemo_simplerl.parallel.exchange import exchange
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.reward.serving.pool import RewardPool
from nemo_simplerl.trainer.guard.faults import Faults, fault_point, installed
from nemo_simplerl.trainer.guard.watchdog import report_failures, watched
from nemo_simplerl.trainer.logging.timing import PhaseTimer


def main(run_dir: str, *overrides: str) -> None:
    trainer = compose(["experiment=quickstart", f"trainer.run_dir={run_dir}", *overrides]).trainer
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank = dist.get_rank()
    signal.signal(signal.SIGTERM, lambda *_: None)  # as in training: torchrun sends it as soon as a rank has died
    timer = PhaseTimer(on_enter=fault_point)
    faults = installed(Faults.parse(os.environ.get("SIMPLERL_FAULTS", ""), rank))
    roles = [os.environ["PLACES"].split(",")[rank]] if "PLACES" in os.environ else []
    watch = watched(trainer, rank, dist.get_world_size(), roles)
    with waiting("start"):
        grader = nullcontext() if roles else RewardPool(1, 20.0, 1024)
    with watch, grader as pool, report_failures(), faults:
        for step in range(2):
            if roles:
                _step_apart(roles[0], timer)
                continue
            with timer("rollout"):
                gather_objects(step, dist.group.WORLD, "completions")
            with timer("reward"):
                pool.grade([("1", r"\boxed{1}")])
            with timer("actor_update"):
                if str(rank) in os.environ.get("FAILS", "").split(","):
                    raise RuntimeError("the loss is sour")
                dist.all_reduce(torch.ones(4))
                if "WRONG" in os.environ:
                    raise ValueError(f"wrong input for rank {rank}")
        dist.barrier()
        time.sleep(0.5)  # a rank that closes its sockets may break the barrier of another
    print("the end", flush=True)


def _step_apart(role: str, timer: PhaseTimer) -> None:
    """Sampling, values and both updates, each by its role alone: one rank each, in the order of the roles."""

    def works(phase: str, of: str) -> None:
        if role == of:
            with timer(phase):
                time.sleep(0.1)

    works("rollout", "engine")
    gather_objects(role, dist.group.WORLD, "announce")
    works("old_logprobs", "actor")
    works("values", "critic")
    numbers = np.ones(4, np.float32)
    sends, receives = {"critic": ({0: lambda: [numbers]}, {}), "actor": ({}, {1: [(np.float32, 4)]})}.get(
        role, ({}, {})
    )
    exchange(sends, receives, dist.group.WORLD, "rows")
    works("critic_update", "critic")
    works("actor_update", "actor")
    gather_objects(role, dist.group.WORLD)


if __name__ == "__main__":
    main(*sys.argv[1:])
