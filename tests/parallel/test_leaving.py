"""Ranks leave the world together."""

import time

from nemo_simplerl.parallel.mesh import build_mesh, destroy_mesh, leave_together
from support.ranks import run_ranks


def _arrive_and_leave() -> tuple[float, float]:
    """Seconds at which this rank called leave_together and returned from it; the second rank calls it late."""
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60
    )
    time.sleep(0.5 * mesh.rank)
    arrived = time.monotonic()
    leave_together()
    left = time.monotonic()
    destroy_mesh()
    return arrived, left


def test_no_rank_leaves_before_the_last_has_come():
    times = run_ranks(_arrive_and_leave, 2)
    assert min(left for _, left in times) >= max(arrived for arrived, _ in times)
