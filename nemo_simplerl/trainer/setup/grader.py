"""The grader of a run: workers on this machine, or the reward servers of reward.url."""

import logging
import os

import torch.distributed as dist

from nemo_simplerl.config.schema import RewardConfig
from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.reward.functions.pool import FunctionPool
from nemo_simplerl.reward.serving.client import TOKEN_VARIABLE, RewardClient
from nemo_simplerl.reward.serving.pool import RewardPool
from nemo_simplerl.user_functions import source_digest, user_function

log = logging.getLogger(__name__)

Grader = RewardPool | RewardClient


def build_grader(reward: RewardConfig, group: dist.ProcessGroup | None = None) -> Grader:
    """The grader of this rank. Collective over the ranks that grade; None is the world.

    Raises ValueError on every rank where one of them can use no reward server, and FunctionFails, which is one too,
    where reward.function cannot be loaded.
    """
    if reward.url is None:
        size = (reward.num_workers, reward.timeout_s, reward.memory_limit_mb)
        return RewardPool(*size) if reward.function is None else FunctionPool(reward.function, *size)
    digest = None if reward.function is None else source_digest(user_function(reward.function))
    client = RewardClient(reward.url, token=os.environ.get(TOKEN_VARIABLE), function=digest)
    refusal: str | None = None
    problems: list[str] = []
    try:
        problems = client.check()
    except ValueError as error:
        refusal = str(error)
    # Only the first rank's messages are shown, so it needs those of the others.
    for rank, (reason, warnings) in enumerate(gather_objects((refusal, problems), group or dist.group.WORLD)):
        if reason is not None:
            client.close()
            raise ValueError(f"rank {rank}: {reason}")
        for warning in warnings:
            log.warning(f"rank {rank}: {warning}")
    return client
