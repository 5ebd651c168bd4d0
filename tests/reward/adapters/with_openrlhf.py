"""OpenRLHF's own executor fetches rewards from this grader: of the function in FILE, or of the server at URL.

Run by the Python of an environment with OpenRLHF. Its package imports DeepSpeed, which needs a compiler for GPUs: the
two modules that ask for rewards are loaded without it."""

import asyncio
import json
import sys
from importlib.metadata import files
from types import ModuleType

import torch

(folder,) = {file.locate().parent for file in files("openrlhf") if str(file).endswith("openrlhf/utils/agent.py")}
for name, place in (("openrlhf", folder.parent), ("openrlhf.utils", folder)):
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(place)]

from openrlhf.utils.agent import SingleTurnAgentExecutor  # noqa: E402

PROMPT = r"Put your answer in \boxed{0.5}. Half of 1? "


class Tokenizer:
    """Tokens are code points, and decoding puts a special token before them."""

    def __call__(self, text, **_):
        return {"input_ids": torch.tensor([[ord(character) for character in text]])}

    def decode(self, ids, skip_special_tokens):
        return "<s>" + "".join(map(chr, ids))


class Engine:
    def __init__(self, response):
        self.response = response

    async def generate(self, prompt_ids, params, multi_modal_data):
        output = type("Output", (), {"token_ids": [ord(character) for character in self.response], "logprobs": None})
        output.finish_reason = "stop"
        return type("Request", (), {"outputs": [output]})


async def rewarded(response):
    params = type("Params", (), {"max_tokens": 100, "logprobs": None})()
    executor = SingleTurnAgentExecutor(sys.argv[1])
    found = await executor.execute(PROMPT, "0.5", params, 1000, Tokenizer(), Engine(response))
    return [float(torch.tensor(found[name]).flatten()[0]) for name in ("reward", "scores")]


responses = [r"so \boxed{\frac12}", r"so \boxed{2}", "so it is 0.5"]
print("rewarded", json.dumps([asyncio.run(rewarded(response)) for response in responses]))
