"""The time line of a run: from when to when each rank was in which phase, and what it waited for.

With SIMPLERL_TRACE=1 in the environment each rank appends an event a line to RUN_DIR/trace/rank_N.jsonl, as a phase or
a wait ends. The events are those of Chrome's trace format, which ui.perfetto.dev draws: `jq -s . RUN_DIR/trace/*.jsonl
> trace.json`.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_simplerl.files import reason_of, room_in
from nemo_simplerl.parallel.waits import Wait, waiting

VARIABLE = "SIMPLERL_TRACE"
FOLDER = "trace"  # in the run directory


@contextmanager
def traced(run_dir: Path, rank: int) -> Iterator[None]:
    """Inside, write the phases and waits of this process's main thread, where SIMPLERL_TRACE asks for it.

    Times are microseconds since 1970, so that ranks of several machines compare as well as their clocks do. Raises
    ValueError where the file cannot be written.
    """
    if os.environ.get(VARIABLE, "0") == "0":
        yield
        return
    path = run_dir / FOLDER / f"rank_{rank}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", buffering=1)
    except OSError as error:
        raise ValueError(f"SIMPLERL_TRACE: {path} cannot be written: {reason_of(error)}. {room_in(run_dir)}.") from None
    since_1970_s = time.time() - time.monotonic()

    def write(wait: Wait, ended: float) -> None:
        begins_us, lasts_us = round((wait.since + since_1970_s) * 1e6), round((ended - wait.since) * 1e6)
        event = {"name": wait.name, "ph": "X", "pid": rank, "tid": 0, "ts": begins_us, "dur": lasts_us}
        file.write(json.dumps(event) + "\n")

    with file:
        waiting.on_leave = write
        try:
            yield
        finally:
            waiting.on_leave = None
