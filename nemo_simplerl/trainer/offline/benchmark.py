"""Problems answered by a model on disk, with the parts of a run that evaluation needs and no trainer.

The folder of an evaluation: settings.json, responses/NAME.jsonl, results.json, results.md, model/ (config, tokenizer).
"""

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import xxhash
from torch import Tensor

from nemo_simplerl.config.families import longest_sequence
from nemo_simplerl.config.schema import Config, RolloutConfig
from nemo_simplerl.data.examples import check_room, examples_of, stops_of
from nemo_simplerl.data.problems import Problem, Prompt, render_prompts
from nemo_simplerl.eval.benchmarks import BENCHMARKS
from nemo_simplerl.eval.generation import generate_graded
from nemo_simplerl.eval.results import averages, summarize
from nemo_simplerl.eval.run import GradeFn
from nemo_simplerl.eval.table import comparison_table, results_table
from nemo_simplerl.files import append_jsonl, atomic_write, read_jsonl, truncate_jsonl
from nemo_simplerl.model.hf_map import hf_tensors
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.refit import bucketed, verified_refit
from nemo_simplerl.trainer.guard.lock import held_by_first_rank
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.saving.record import digest_of
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.inputs import tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.setup.world import join_world

log = logging.getLogger(__name__)

CHUNK = 128  # problems between two writes
T = TypeVar("T")
_PROBLEMS = "_problems_xxh3"  # behind a benchmark's name, in the settings: the digest of its prompts


@dataclass(frozen=True)
class EvalRequest:
    """Which model is evaluated, and how it samples. Lengths are in tokens."""

    model: Path  # a Hugging Face folder, a .nemo, or a training checkpoint
    output: Path  # folder of the responses, which a later call goes on with
    samples: int  # of each problem
    temperature: float  # 0: greedy
    top_p: float
    max_tokens: int
    seed: int
    limit: int | None  # problems of each benchmark
    compare: bool


def eval_config(config: Config, request: EvalRequest) -> Config:
    """`config` with the settings of the request, for an engine that holds the whole model on one rank or group.

    Raises ValueError where the model cannot be read, answers nothing or leaves no room for a prompt.
    """
    source = open_source(request.model)
    if source.is_critic:
        raise ValueError(f"{request.model} is a critic: it holds a value head and answers nothing. Name a policy.")
    positions = longest_sequence(source.hf)
    if request.max_tokens >= positions:
        raise ValueError(f"--max-tokens {request.max_tokens} leaves no room for a prompt in {positions} positions.")
    rollout = dataclasses.replace(
        config.rollout,
        n_samples_per_prompt=request.samples,
        temperature=request.temperature,
        top_p=request.top_p,
        max_response_tokens=request.max_tokens,
        max_prompt_tokens=positions - request.max_tokens,
    )
    actor = dataclasses.replace(
        config.actor, tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=str(request.model)),
        actor=actor,
        rollout=rollout,
        trainer=dataclasses.replace(config.trainer, run_dir=str(request.output), seed=request.seed),
    )


def run_benchmarks(request: EvalRequest, config: Config, problems: Mapping[str, Sequence[Problem]]) -> dict[str, Any]:
    """Answer the problems of every name under a configuration of `eval_config`; returns the content of results.json.

    What an earlier call with the same settings and weights left in the folder is not generated again. Every rank of the
    world calls; rank 0 writes. Raises ValueError for input that cannot be used and for a folder of other settings.
    """
    with (
        held_by_first_rank(request.output),
        join_world(config) as world,
        messages_to(partial(print, flush=True), is_first_rank=world.rank == 0),
    ):
        mesh = world.actor
        source, tokenizer = open_source(config.model.path), tokenizer_of(model_folder(config))
        check_room(examples_of(config.data), tokenizer, request.max_tokens)
        prompts = {name: _prompts(name, problems[name], tokenizer, config) for name in problems}
        params = sampling_of(config.rollout, tokenizer, model_folder(config), stops_of(config.data))
        with (
            closing(build_grader(config.reward)) as grader,
            closing(
                build_engine(
                    fitted(config.rollout, chain.from_iterable(prompts.values())),
                    config.model.precision,
                    model_folder(config),
                    mesh,
                    tokenizer,
                )
            ) as engine,
        ):
            weights = load_engine(engine, source, config.rollout.refit_bucket_mb * 2**20, mesh)
            settings = settings_of(config, weights, request.limit, params)
            settings |= {f"{name}{_PROBLEMS}": prompts_digest(prompts[name]) for name in problems}
            check_settings(request.output, settings, mesh)
            results = of_first_rank(of_reader(partial(_earlier, request.output), mesh.rank == 0) or {}, "benchmark")
            for name in problems:
                results[name] = run_one(
                    name,
                    prompts[name],
                    engine,
                    grader.grade,
                    params,
                    request.output,
                    request.seed,
                    num_unanswered=len(problems[name]) - len(prompts[name]),
                )
                results = {known: results[known] for known in [*BENCHMARKS, *results] if known in results}
                _write(request, settings, results, mesh)
        return {"settings": settings, "benchmarks": results, **averages(results)}


