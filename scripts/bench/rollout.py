"""The embedded rollout engine against one padded `generate` call of transformers, or vLLM. Prints one JSON line.

usage: python scripts/bench/rollout.py [MAX_BATCH_SIZE]     (sequences decoded at once; default: all, 128)
       python scripts/bench/rollout.py --against vllm [MAX_BATCH_SIZE]     (default: all, 512)

Without --against, both sample the same prompts from the same random models, and responses of the same lengths. The
lengths are geometric: the models' final norm is 0, so every token is as probable as any other, and one token in 96 is a
stop token; the engine's draws, and with them its lengths, follow from its seeds. The transformers call is given these
lengths, and ends when its last response does. Zeros cost a matrix product as much as other numbers.

The engine's time is that of the fastest of three calls, transformers' that of its one call. `wasted_share` is the share
of rows in the engine's decoding steps that brought no token of a response.

Against vLLM, which runs in the environment that scripts/engine_env.sh makes, the engines take turns, each call behind a
refit as in a run; what counts is the fastest call of each. Each samples by its own draws from the same seeds,
so their responses differ; their lengths are of one distribution. `--models` and `--rounds` measure less.
"""

import argparse
import dataclasses
import json
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import closing

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, StoppingCriteria, StoppingCriteriaList

from nemo_simplerl.config.load import compose
from nemo_simplerl.rollout.base import Completion, RolloutEngine, SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine

NUM_PROMPTS, SAMPLES = 32, 4
PROMPT_TOKENS = (16, 64)
MAX_TOKENS = 256
STOP_EVERY = 96  # the mean length before the cap
REPEATS = 3
# hidden_size, num_hidden_layers, intermediate_size, vocab_size
MODELS = {"quickstart": (128, 4, 384, 5 * STOP_EVERY), "larger": (384, 6, 1024, 50 * STOP_EVERY)}


class EndAt(StoppingCriteria):
    """Ends each row at a length of its own."""

    def __init__(self, prompt_columns: int, lengths_B: torch.Tensor):
        self.ends_B = prompt_columns + lengths_B

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends_B


