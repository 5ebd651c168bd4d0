"""The work every side of step.py is given: shapes, prompts, response lengths, and the model and tokenizer on disk.

A model of the Qwen2 family in float32, random weights. 8 responses a prompt; prompts of 40 to 56 tokens. `fixed`: 96
tokens each. `varied`: geometric with mean 96, cut at 256; a response ends at its given length, by an EOS as its last
token.
"""

import json
import math
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

SAMPLES_PER_PROMPT = 8
UPDATE = 64  # samples an optimizer step
MICRO_BATCH = 16  # samples, where a side does not pack
LEARNING_RATE, KL_COEF, GAMMA, LAM, CLIP = 1e-6, 0.01, 1.0, 0.95, 0.2
FIXED_LENGTH, LONGEST = 96, 256
PAD, EOS, BOS, UNK = range(4)


@dataclass(frozen=True)
class Shape:
    num_layers: int
    hidden_size: int
    num_heads: int
    num_groups: int
    ffn_size: int
    vocab_size: int
    num_prompts: int


SHAPES = {
    "S": Shape(4, 128, 4, 2, 384, 512, num_prompts=32),
    "M": Shape(8, 512, 8, 2, 1536, 4096, num_prompts=8),
}


@dataclass(frozen=True)
class Work:
    shape: Shape
    prompts: list[list[int]]
    lengths: list[int]  # of each response, prompt-major
    is_varied: bool

    @property
    def longest(self) -> int:
        return LONGEST if self.is_varied else FIXED_LENGTH

    @property
    def prompt_of(self) -> list[list[int]]:
        """The prompt of each response."""
        return [prompt for prompt in self.prompts for _ in range(SAMPLES_PER_PROMPT)]


def work_of(model: str, variant: str, num_prompts: int | None = None) -> Work:
    shape = SHAPES[model]
    rng = random.Random(1234)
    prompts = [
        [rng.randint(4, shape.vocab_size - 1) for _ in range(rng.randint(40, 56))]
        for _ in range(num_prompts or shape.num_prompts)
    ]
    rng = random.Random(4321)
    per_token = math.log(1 - 1 / 96)
    lengths = [
        min(LONGEST, int(math.log(1 - rng.random()) / per_token) + 1) for _ in range(SAMPLES_PER_PROMPT * len(prompts))
    ]
    is_varied = variant == "varied"
    return Work(shape, prompts, lengths if is_varied else [FIXED_LENGTH] * len(lengths), is_varied)


def reward(response: list[int]) -> float:
    """The share of tokens whose id is a multiple of 7."""
    return sum(token % 7 == 0 for token in response) / len(response)


def hf_config(shape: Shape, **more):
    from transformers import Qwen2Config

    return Qwen2Config(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_groups,
        intermediate_size=shape.ffn_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
        **more,
    )


def tokenizer_of(shape: Shape):
    """Word-level: "t17 t400" is the ids 17 and 400."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<eos>": EOS, "<bos>": BOS, "<unk>": UNK}
    words = special | {f"t{index}": index for index in range(4, shape.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
    )


def save_model(shape: Shape, folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(hf_config(shape)).save_pretrained(folder)
    tokenizer_of(shape).save_pretrained(folder)


class Turns:
    """A side's end of the pipe to step.py: it reports that it is built, then takes a step for every line of stdin.

    Reports go to stdout; what libraries print goes to stderr from here on.
    """

    def __init__(self):
        self._stdout, sys.stdout = sys.stdout, sys.stderr

    def ready(self, **versions: str) -> None:
        """Report that the side is built, and from which packages."""
        self._answer(versions)

    def begin(self) -> bool:
        """Wait for the next turn; False where there is none."""
        is_asked = bool(sys.stdin.readline())
        self._began = time.perf_counter(), machine_seconds(), own_seconds()
        return is_asked

    def end(self, **phases: float) -> None:
        """Report the seconds of the step and of its phases, and the share of the processors that worked for others."""
        began, busy, own = self._began
        seconds = time.perf_counter() - began
        others = machine_seconds() - busy - (own_seconds() - own)
        self._answer({"step": seconds, "others": max(others, 0.0) / seconds / (os.cpu_count() or 1), **phases})

    def _answer(self, record: dict) -> None:
        print(json.dumps(record), file=self._stdout, flush=True)


def machine_seconds() -> float:
    """Processor seconds that this machine has worked, or had taken away by its host."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process and the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