def fitted(rollout: RolloutConfig, prompts: Iterable[Prompt]) -> RolloutConfig:
    """`rollout` for an engine that takes the longest of these prompts and no longer one.

    An engine may keep memory for one response of the greatest length, which is the model's whole context otherwise.
    """
    return dataclasses.replace(rollout, max_prompt_tokens=max((len(prompt.token_ids) for prompt in prompts), default=1))


def settings_of(config: Config, weights: str, limit: int | None, params: SamplingParams) -> dict[str, Any]:
    """The settings that decide the responses, as plain values."""
    rollout = config.rollout
    names = ("engine", "n_samples_per_prompt", "max_response_tokens", "temperature", "top_p", "top_k")
    return {
        "weights_xxh3": weights,
        "template": config.data.template,
        "prompt_trailing_newline": config.data.prompt_trailing_newline,
        **{name: getattr(rollout, name) for name in names},
        "stop": list(params.stop),
        "stop_token_ids": list(params.stop_token_ids),
        "precision": config.model.precision,
        "seed": config.trainer.seed,
        "limit": limit,
    }


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Digest of prompts and gold answers."""
    return digest_of([(prompt.token_ids, prompt.problem.id, prompt.problem.answer) for prompt in prompts])


def _prompts(name: str, problems: Sequence[Problem], tokenizer, config: Config) -> list[Prompt]:
    """The prompts that leave room for a response; how many do not is logged. Raises ValueError where none does."""
    data, limit = config.data, config.rollout.max_prompt_tokens
    prompts, report = render_prompts(
        problems,
        tokenizer,
        data.template,
        trailing_newline=data.prompt_trailing_newline,
        max_prompt_tokens=sys.maxsize,
        overlong="error",
        examples=examples_of(data),
    )
    fitting = [prompt for prompt in prompts if len(prompt.token_ids) <= limit]
    if len(fitting) == len(prompts):
        return prompts
    found = f"{name}: {len(prompts) - len(fitting)} of {len(prompts)} prompts have more than {limit} tokens"
    advice = f"the longest has {report.longest}; a lower --max-tokens leaves room for more"
    if not fitting:
        raise ValueError(f"{found}, {advice}.")
    log.info(f"{found}, which --max-tokens leaves of the model's positions. They count as wrong ({advice}).")
    return fitting


def load_engine(engine: RolloutEngine, source: Source, max_bytes: int, mesh: Mesh) -> str:
    """Load the source's weights into the engines of all ranks; returns a digest of all of them. Collective."""
    hasher = xxhash.xxh3_64()

    def stream() -> Iterator[tuple[str, Tensor]]:
        tensors = ((name, source.read(name)) for name in source.specs)
        for name, tensor in hf_tensors(tensors, source.hf, critic=source.is_critic):
            hasher.update(f"{name} {digest(tensor)} ".encode())
            yield name, tensor.to(mesh.device)

    verified_refit(engine, bucketed(stream(), max_bytes), 0, verify=True, group=dist.group.WORLD)
    return hasher.hexdigest()


