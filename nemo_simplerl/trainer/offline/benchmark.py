"""A model on disk, answering the benchmarks: the parts of a run that evaluation needs, without a trainer.

The folder of an evaluation: settings.json, responses/NAME.jsonl, results.json, results.md, model/ (config, tokenizer).
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import xxhash
from torch import Tensor

from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.problems import Prompt, render_prompts
from nemo_simplerl.eval.benchmarks import BENCHMARKS, load_benchmark
from nemo_simplerl.eval.results import averages, summarize
from nemo_simplerl.eval.run import Grader
from nemo_simplerl.eval.sheet import answer_sheet
from nemo_simplerl.eval.table import comparison_table, results_table
from nemo_simplerl.files import append_jsonl, atomic_write, read_jsonl, truncate_jsonl
from nemo_simplerl.model.hf_map import hf_tensors
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.refit import bucketed, digest, verified_refit
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.saving.record import digest_of
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.inputs import tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.setup.world import join_world

CHUNK = 128  # problems between two writes
_PROBLEMS = "_problems_xxh3"  # behind a benchmark's name, in the settings: a fingerprint of its file


@dataclass(frozen=True)
class Question:
    """What is asked of which model. `output` is the folder that remembers the answers; lengths are in tokens."""

    model: Path  # a Hugging Face folder, a .nemo, or a training checkpoint
    benchmarks: tuple[str, ...]
    data: Path
    output: Path
    template: str
    prompt_trailing_newline: bool
    samples: int  # of each problem
    temperature: float  # 0: greedy
    top_p: float
    max_tokens: int
    seed: int
    limit: int | None  # problems of each benchmark
    compare: bool


def configured(config: Config, ask: Question) -> Config:
    """`config` as the evaluation needs it: an engine for every rank or group of ranks, and no trainer.

    Raises ValueError where the model cannot be read or leaves no room for a prompt.
    """
    positions = open_source(ask.model).hf["max_position_embeddings"]
    if ask.max_tokens >= positions:
        raise ValueError(f"--max-tokens {ask.max_tokens} leaves no room for a prompt in {positions} positions.")
    rollout = dataclasses.replace(
        config.rollout,
        n_samples_per_prompt=ask.samples,
        temperature=ask.temperature,
        top_p=ask.top_p,
        max_response_tokens=ask.max_tokens,
        max_prompt_tokens=positions - ask.max_tokens,
    )
    actor = dataclasses.replace(
        config.actor, tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=str(ask.model)),
        actor=actor,
        rollout=rollout,
        data=dataclasses.replace(
            config.data, template=ask.template, prompt_trailing_newline=ask.prompt_trailing_newline
        ),
        trainer=dataclasses.replace(config.trainer, run_dir=str(ask.output), seed=ask.seed),
    )


def run_benchmarks(ask: Question, config: Config, say: Callable[[str], None]) -> dict[str, Any]:
    """Answer every benchmark under a `configured` configuration; returns what results.json holds.

    What an earlier call with the same settings and weights left in the folder is not generated again. Every rank of the
    world calls; rank 0 writes. Raises ValueError for input that cannot be used and for a folder of other settings.
    """
    problems = {name: load_benchmark(name, ask.data, ask.limit) for name in ask.benchmarks}
    with join_world(config) as mesh, messages_to(say, is_first_rank=mesh.rank == 0):
        tell = say if mesh.rank == 0 else lambda text: None
        source, tokenizer = open_source(config.model.path), tokenizer_of(model_folder(config))
        prompts = {name: _prompts(name, problems[name], tokenizer, config) for name in ask.benchmarks}
        params = sampling_of(config.rollout, tokenizer)
        with (
            closing(build_grader(config.reward)) as grader,
            closing(
                build_engine(config.rollout, config.model.precision, model_folder(config), mesh, tokenizer)
            ) as engine,
        ):
            weights = load_engine(engine, source, config.rollout.refit_bucket_mb * 2**20, mesh)
            settings = settings_of(config, weights, ask.limit, params)
            settings |= {f"{name}{_PROBLEMS}": fingerprint(prompts[name]) for name in ask.benchmarks}
            remember(ask.output, settings, mesh)
            results = of_first_rank(_earlier(ask.output) if mesh.rank == 0 else {}, "benchmark")
            for name in ask.benchmarks:
                results[name] = answer(name, prompts[name], engine, grader.grade, params, ask.output, ask.seed, tell)
                results = {known: results[known] for known in BENCHMARKS if known in results}
                _write(ask, settings, results, mesh)
        return {"settings": settings, "benchmarks": results, **averages(results)}


def settings_of(config: Config, weights: str, limit: int | None, params: SamplingParams) -> dict[str, Any]:
    """What decides the responses; plain values."""
    rollout = config.rollout
    names = ("engine", "n_samples_per_prompt", "max_response_tokens", "temperature", "top_p", "top_k", "stop")
    return {
        "weights_xxh3": weights,
        "template": config.data.template,
        "prompt_trailing_newline": config.data.prompt_trailing_newline,
        **{name: getattr(rollout, name) for name in names},
        "stop_token_ids": list(params.stop_token_ids),
        "precision": config.model.precision,
        "seed": config.trainer.seed,
        "limit": limit,
    }


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Of what was asked, and which answers count."""
    return digest_of([(prompt.token_ids, prompt.problem.id, prompt.problem.answer) for prompt in prompts])


