"""Writes the README's table of experiments by size from what `simplerl plan` computes for the GPUs each is for.

usage: python scripts/bench/sizes.py          (seconds; nothing is measured and nothing is downloaded)
"""

import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from page import rows  # noqa: E402

from nemo_simplerl.plan.gpus import gpu  # noqa: E402
from nemo_simplerl.plan.layout import Cluster  # noqa: E402
from nemo_simplerl.plan.plan import make_plan  # noqa: E402
from nemo_simplerl.plan.report import Plan  # noqa: E402

README = Path(__file__).resolve().parents[2] / "README.md"
GIB = 2**30
# Experiment: the GPUs that it is for, in words; nodes, GPUs of each, and the one with the least memory of that kind.
HARDWARE = {
    "simplerl_zero_qwen2.5_0.5b": ("24 GB", 1, 1, "a10-24g"),
    "simplerl_zero_qwen2.5_1.5b": ("80 GB", 1, 1, "h100-80g"),
    "simplerl_zero_qwen3_4b": ("4 x 80 GB", 1, 4, "h100-80g"),
    "simplerl_zero_qwen2.5_math_7b": ("8 x 80 GB", 1, 8, "h100-80g"),
    "simplerl_zero_llama3.1_8b_instruct": ("8 x 80 GB", 1, 8, "h100-80g"),
    "simplerl_zero_qwen2.5_32b": ("4 x 8 x 80 GB", 4, 8, "h100-80g"),
}


@cache
def plan_of(experiment: str, *overrides: str) -> Plan:
    """The plan of an experiment, on the hardware that it is for."""
    _, nodes, ranks, name = HARDWARE[experiment]
    cluster = Cluster(nodes=nodes, gpus_per_node=ranks, gpu=gpu(name, ranks))
    return make_plan([f"experiment={experiment}", *overrides], cluster)


def table() -> str:
    found: list[tuple] = [("experiment", "GPUs", "GiB of each", "GiB of a host", "seconds")]
    for experiment, (words, *_) in HARDWARE.items():
        plan = plan_of(experiment)
        memory, time = plan.memory, plan.time
        if memory is None or time is None:
            raise ValueError(f"{experiment} does not run on {words}: {'; '.join(plan.problems)}")
        used = f"{memory.worst.peak / GIB:.0f} of {memory.capacity / GIB:.0f}"
        seconds = f"{round(time.total.low, -1):.0f} to {round(time.total.high, -1):.0f}"
        found.append((f"`{experiment}`", words, used, f"{sum(memory.host.values()) / GIB:.0f}", seconds))
    return rows(*found)


def filled(text: str) -> str:
    """The page with the table of today in place of the one it has."""
    return re.sub(r"^\| experiment \|.*\n(?:\|.*\n)*", f"{table()}\n", text, flags=re.M)


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
