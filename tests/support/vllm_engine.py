"""Small models that vLLM computes on a CPU, its engine for them, and a double of the engine's process."""

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules.engines.vllm import engine_python
from nemo_simplerl.rollout.base import SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.own_process.handles import open_handles
from nemo_simplerl.rollout.refit import bucketed
from nemo_simplerl.rollout.vllm.engine import VllmEngine

EOS = 200  # of config.json; PROMPTS ends one with it, and the models repeat what they read
VOCAB, MAX_MODEL_LEN = 300, 200  # the vocabulary is no multiple of 64, to which vLLM pads it
GREEDY = SamplingParams(n=1, max_tokens=8, temperature=0.0, top_p=1.0, top_k=0, stop=(), stop_token_ids=())
PROMPTS = [[5, 9, 200], list(range(20, 60)), [299], [7, 7, 7, 7, 8]]


def python_with_vllm() -> str:
    """The Python of an environment with vLLM. Where there is none the test is skipped, and says why."""
    try:
        python = engine_python(None)
    except ValueError as error:
        pytest.skip(str(error))
    looks = "import sys, importlib.util as util; sys.exit(util.find_spec('vllm') is None)"
    if subprocess.run([python, "-c", looks]).returncode:
        pytest.skip(f"{python} has no vLLM; make an environment with `scripts/engine_env.sh vllm`")
    return python


def save_model(folder: Path, family: str = "qwen2", *, tied: bool = True, seed: int = 0, sharp: float = 3.0) -> Path:
    """A random model of two layers with heads of size 32. sharp: multiplies the embedding, so that tokens differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=EOS,
        bos_token_id=1,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.05)
    model.get_input_embeddings().weight.data *= sharp
    model.save_pretrained(folder)
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def buckets_of(weights: Mapping[str, Tensor], max_bytes: int = 50_000):
    return bucketed(weights.items(), max_bytes)


def make_engine(folder: Path, python: str, *, group=None, vocab_limit=None, tokenizer=None, start=None, **settings):
    """A VllmEngine on the CPU in float32."""
    values = {"python": python, "cpu_kv_cache_mb": 64, "start_timeout_s": 400.0, "timeout_s": 200.0} | settings
    return VllmEngine(
        folder,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_model_len=MAX_MODEL_LEN,
        settings=replace(compose(["experiment=quickstart"]).rollout.vllm, **values),
        group=group,
        vocab_limit=vocab_limit,
        **({} if start is None else {"start": start}),
    )


class DoubleProcess:
    """Holds what it is sent, as vLLM would, and answers with the ids 4, 5, 6, ... Put in the place of EngineProcess."""

    started = 0

    def __init__(self, python: str, environment: Mapping[str, str], name: str, folder: Path):
        type(self).started += 1
        self.name, self.folder, self.calls = name, folder, []
        self.held: dict[str, Tensor] = {}
        self.fault = lambda method, *args: None  # called before every call
        self.is_closed = False
        folder.mkdir()

    def call(self, method: str, *args, timeout_s: float):
        assert not self.is_closed
        self.calls.append((method, *args))
        self.fault(method, *args)
        return getattr(self, method)(*args)

    def start(self, arguments, vocab_limit):
        return [f"CPU-{rank}" for rank in range(arguments["tensor_parallel_size"])]

    def load(self, handles):
        for name, tensor in open_handles(handles[0], 0):
            self.held[name] = tensor.clone()

    def finish(self, version, digests):
        return [{name: digest(tensor) for name, tensor in self.held.items()}] if digests else []

    def generate(self, prompts, requests, version):
        ids = [list(range(4, 4 + given["max_tokens"])) for _, given in requests]
        return [(tokens, [-1.0] * len(tokens), "length") for tokens in ids]

    def close(self):
        self.is_closed = True
