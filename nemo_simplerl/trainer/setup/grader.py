"""The grader of a run: workers on this machine, or the reward servers of reward.url."""

import logging
import os

import torch.distributed as dist

from nemo_simplerl.config.schema import RewardConfig
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.reward.serving.client import TOKEN_VARIABLE, RewardClient
from nemo_simplerl.reward.serving.pool import RewardPool

log = logging.getLogger(__name__)

Grader = RewardPool | RewardClient


def build_grader(reward: RewardConfig) -> Grader:
    """The grader of this rank. Collective.

    Raises ValueError on every rank where one of them can use no reward server.
    """
    if reward.url is None:
        return RewardPool(reward.num_workers, timeout_s=reward.timeout_s, memory_limit_mb=reward.memory_limit_mb)
    client = RewardClient(reward.url, token=os.environ.get(TOKEN_VARIABLE))
    refusal: str | None = None
    problems: list[str] = []
    try:
        problems = client.check()
    except ValueError as error:
        refusal = str(error)
    # Only the first rank's messages are shown, so it needs those of the others.
    for rank, (reason, warnings) in enumerate(gather_objects((refusal, problems), dist.group.WORLD)):
        if reason is not None:
            client.close()
            raise ValueError(f"rank {rank}: {reason}")
        for warning in warnings:
            log.warning(f"rank {rank}: {warning}")
    return client
