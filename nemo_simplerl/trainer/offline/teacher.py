"""A model on disk as the teacher: its solutions of problems, sampled and graded here.

The folder of a teacher: settings.json, responses/sample_K.jsonl (the Kth response of every problem), model/.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.problems import Problem, render_prompts
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.files import read_jsonl
from nemo_simplerl.model.source import open_source
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.offline.benchmark import Question, answer, fingerprint, load_engine, remember, settings_of
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.inputs import tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder
from nemo_simplerl.trainer.setup.world import join_world


def sample_solutions(
    ask: Question, config: Config, problems: Sequence[Problem], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], str]:
    """`ask.samples` graded responses of every problem as rows for data.distill.kept, and who gave them.

    `config` as benchmark.configured makes it. What an earlier call left in ask.output is not sampled again. Every rank
    of the world calls; rank 0 writes, and gets the rows. Raises ValueError for input that cannot be used and for a
    folder of other settings, weights or problems.
    """
    config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, n_samples_per_prompt=1))
    with join_world(config) as mesh, messages_to(say, is_first_rank=mesh.rank == 0):
        tell = say if mesh.rank == 0 else lambda text: None
        source, tokenizer = open_source(config.model.path), tokenizer_of(model_folder(config))
        prompts, report = render_prompts(
            problems,
            tokenizer,
            ask.template,
            trailing_newline=ask.prompt_trailing_newline,
            max_prompt_tokens=config.rollout.max_prompt_tokens,
            overlong="drop",
        )
        if report.num_dropped:
            tell(f"{report.num_dropped} problems left out: over {config.rollout.max_prompt_tokens} tokens")
        params = sampling_of(config.rollout, tokenizer)
        with (
            closing(build_grader(config.reward)) as grader,
            closing(
                build_engine(config.rollout, config.model.precision, model_folder(config), mesh, tokenizer)
            ) as engine,
        ):
            weights = load_engine(engine, source, config.rollout.refit_bucket_mb * 2**20, mesh)
            settings = settings_of(config, weights, None, params) | {"problems_xxh3": fingerprint(prompts)}
            remember(ask.output, settings, mesh)
            for k in range(ask.samples):
                seed = sample_seed(ask.seed, 0, 0, k)
                answer(f"sample_{k}", prompts, engine, grader.grade, params, ask.output, seed, tell)
        files = [ask.output / "responses" / f"sample_{k}.jsonl" for k in range(ask.samples)] if mesh.rank == 0 else []
        rows = [{"sample": k, **row} for k, file in enumerate(files) for row in read_jsonl(file)]
    return rows, f"{ask.model} (xxh3 {weights})"
