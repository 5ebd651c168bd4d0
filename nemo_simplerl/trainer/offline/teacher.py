"""Solutions of problems sampled from a model on disk, the teacher, and graded.

The folder of a teacher: settings.json, responses/sample_K.jsonl (the Kth response of every problem), model/.
"""

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.examples import check_room, examples_of, stops_of
from nemo_simplerl.data.problems import Problem, Prompt, render_prompts
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.eval.generation import graded_rows
from nemo_simplerl.eval.run import GradeFn
from nemo_simplerl.files import append_jsonl, read_jsonl
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.trainer.guard.lock import held_by_first_rank
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.offline.benchmark import (
    CHUNK,
    EvalRequest,
    check_settings,
    fitted,
    load_engine,
    of_reader,
    prompts_digest,
    settings_of,
    whole_chunks,
)
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.inputs import tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.setup.world import join_world

log = logging.getLogger(__name__)


def sample_solutions(
    request: EvalRequest, config: Config, problems: Sequence[Problem]
) -> tuple[list[dict[str, Any]], str]:
    """Sample and grade `request.samples` responses to every problem; their rows, and the name of their source.

    The rows are those that data.distill.kept takes. `config` comes from `eval_config`. What an earlier call left in
    request.output is not sampled again. Every rank of the world calls; rank 0 writes, and gets the rows. Raises
    ValueError for input that cannot be used and for a folder of other settings, weights or problems.
    """
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, n_samples_per_prompt=1))
    with (
        held_by_first_rank(request.output),
        join_world(config) as world,
        messages_to(partial(print, flush=True), is_first_rank=world.rank == 0),
    ):
        mesh = world.actor
        source, tokenizer = open_source(config.model.path), tokenizer_of(model_folder(config))
        check_room(examples_of(config.data), tokenizer, request.max_tokens)
        prompts, report = render_prompts(
            problems,
            tokenizer,
            config.data.template,
            trailing_newline=config.data.prompt_trailing_newline,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            overlong="drop",
            examples=examples_of(config.data),
        )
        if report.num_dropped:
            log.info(f"{report.num_dropped} problems left out: over {config.rollout.max_prompt_tokens} tokens")
        params = sampling_of(config.rollout, tokenizer, model_folder(config), stops_of(config.data))
        with (
            closing(build_grader(config.reward)) as grader,
            closing(
                build_engine(
                    fitted(config.rollout, prompts), config.model.precision, model_folder(config), mesh, tokenizer
                )
            ) as engine,
        ):
            weights = load_engine(engine, source, config.rollout.refit_bucket_mb * 2**20, mesh)
            settings = settings_of(config, weights, None, params) | {"problems_xxh3": prompts_digest(prompts)}
            check_settings(request.output, settings, mesh)
            files = [request.output / "responses" / f"sample_{k}.jsonl" for k in range(request.samples)]
            _fill(files, prompts, engine, grader.grade, params, request.seed)
        read = files if mesh.rank == 0 else []
        rows = [{"sample": k, **row} for k, file in enumerate(read) for row in read_jsonl(file)]
    return rows, f"{request.model} (xxh3 {weights}, {config.rollout.engine} engine)"


def _fill(
    files: Sequence[Path],
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    grade: GradeFn,
    params: SamplingParams,
    seed: int,
) -> None:
    """Give each file one response to every prompt, chunk by chunk of prompts. Collective.

    What is missing of a prompt is sampled at once, so that an engine computes the prompt once for all of it.
    """
    is_writer = dist.get_rank() == 0
    there = of_reader(lambda: [len(whole_chunks(file, len(prompts), 1)) for file in files], is_writer)
    done = of_first_rank(there or [], "benchmark")  # prompts that each file answers
    if any(done):
        log.info(f"{sum(done)} of {len(files) * len(prompts)} responses are there already")
    seeds = [sample_seed(seed, 0, 0, k) for k in range(len(files))]
    num_correct, num_sampled, started = 0, 0, time.monotonic()
    while (first := min(done, default=len(prompts))) < len(prompts):
        due = [k for k, count in enumerate(done) if count == first]
        chunk = prompts[first : first + CHUNK]
        of_due = [sample_seed(seeds[k], 0, first + i, 0) for i in range(len(chunk)) for k in due]
        rows = graded_rows(
            chunk,
            of_due,
            engine if engine.generates else None,
            grade,
            dataclasses.replace(params, n=len(due)),
            first=first,
            group=dist.group.WORLD,
        )
        for place, k in enumerate(due):
            if is_writer:
                append_jsonl(files[k], *rows[place :: len(due)])
            done[k] += len(chunk)
        num_sampled += len(rows)
        num_correct += sum(row["verdict"] == "correct" for row in rows)
        log.info(
            f"{sum(done)}/{len(files) * len(prompts)} responses  accuracy {100 * num_correct / num_sampled:.1f} %  "
            f"{time.monotonic() - started:.0f} s"
        )
