"""Executes a planned step on pretended GPUs, in a child process, and holds the plan's formula against it.

Neither torch nor Megatron is imported here: the child lies to torch about CUDA.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_simplerl.dry import shim
from nemo_simplerl.dry.findings import Execution, execution_of
from nemo_simplerl.dry.sample import at_depth, depths, overrides_of, ranks_of, sample_of
from nemo_simplerl.dry.shim import Unavailable
from nemo_simplerl.plan.layout import Layout
from nemo_simplerl.python_child import module_command

_CHILD = module_command("nemo_simplerl.dry.child")[1:]
EXECUTED = "executed "  # begins the child's lines of progress
Tell = Callable[[str], None]


def execute(
    overrides: Sequence[str], layout: Layout, *, full: bool = False, tell: Tell = lambda line: None
) -> Execution:
    """Execute a step of the run that `overrides` describe, laid out as `layout`, which is possible.

    full: all layers, where otherwise a few are executed and the others extrapolated. Takes minutes for a large model.
    tell: called with a line after every rank that was executed.
    Raises Unavailable, with the reason, where that cannot be done here.
    """
    return executions([(overrides, layout)], full=full, tell=tell)[0]


def executions(
    runs: Sequence[tuple[Sequence[str], Layout]], *, full: bool = False, tell: Tell = lambda line: None
) -> list[Execution]:
    """`execute` of several runs in one child process."""
    shim.require_tested()
    for _, layout in runs:
        if layout.cluster.gpu.is_cpu:
            raise Unavailable("ranks on CPUs train as they are: start the run itself")
        if not layout.places.is_shared:
            raise Unavailable("roles on ranks of their own (placement) send each other values, which a dry run has not")
        if layout.critic_cut is not None:
            raise Unavailable("a critic in a layout of its own gets its samples by values, which a dry run has not")
    started = time.monotonic()
    cases = [cases_of(overrides, layout, full, name=str(index)) for index, (overrides, layout) in enumerate(runs)]
    results = in_child([case for of_run in cases for case in of_run], tell=tell)
    seconds = time.monotonic() - started
    return [
        execution_of(layout, [result for result in results if result["layout"] == str(index)], seconds)
        for index, (_, layout) in enumerate(runs)
    ]


def cases_of(overrides: Sequence[str], layout: Layout, full: bool, name: str) -> list[dict[str, Any]]:
    """What the child is to execute: every rank of `ranks_of` on the shallowest model, one of each stage on the others.

    Ranks of one stage hold the same; on one depth they are compared for the order of their collectives.
    """
    sample, small = sample_of(layout)
    cases = []
    for depth in depths(layout, full):
        of_depth = at_depth(small, depth)
        ranks = ranks_of(layout)
        if depth != depths(layout, full)[0]:
            stage_size = layout.tensor * layout.data
            ranks = [rank for rank in ranks if rank % stage_size == 0]
        cases += [
            {
                "layout": name,
                "rank": rank,
                "world_size": layout.cluster.world_size,
                "overrides": [*overrides, *overrides_of(small)],
                "shape": asdict(of_depth.shape),
                "critic_shape": None if of_depth.critic_shape is None else asdict(of_depth.critic_shape),
                "sample": asdict(sample),
            }
            for rank in ranks
        ]
    return cases


def in_child(
    cases: list[dict[str, Any]], child: Sequence[str] = _CHILD, tell: Tell = lambda line: None
) -> list[dict[str, Any]]:
    """The results of the cases, executed in one child process. child: what python is to start. tell: as of `execute`.

    Raises Unavailable where the library cannot be compiled, and where the child dies.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder, "request.json"), Path(folder, "result.json")
        request.write_text(json.dumps({"library": str(shim.built()), "cases": cases}))
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *child, str(request), str(result)]
        status, problems = _run(command, environment, tell)
        found: list[dict[str, Any]] = json.loads(result.read_text()) if result.exists() else []
    if len(found) < len(cases):
        lines = problems.strip().splitlines() or ["it said nothing"]
        raise Unavailable(f"the child process ended with status {status}: {lines[-1]}")
    return found


def _run(command: Sequence[str], environment: dict[str, str], tell: Tell) -> tuple[int, str]:
    """The exit status and stderr of a command, whose lines of progress are told as they come."""
    with tempfile.TemporaryFile("w+", errors="replace") as problems:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=problems, text=True, errors="replace", env=environment
        ) as process:
            try:
                for line in process.stdout or ():
                    if line.startswith(EXECUTED):
                        tell(line.rstrip())
            except BaseException:
                process.kill()
                raise
        problems.seek(0)
        return process.returncode, problems.read()