def against_transformers(max_batch_size: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = random.Random(0)
    results = {}
    for name, (hidden_size, num_layers, ffn_size, vocab_size) in MODELS.items():
        prompts = [rng.choices(range(1, vocab_size), k=rng.randint(*PROMPT_TOKENS)) for _ in range(NUM_PROMPTS)]
        model = random_model(hidden_size, num_layers, ffn_size, vocab_size).to(device)
        results[name] = compare(model, prompts, max_batch_size, device)
    print(
        json.dumps(
            {
                "bench": "rollout",
                "device": str(device),
                "threads": torch.get_num_threads(),
                "samples": NUM_PROMPTS * SAMPLES,
                "max_batch_size": max_batch_size,
                **results,
            }
        )
    )


def against_vllm(max_batch_size: int, models: list[str], rounds: int) -> None:
    results = {}
    for name in models:
        hidden_size, num_layers, ffn_size, vocab_size = MODELS[name]
        rng = random.Random(0)
        prompts = [rng.choices(range(1, vocab_size), k=rng.randint(*PROMPT_TOKENS)) for _ in range(2 * NUM_PROMPTS)]
        model = random_model(hidden_size, num_layers, ffn_size, vocab_size)
        for dtype in (torch.float32, torch.bfloat16):
            found = take_turns(model.to(dtype), prompts, max_batch_size, rounds)
            results[f"{name} {str(dtype).removeprefix('torch.')}"] = found
    print(
        json.dumps(
            {
                "bench": "rollout",
                "against": "vllm",
                "threads": torch.get_num_threads(),
                "samples": len(prompts) * 2 * SAMPLES,
                "max_batch_size": max_batch_size,
                "rounds": rounds,
                **results,
            }
        )
    )


def take_turns(model: torch.nn.Module, prompts: list[list[int]], max_batch_size: int, rounds: int) -> dict[str, float]:
    """Tokens per second of both engines with one model on the CPU, and ours over vLLM's."""
    from nemo_simplerl.rollout.vllm.engine import VllmEngine

    settings = compose(["model.path=none", "data.train_path=none.jsonl"]).rollout.vllm
    settings = dataclasses.replace(settings, max_batch_size=max_batch_size, cpu_kv_cache_mb=1024)
    params, seeds = sampling(model, 2 * SAMPLES), list(range(len(prompts) * 2 * SAMPLES))
    values = {"tokenizer": None, "device": torch.device("cpu"), "dtype": model.dtype}
    longest = PROMPT_TOKENS[1] + MAX_TOKENS
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        ours = HfEngine(folder, max_batch_size=max_batch_size, **values)
        theirs = VllmEngine(folder, settings=settings, group=None, max_model_len=longest, **values)
    with closing(theirs):
        speeds: dict[str, list[float]] = {"hf": [], "vllm": []}
        for version in range(rounds):
            for name, engine in (("hf", ours), ("vllm", theirs)):
                engine.refit([[(name, param.detach()) for name, param in model.named_parameters()]], version)
                speeds[name].append(tokens_per_second(engine, prompts, params, seeds))
    best = {name: round(max(of_engine)) for name, of_engine in speeds.items()}
    return {"parameters": model.num_parameters(), **best, "ratio": round(best["hf"] / best["vllm"], 2)}


def tokens_per_second(
    engine: RolloutEngine, prompts: list[list[int]], params: SamplingParams, seeds: list[int]
) -> float:
    started = time.perf_counter()
    completions = engine.generate(prompts, params, seeds)
    return sum(len(completion.token_ids) for completion in completions) / (time.perf_counter() - started)


def sampling(model: torch.nn.Module, samples: int) -> SamplingParams:
    """So many samples of each prompt, which end at one token in STOP_EVERY."""
    return SamplingParams(
        n=samples,
        max_tokens=MAX_TOKENS,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        stop=(),
        stop_token_ids=tuple(range(model.config.vocab_size // STOP_EVERY)),
    )


def random_model(hidden_size: int, num_layers: int, ffn_size: int, vocab_size: int) -> torch.nn.Module:
    """A Qwen2 model that gives every token the same probability."""
    config = Qwen2Config(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        intermediate_size=ffn_size,
        vocab_size=vocab_size,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=2,
        max_position_embeddings=PROMPT_TOKENS[1] + MAX_TOKENS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    torch.nn.init.zeros_(model.model.norm.weight)
    return model


def compare(
    model: torch.nn.Module, prompts: list[list[int]], max_batch_size: int, device: torch.device
) -> dict[str, float]:
    """Figures of the engine and of transformers on one model."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        engine = HfEngine(folder, tokenizer=None, max_batch_size=max_batch_size, device=device)
    engine.refit([list(model.named_parameters())], 0)
    shapes = []
    engine._model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    params = sampling(model, SAMPLES)
    seeds = list(range(len(prompts) * SAMPLES))
    seconds, completions = fastest(lambda: engine.generate(prompts, params, seeds))
    decoded_rows = sum(height for height, columns in shapes if columns == 1) / REPEATS
    started = time.perf_counter()
    generate_padded(model, prompts, completions, device)
    theirs = time.perf_counter() - started
    lengths = [len(completion.token_ids) for completion in completions]
    return {
        "parameters": sum(param.numel() for param in model.parameters()),
        "length_mean": round(sum(lengths) / len(lengths), 1),
        "samples_per_second": round(len(seeds) / seconds, 2),
        "tokens_per_second": round(sum(lengths) / seconds),
        # The first token of a response comes from its prompt's pass.
        "wasted_share": round(1 - sum(length - 1 for length in lengths) / decoded_rows, 4),
        "transformers_samples_per_second": round(len(seeds) / theirs, 2),
        "ratio": round(theirs / seconds, 2),
    }


def fastest(call: Callable[[], list[Completion]]) -> tuple[float, list[Completion]]:
    """Seconds of the fastest of a few calls, and the last result."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        answer = call()
        times.append(time.perf_counter() - started)
    return min(times), answer


@torch.inference_mode()
def generate_padded(
    model: torch.nn.Module, prompts: list[list[int]], completions: list[Completion], device: torch.device
) -> list[list[int]]:
    """Token ids from one call of transformers for all samples, prompts padded on the left."""
    columns = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (columns - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (columns - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    lengths_B = torch.tensor([len(completion.token_ids) for completion in completions], device=device)
    return model.generate(
        ids.repeat_interleave(SAMPLES, 0),
        attention_mask=mask.repeat_interleave(SAMPLES, 0),
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_TOKENS,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([EndAt(columns, lengths_B)]),
    ).tolist()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("max_batch_size", type=int, nargs="?")
    parser.add_argument("--against", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--models", choices=tuple(MODELS), nargs="+", default=[*MODELS])
    parser.add_argument("--rounds", type=int, default=REPEATS)
    args = parser.parse_args()
    if args.against == "vllm":
        against_vllm(args.max_batch_size or 4 * NUM_PROMPTS * SAMPLES, args.models, args.rounds)
    else:
        against_transformers(args.max_batch_size or NUM_PROMPTS * SAMPLES)
