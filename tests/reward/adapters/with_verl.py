"""verl's reward manager scores a batch with this grader, as its configuration names it: prints what it makes of it.

Run by the Python of an environment with verl."""

import asyncio
import json
import sys

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

RESPONSES = [r"so \boxed{\frac12}", r"so \boxed{2}", "so it is 0.5"]


class Tokenizer:
    """Tokens are code points; 0 pads."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(int(token)) for token in ids)


def batch() -> DataProto:
    width = max(map(len, RESPONSES))
    ids = torch.zeros(len(RESPONSES), width, dtype=torch.long)
    for row, response in zip(ids, RESPONSES, strict=True):
        row[: len(response)] = torch.tensor([ord(character) for character in response])
    mask = torch.cat([torch.ones(len(RESPONSES), 2, dtype=torch.long), (ids > 0).long()], dim=1)
    return DataProto.from_dict(
        {"responses": ids, "attention_mask": mask},
        {
            "data_source": np.array(["math"] * 3, dtype=object),
            "reward_model": np.array([{"ground_truth": "0.5"}] * 3, dtype=object),
            "extra_info": np.array([{}, {}, {}], dtype=object),
        },
    )


async def scored(values: str) -> list[dict]:
    function = {"path": "pkg://nemo_simplerl.reward.adapters.verl", "name": "compute_score"}
    config = {
        "reward": {
            "custom_reward_function": function | {"reward_kwargs": {"values": values}},
            "reward_manager": {"source": "register", "name": sys.argv[1]},
        }
    }
    manager = load_reward_manager(OmegaConf.create(config), Tokenizer())
    data = batch()
    return await asyncio.gather(*(manager.run_single(data[row : row + 1]) for row in range(len(data))))


for values in ("recipe", "binary"):
    print("scored", values, json.dumps(asyncio.run(scored(values))))
