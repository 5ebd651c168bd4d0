"""What the server that ranks are forked from imports before the first one: no rank imports it again.

A training rank's own work is one second, its imports are two. Nothing here may start a thread, which a fork would lose.
"""

import multiprocessing

PRELOAD = [
    "torch",
    "pytest",
    "transformers.models.qwen2.modeling_qwen2",
    "torch.profiler",
    "torch.utils.serialization",
    "hydra.compose",
    "nemo_simplerl.cli.report",
    "nemo_simplerl.model.conversion.convert",
    "nemo_simplerl.model.conversion.verify",
    "nemo_simplerl.trainer.offline.benchmark",
    "nemo_simplerl.trainer.offline.teacher",
    "nemo_simplerl.trainer.start",
]


def fork_context() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are forked from the server; the first of them starts it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context
