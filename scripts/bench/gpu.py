"""One GPU: model FLOPs utilisation of an actor's passes, refit and rollout of the hf engine. Prints one JSON line.

usage: python scripts/bench/gpu.py [--models 0.5B,1.5B,7B] [--parts update,logprobs,refit,rollout] [--peak TFLOPS]
                                    [--repeats N] [--limit-s N] [--local-layers]
       python scripts/bench/gpu.py --smoke                    (a toy model, also on a CPU: shows that it runs)

Qwen2.5's shapes with random weights in bf16, on one rank, with Transformer Engine's layers where it imports, unless
--local-layers asks for the ones of torch alone. Of 7B there are 8 of 28 layers: weights, gradients and Adam's moments
take 18 bytes a parameter, and all of them do not fit one GPU. Every figure is of the layers that ran, whose number is
`layers`. The work: 64 sequences of 256 + 768 tokens, four to a packed row of 4,096; `update` is one actor update over
them (16 rows, clipping and Adam's step), `logprobs` the pass without gradients, `refit` every weight into the engine,
with digests and without, `rollout_B` for three batch sizes B as many responses of 256 tokens, decoded at once, eight to
a prompt of 256. Medians of passes after one that is not counted; of a rollout one call after a short one.

mfu = model FLOPs / seconds / peak. Model FLOPs of a forward pass, for sequences of s tokens of which r are predicted:
    2 L (h (a + 2 g) d + a d h + 3 h f) s  +  2 L a d s^2  +  2 V h r
(L layers, h hidden size, a query heads, g key-value groups, d head size, f MLP width, V vocabulary): the layers'
matrices; both products of attention, 4 L a d s^2, halved for the causal mask; the output layer, which works for
predicted tokens alone. An update counts three of them: nothing for what is computed twice, nor for Adam. `peak` is the
bf16 peak without sparsity, known for the H100 SXM and the H200 (989 TFLOP/s); give it with --peak for others.

Each part's figures also go to stderr as they come. A part without enough memory prints `out_of_memory`, one that would
begin after --limit-s seconds `skipped`, and the next one follows. `build` and, before a rollout, `refit` are not left
out. On a device whose peak is not known, `mfu` is null.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from transformers import Qwen2Config

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.model.network.provider import build_gpt_model, kernel_options, use_transformer_engine
from nemo_simplerl.parallel.mesh import Mesh, destroy_mesh
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.shapes import attention_width, qkv_width
from nemo_simplerl.rollout.base import Completion, SamplingParams
from nemo_simplerl.rollout.hf.engine import HfEngine
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.logging.timing import PhaseTimer
from nemo_simplerl.trainer.setup.world import mesh_of

PEAKS = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12}  # FLOP/s by the device's name
MODELS = {
    "0.5B": KNOWN_MODELS["Qwen2.5-0.5B"],
    "1.5B": KNOWN_MODELS["Qwen2.5-1.5B"],
    "7B": replace(KNOWN_MODELS["Qwen2.5-7B"], num_layers=8),
}
TOY = ModelShape(
    num_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=128,
    vocab_size=256,
    max_position_embeddings=128,
    tied=True,
    model_type="qwen2",
)
BUCKET_BYTES = 2**29
Figures = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Work:
    samples: int
    prompt_tokens: int
    response_tokens: int
    row_tokens: int
    rollout_batches: tuple[int, ...]  # sequences decoded at once
    rollout_samples: int  # of each prompt
    rollout_tokens: int  # of each response


FULL = Work(64, 256, 768, 4096, rollout_batches=(64, 208, 384), rollout_samples=8, rollout_tokens=256)
SMALL = Work(8, 8, 24, 64, rollout_batches=(2, 4, 6), rollout_samples=2, rollout_tokens=8)
PARTS = ("update", "logprobs", "refit", "rollout")


class Clock:
    """Runs the parts one by one, within a limit of seconds for all, and prints each one's figures to stderr."""

    def __init__(self, limit_s: float):
        self._ends = time.monotonic() + limit_s

    def run(self, model: str, part: str, work: Callable[[], Figures]) -> Figures:
        figures = self._figures(work)
        print(json.dumps({"model": model, "part": part, **figures}), file=sys.stderr, flush=True)
        return figures

    def _figures(self, work: Callable[[], Figures]) -> Figures:
        if time.monotonic() > self._ends:
            return {"skipped": "the time was up"}
        try:
            return work()
        except torch.OutOfMemoryError as error:
            message = str(error).splitlines()[0]
        release()  # here the error's frames, and with them their tensors, are gone
        return {"out_of_memory": message}