def check_settings(output: Path, settings: dict[str, Any], mesh: Mesh) -> None:
    """Write the folder's settings. Raises ValueError on every rank where it holds others. Collective."""
    of_reader(partial(write_settings, output, settings), mesh.rank == 0)


def of_reader(work: Callable[[], T], is_reader: bool) -> T | None:
    """What `work` returns, on rank 0, which alone does it. Collective; what it cannot read or use is a ValueError on
    every rank, none of which is left waiting."""
    value, problem = None, None
    if is_reader:
        try:
            value = work()
        except (OSError, ValueError) as error:  # raised below on every rank
            problem = str(error)
    problem = of_first_rank(problem, "benchmark")
    if problem is not None:
        raise ValueError(problem)
    return value


def write_settings(output: Path, settings: dict[str, Any]) -> None:
    """Write output/settings.json. Benchmarks may be added to a folder; ValueError where another setting differs."""
    path = output / "settings.json"
    try:
        before = dict(json.loads(path.read_text())) if path.is_file() else settings
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Bring it back from a copy, or choose another --out.") from error
    added = {key: value for key, value in settings.items() if key.endswith(_PROBLEMS) and key not in before}
    after = before | added
    if changed := [
        f"{key} was {after.get(key)!r} and is {value!r}" for key, value in settings.items() if after.get(key) != value
    ]:
        raise ValueError(f"{output} holds answers under other settings: {'; '.join(changed)}. Choose another --out.")
    atomic_write(path, json.dumps(after, indent=2) + "\n")


def run_one(
    name: str,
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    grade: GradeFn,
    params: SamplingParams,
    output: Path,
    seed: int,
    *,
    num_unanswered: int = 0,
) -> dict[str, Any]:
    """Answer one benchmark into output/responses/NAME.jsonl and return its figures. Collective.

    Responses of an earlier call are kept. num_unanswered: problems beside the prompts, which count as wrong.
    """
    path = output / "responses" / f"{name}.jsonl"
    is_writer = dist.get_rank() == 0
    rows = of_reader(partial(whole_chunks, path, len(prompts), params.n), is_writer) or []
    num_done = of_first_rank(len(rows), "benchmark") // params.n
    if num_done:
        log.info(f"{name}: {num_done} of {len(prompts)} problems are there already")
    started = time.monotonic()

    def keep(chunk: list[dict]) -> None:
        rows.extend(chunk)
        if is_writer:
            append_jsonl(path, *chunk)
            share = sum(row["verdict"] == "correct" for row in rows) / len(rows)
            log.info(
                f"{name}: {len(rows) // params.n}/{len(prompts)}  accuracy {100 * share:.1f} %  "
                f"{time.monotonic() - started:.0f} s"
            )

    generate_graded(
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
    return of_first_rank(summarize(rows, num_unanswered) if is_writer else {}, "benchmark")


def whole_chunks(path: Path, num_prompts: int, n: int) -> list[dict]:
    """Rows of an earlier call. Those after the last finished chunk are cut from the file."""
    rows = read_jsonl(path)
    if any(not isinstance(row.get("question"), int) or "verdict" not in row for row in rows):
        raise ValueError(f"{path} holds lines that are no responses of this command. Choose another --out.")
    done = len(rows) // n
    whole = num_prompts if done >= num_prompts else done // CHUNK * CHUNK
    return truncate_jsonl(path, lambda row: row["question"] < whole)


def _earlier(output: Path) -> dict[str, Any]:
    """Figures of the benchmarks that an earlier call finished in this folder."""
    path = output / "results.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["benchmarks"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it: it is made anew from the responses.") from error


def _write(request: EvalRequest, settings: dict[str, Any], results: dict[str, Any], mesh: Mesh) -> None:
    if mesh.rank != 0:
        return
    means = averages(results)
    content = {"settings": settings, "benchmarks": results, **means}
    atomic_write(request.output / "results.json", json.dumps(content, indent=2) + "\n")
    text = results_table(results, means) + f"\nSampled by the {settings['engine']} engine, {settings['precision']}.\n"
    text += "\n" + comparison_table(results) if request.compare else ""
    atomic_write(request.output / "results.md", text)
