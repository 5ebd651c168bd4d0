"""A rank that does what a training rank does, without a model: phases, collectives, a reward worker. Run as a script.

Megatron stays out: on a busy machine it takes half a minute to import.
watched_rank.py RUN_DIR OVERRIDE... ; SIMPLERL_FAULTS as in guard.faults; the ranks in FAILS raise in actor_update.
"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from nemo_simplerl.config.load import compose
from nemo_simplerl.parallel.reductions import gather_objects
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
    with watched(trainer, rank, dist.get_world_size()), RewardPool(1, 20.0, 1024) as pool, report_failures(), faults:
        for step in range(2):
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


if __name__ == "__main__":
    main(*sys.argv[1:])