def _prompts(name: str, problems: Sequence, tokenizer, config: Config) -> list[Prompt]:
    data = config.data
    try:
        return render_prompts(
            problems,
            tokenizer,
            data.template,
            trailing_newline=data.prompt_trailing_newline,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            overlong="error",
        )[0]
    except ValueError as error:
        raise ValueError(f"{name}: {error}. Lower --max-tokens to make room for the prompts.") from error


def load_engine(engine: RolloutEngine, source: Source, max_bytes: int, mesh: Mesh) -> str:
    """The source's weights into the engines of all ranks; a digest of all of them. Collective."""
    hasher = xxhash.xxh3_64()

    def stream() -> Iterator[tuple[str, Tensor]]:
        tensors = ((name, source.read(name)) for name in source.specs)
        for name, tensor in hf_tensors(tensors, source.hf, critic=source.is_critic):
            hasher.update(f"{name} {digest(tensor)} ".encode())
            yield name, tensor.to(mesh.device)

    verified_refit(engine, bucketed(stream(), max_bytes), 0, verify=True, group=dist.group.WORLD)
    return hasher.hexdigest()


def remember(output: Path, settings: dict[str, Any], mesh: Mesh) -> None:
    """Raises ValueError, on every rank, where the folder's answers were given under other settings. Collective."""
    refusal = _other_settings(output, settings) if mesh.rank == 0 else None
    if refusal := of_first_rank(refusal, "benchmark"):
        raise ValueError(refusal)


def _other_settings(output: Path, settings: dict[str, Any]) -> str | None:
    """None, and the settings on disk, where the folder has no others. Benchmarks may be added to it."""
    path = output / "settings.json"
    before = json.loads(path.read_text()) if path.is_file() else settings
    added = {key: value for key, value in settings.items() if key.endswith(_PROBLEMS) and key not in before}
    after = before | added
    if changed := [
        f"{key} was {after.get(key)!r} and is {value!r}" for key, value in settings.items() if after.get(key) != value
    ]:
        return f"{output} holds answers under other settings: {'; '.join(changed)}. Choose another --out."
    atomic_write(path, json.dumps(after, indent=2) + "\n")
    return None


def answer(
    name: str,
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    grade: Grader,
    params: SamplingParams,
    output: Path,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Answers in output/responses/NAME.jsonl, those of an earlier call kept. Their figures. Collective."""
    path = output / "responses" / f"{name}.jsonl"
    is_writer = dist.get_rank() == 0
    rows = _whole_chunks(path, len(prompts), params.n) if is_writer else []
    num_done = of_first_rank(len(rows), "benchmark") // params.n
    if num_done:
        say(f"{name}: {num_done} of {len(prompts)} problems are there already")
    started = time.monotonic()

    def keep(chunk: list[dict]) -> None:
        rows.extend(chunk)
        if is_writer:
            append_jsonl(path, *chunk)
            share = sum(row["verdict"] == "correct" for row in rows) / len(rows)
            say(
                f"{name}: {len(rows) // params.n}/{len(prompts)}  accuracy {100 * share:.1f} %  "
                f"{time.monotonic() - started:.0f} s"
            )

    answer_sheet(
        prompts,
        engine if engine.generates else None,
        grade,
        params,
        seed=seed,
        chunk_size=CHUNK,
        num_done=num_done,
        keep=keep,
        group=dist.group.WORLD,
    )
    return of_first_rank(summarize(rows) if is_writer else {}, "benchmark")


def _whole_chunks(path: Path, num_prompts: int, n: int) -> list[dict]:
    """Rows of an earlier call, cut to the chunks that it finished."""
    done = len(read_jsonl(path)) // n
    whole = num_prompts if done >= num_prompts else done // CHUNK * CHUNK
    return truncate_jsonl(path, lambda row: row["question"] < whole)


def _earlier(output: Path) -> dict[str, Any]:
    """Figures of the folder's benchmarks, given under the same settings."""
    path = output / "results.json"
    return json.loads(path.read_text())["benchmarks"] if path.is_file() else {}


def _write(ask: Question, settings: dict[str, Any], results: dict[str, Any], mesh: Mesh) -> None:
    if mesh.rank != 0:
        return
    means = averages(results)
    content = {"settings": settings, "benchmarks": results, **means}
    atomic_write(ask.output / "results.json", json.dumps(content, indent=2) + "\n")
    text = results_table(results, means) + ("\n" + comparison_table(results) if ask.compare else "")
    atomic_write(ask.output / "results.md", text)
