"""Run a function on several real gloo ranks and collect what each returns.

Ranks are forked from a server that has imported everything (support.fork_server): a world of four starts in well under
a second instead of importing everything four times.
"""

import gc
import io
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.fork_server import fork_context  # noqa: E402
from support.ports import free_port  # noqa: E402


def run_ranks(function: Callable, world_size: int, *args, timeout_s: float = 240) -> list:
    """`function(*args)` in `world_size` processes with torchrun's environment. Returns the results in rank order.

    Raises AssertionError with the tracebacks of the ranks that failed, or when a rank outlives `timeout_s`.
    """
    context = fork_context()
    port = free_port()
    pipes, processes = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe()
        process = context.Process(target=_rank_main, args=(function, rank, world_size, port, sender, args), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        answers = [_receive(pipe, timeout_s) for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
    failures = [f"rank {rank} failed:\n{value}" for rank, (ok, value) in enumerate(answers) if not ok]
    assert not failures, "\n".join(failures)
    return [value for _, value in answers]


def _receive(pipe, timeout_s: float) -> tuple:
    if not pipe.poll(timeout_s):
        return False, f"it gave no answer in {timeout_s} s"
    try:
        return torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
    except EOFError:
        return False, "it died without an answer"


def _rank_main(function, rank, world_size, port, sender, args) -> None:
    gc.freeze()  # what was imported is not walked, and so not copied, whenever garbage is collected
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        answer = (True, function(*args))
    except BaseException:
        answer = (False, traceback.format_exc())
    # Bytes, not tensors: torch would share memory that vanishes with this process.
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    sender.send_bytes(buffer.getvalue())
    if answer[0]:
        # A rank that leaves closes sockets its peers may still read from: all stay until each has answered.
        with suppress(EOFError, OSError):
            sender.recv_bytes()
    for child in multiprocessing.active_children():  # Megatron's checkpoints leave writers behind
        child.kill()
    # Leaving without interpreter teardown: peers may still hold sockets of a world that failed.
    os._exit(0)