def main() -> None:
    args = arguments()
    shapes = {"toy": TOY} if args.smoke else {name: MODELS[name] for name in args.models.split(",")}
    work = SMALL if args.smoke else FULL
    config = configuration(work)
    mesh = mesh_of(config.actor, config.trainer.distributed_timeout_s)
    clock = Clock(args.limit_s)
    models = {name: measure(name, shape, work, config, mesh, args, clock) for name, shape in shapes.items()}
    destroy_mesh()
    print(
        json.dumps(
            {
                "bench": "gpu",
                "device": torch.cuda.get_device_name() if mesh.device.type == "cuda" else "cpu",
                "torch": torch.__version__,
                "transformer_engine": args.transformer_engine,
                "peak": args.peak,
                "work": vars(work),
                "models": models,
            }
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--peak", type=float, help="TFLOP/s in bf16, of a device that is not known here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit-s", type=float, default=400)
    parser.add_argument("--local-layers", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    args.transformer_engine = use_transformer_engine(False if args.local_layers else None, torch.bfloat16)
    if odd := sorted(set(args.models.split(",")) - set(MODELS)):
        parser.error(f"--models knows {', '.join(MODELS)}, not {', '.join(odd)}")
    args.parts = args.parts.split(",")
    if odd := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"--parts knows {', '.join(PARTS)}, not {', '.join(odd)}")
    args.peak = args.peak * 1e12 if args.peak else None
    if not args.smoke:
        if not torch.cuda.is_available():
            parser.error("no CUDA device is visible; --smoke runs the same code in a toy size on the CPU")
        args.peak = args.peak or PEAKS.get(torch.cuda.get_device_name())
    return args


def configuration(work: Work) -> Config:
    values = {
        "actor.micro_batch_tokens": work.row_tokens,
        "actor.forward_micro_batch_tokens": work.row_tokens,
        "actor.global_batch_size": work.samples,
        "algo.kl_coef": 0,  # no reference in host memory
        "algo.ratio_tolerance": "null",
    }
    return compose(["experiment=quickstart", *(f"{key}={value}" for key, value in values.items())])


def measure(
    name: str, shape: ModelShape, work: Work, config: Config, mesh: Mesh, args: argparse.Namespace, clock: Clock
) -> dict:
    report: dict = {"layers": shape.num_layers}
    built: list[Actor] = []
    engines: list[HfEngine] = []

    def build() -> Figures:
        built.append(actor_of(shape, config, mesh, transformer_engine=args.transformer_engine))
        engines.append(engine_of(shape, work, mesh))
        return {"parameters": sum(param.numel() for param in built[0].learner.gpt.parameters())}

    parts = {
        "build": build,
        "update": lambda: update(built[0], shape, work, args),
        "logprobs": lambda: logprobs(built[0], shape, work, args),
        "refit": lambda: refit(built[0], engines[0], args.repeats),
    }
    for size in work.rollout_batches:
        parts[f"rollout_{size}"] = lambda size=size: rollout(engines[0], size, shape, work, mesh.device)
    wanted = {"build", *args.parts, *(["refit"] if "rollout" in args.parts else [])}
    for part, run in parts.items():
        if part.split("_")[0] not in wanted:
            continue
        report[part] = figures = clock.run(name, part, run)
        if part in ("build", "refit") and not figures.keys() & {"parameters", "bytes"}:
            break  # the next parts need what this one did not make
    built.clear()
    engines.clear()
    release()
    return report


def actor_of(shape: ModelShape, config: Config, mesh: Mesh, *, transformer_engine: bool) -> Actor:
    hf = hf_config(shape).to_dict()
    gpt = build_gpt_model(
        hf,
        config.actor,
        mesh,
        dtype=torch.bfloat16,
        transformer_engine=transformer_engine,
        kernels=kernel_options(config.model, transformer_engine=transformer_engine),
    )
    with torch.no_grad():
        for name, param in gpt.named_parameters():
            if "norm" in name:
                param.fill_(1.0)
            else:
                param.normal_(0, 0.02)
    learner = Learner(gpt, config.actor.optim, mesh, total_updates=1000, use_distributed_optimizer=False)
    longest = config.rollout.max_response_tokens
    timer = PhaseTimer()
    return Actor(learner, hf, config.actor, config.algo, temperature=1.0, max_response_tokens=longest, timer=timer)


def engine_of(shape: ModelShape, work: Work, mesh: Mesh) -> HfEngine:
    with tempfile.TemporaryDirectory() as folder:
        hf_config(shape).save_pretrained(folder)
        return HfEngine(
            folder,
            tokenizer=None,
            max_batch_size=max(work.rollout_batches),
            device=mesh.device,
            dtype=torch.bfloat16,
            cuda_graphs=True,
        )


def hf_config(shape: ModelShape) -> Qwen2Config:
    return Qwen2Config(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_query_groups,
        intermediate_size=shape.ffn_hidden_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.tied,
        rope_theta=1e6,
    )


def update(actor: Actor, shape: ModelShape, work: Work, args: argparse.Namespace) -> Figures:
    batch = random_batch(shape, work, actor.learner.mesh.device)
    old_logprobs_BT = actor.logprobs(batch)
    ones_BT = torch.ones_like(old_logprobs_BT)
    device = batch.tokens_BS.device
    seconds = median_seconds(
        lambda: actor.update(batch, old_logprobs_BT, old_logprobs_BT, ones_BT, ones_BT), args.repeats, device
    )
    return utilisation(seconds, 3 * forward_flops(shape, work), work, args.peak) | peak_memory(device)


def logprobs(actor: Actor, shape: ModelShape, work: Work, args: argparse.Namespace) -> Figures:
    batch = random_batch(shape, work, actor.learner.mesh.device)
    device = batch.tokens_BS.device
    seconds = median_seconds(lambda: actor.logprobs(batch), args.repeats, device)
    return utilisation(seconds, forward_flops(shape, work), work, args.peak) | peak_memory(device)


def refit(actor: Actor, engine: HfEngine, repeats: int) -> Figures:
    device = actor.learner.mesh.device

    def into_engine(verify: bool) -> dict[str, float]:
        return verified_refit(engine, actor.hf_buckets(BUCKET_BYTES), 1, verify=verify, group=dist.group.WORLD)

    num_bytes = into_engine(True)["refit/bytes"]
    seconds = {
        name: median_seconds(lambda verify=verify: into_engine(verify), repeats, device)
        for name, verify in (("verified", True), ("unverified", False))
    }
    return {
        "bytes": int(num_bytes),
        "seconds": rounded(seconds["verified"]),
        "gb_per_s": rounded(num_bytes / seconds["verified"] / 1e9),
        "gb_per_s_unverified": rounded(num_bytes / seconds["unverified"] / 1e9),
    }


def rollout(engine: HfEngine, size: int, shape: ModelShape, work: Work, device: torch.device) -> Figures:
    """Figures of one call, of `size` sequences, of an engine that holds weights already."""
    prompts = torch.randint(shape.vocab_size, (size // work.rollout_samples, work.prompt_tokens)).tolist()
    seeds = list(range(size))

    def generate(max_tokens: int) -> int:
        params = SamplingParams(
            n=work.rollout_samples,
            max_tokens=max_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            stop=(),
            stop_token_ids=(),
        )
        return sum(len(completion.token_ids) for completion in engine.generate(prompts, params, seeds))

    generate(8)
    wait(device)
    began = time.perf_counter()
    tokens = generate(work.rollout_tokens)
    wait(device)
    seconds = time.perf_counter() - began
    return {
        "seconds": rounded(seconds),
        "tokens_per_s": rounded(tokens / seconds),
        "ms_per_position": rounded(1e3 * seconds / work.rollout_tokens),
    }


def random_batch(shape: ModelShape, work: Work, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def rows(length: int) -> list[list[int]]:
        return torch.randint(shape.vocab_size, (work.samples, length), generator=generator).tolist()

    completions = [
        Completion(tuple(ids), (0.0,) * len(ids), "", "stop", 0, seed)
        for seed, ids in enumerate(rows(work.response_tokens))
    ]
    return collate(
        rows(work.prompt_tokens),
        completions,
        [1.0] * work.samples,
        pad_id=0,
        truncated="penalize",
        overwrite_truncated_with_eos=None,
        device=device,
    )


def forward_flops(shape: ModelShape, work: Work) -> float:
    """Model FLOPs of a forward pass over all sequences, by the formula above."""
    length, hidden, attention = work.prompt_tokens + work.response_tokens, shape.hidden_size, attention_width(shape)
    layer_matrices = hidden * (qkv_width(shape) + attention + 3 * shape.ffn_hidden_size)
    layers = shape.num_layers * (2 * layer_matrices * length + 2 * attention * length**2)
    return work.samples * (layers + 2 * shape.vocab_size * hidden * work.response_tokens)


def utilisation(seconds: float, flops: float, work: Work, peak: float | None) -> Figures:
    tokens = work.samples * (work.prompt_tokens + work.response_tokens)
    return {
        "seconds": rounded(seconds),
        "tokens_per_s": rounded(tokens / seconds),
        "tflops": rounded(flops / seconds / 1e12),
        "mfu": None if peak is None else rounded(flops / seconds / peak),
    }


def median_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(1 + repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def peak_memory(device: torch.device) -> Figures:
    """Peak memory of all tensors since `median_seconds` began, model, optimizer and engine included."""
    return {"peak_gb": rounded(torch.cuda.max_memory_allocated() / 1e9) if device.type == "cuda" else None}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def rounded(value: float) -> float:
    """The value rounded to four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
