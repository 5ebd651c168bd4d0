"""Evaluation during a warm start: the loss of held-out demonstrations, and greedy accuracy."""

import logging
from contextlib import ExitStack, closing

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.batch import MicroBatch
from nemo_simplerl.data.examples import examples_of, stops_of
from nemo_simplerl.data.packing import packed_micro_batches, unpack_to_batch
from nemo_simplerl.data.sft import SftExample, collate_sft, load_sft
from nemo_simplerl.eval.run import evaluate
from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.sharding.export import hf_buckets
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.rollout.base import RolloutEngine
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.setup.engine import build_engine, sampling_of
from nemo_simplerl.trainer.setup.grader import build_grader
from nemo_simplerl.trainer.setup.inputs import build_prompts
from nemo_simplerl.trainer.setup.prepare import model_folder

log = logging.getLogger(__name__)


class WarmStartEval:
    """Evaluates `learner` every sft.eval_every updates, before the first and after the last; 0: never.

    data.sft_eval_path gives sft_eval/loss; data.eval_path gives sft_eval/accuracy and the other metrics of an
    evaluation, sampled by an engine that it owns.
    Every method is collective over the learner's ranks, and the constructor over the world: `make_groups_of_engine`
    stands for it on other ranks.
    """

    def __init__(self, config: Config, learner: Learner, tokenizer):
        self._config, self._learner, self._pad_id = config, learner, tokenizer.pad_token_id
        self._hf = read_hf_config(model_folder(config))
        self._opened = ExitStack()
        self._examples: list[SftExample] = []
        data, mesh = config.data, learner.mesh
        if config.sft.eval_every and data.sft_eval_path is not None:
            self._examples, report = load_sft(
                data.sft_eval_path,
                tokenizer,
                data.template,
                trailing_newline=data.prompt_trailing_newline,
                max_tokens=config.sft.max_tokens,
                overlong="drop",
                worked=examples_of(data),
            )
            log.info(f"{data.sft_eval_path}: {report.num_kept} examples, {report.num_dropped} dropped as too long")
        path = data.eval_path if config.sft.eval_every else None
        self._prompts, notes = build_prompts(
            data,
            tokenizer,
            path,
            max_tokens=config.rollout.max_prompt_tokens,
            limit=data.eval_limit,
            is_graded=config.reward.function is None,
        )
        for note in notes:
            log.info(note)
        if self._prompts:
            self._sampling = sampling_of(config.rollout, tokenizer, model_folder(config), stops_of(data))
            self._grader = self._opened.enter_context(closing(build_grader(config.reward, mesh.role)))
            self._engine = self._opened.enter_context(closing(_engine(config, mesh, tokenizer)))
            self._engine.sleep()  # updates may come first

    def is_due(self, update: int, last: int) -> bool:
        """Whether to evaluate after `update` updates of `last`."""
        every = self._config.sft.eval_every
        return every > 0 and (update % every == 0 or update == last)

    def measure(self, update: int) -> dict[str, float]:
        """The sft_eval metrics of the learner's weights after `update` updates."""
        loss = {"sft_eval/loss": self._loss()} if self._examples else {}
        return loss | (self._accuracy(update) if self._prompts else {})

    def close(self) -> None:
        """Close grader and engine."""
        self._opened.close()

    def _loss(self) -> float:
        """Mean negative log-probability of all held-out response tokens."""
        mesh, sft = self._learner.mesh, self._config.sft
        mine = sorted(self._examples, key=len)[mesh.dp_rank :: mesh.dp_size]
        sums = torch.zeros(2, dtype=torch.float64, device=mesh.device)
        if mine:
            batch = collate_sft(mine, self._pad_id, mesh.device)
            tokens = sft.micro_batch_tokens
            micros = batch.micro_batches(sft.micro_batch_size) if not tokens else packed_micro_batches(batch, tokens)
            logprobs_BT = unpack_to_batch(self._learner.forward_only(micros, self._logprobs), micros, batch.mask_BT)
            sums[0], sums[1] = -logprobs_BT.sum(), batch.mask_BT.sum()
        dist.all_reduce(sums, group=mesh.data)
        return float(sums[0] / sums[1])

    def _logprobs(self, hidden_SBH: Tensor, micro: MicroBatch) -> Tensor:
        learner, vocab_size = self._learner, self._hf["vocab_size"]
        return head.logprobs(learner.gpt, hidden_SBH, micro, learner.mesh, vocab_size=vocab_size)

    def _accuracy(self, update: int) -> dict[str, float]:
        config, engine, learner = self._config, self._engine, self._learner
        engine.wake()
        buckets = hf_buckets(learner.gpt, self._hf, learner.mesh, config.rollout.refit_bucket_mb * 2**20)
        verified_refit(engine, buckets, update, verify=True, group=learner.mesh.role)
        found = evaluate(
            self._prompts,
            engine if engine.generates else None,
            self._grader.grade,
            self._sampling,
            num_samples=0,
            seed=config.trainer.seed,
            group=learner.mesh.role,
        )
        engine.sleep()  # the updates use its memory until the next evaluation
        return {f"sft_{name}": value for name, value in found.metrics.items()}


def make_groups_of_engine(config: Config, tokenizer, mesh: Mesh) -> None:
    """Take part in the making of the groups of ranks that an engine spans, on a rank that does not train."""
    if config.sft.eval_every and config.data.eval_path is not None:
        _engine(config, mesh, tokenizer).close()


def _engine(config: Config, mesh: Mesh, tokenizer) -> RolloutEngine:
    return build_engine(config.rollout, config.model.precision, model_folder(config), mesh, tokenizer)
