"""The actors of a run and the verbs of its page that need more than one of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.config.run_dir import deciding
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import even_share, sample_seed
from nemo_simplerl.eval.run import Evaluation, evaluate, grade_sharded, responses_of
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.reward.grade import reward_of
from nemo_simplerl.reward.serving.pool import Grade
from nemo_simplerl.rollout.base import Completion, RolloutEngine, SamplingParams
from nemo_simplerl.rollout.distribute import generate_sharded
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.trainer.guard.finite import require_finite
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.critic import Critic
from nemo_simplerl.trainer.logging.timing import PhaseTimer, timed
from nemo_simplerl.trainer.saving.record import Key, digest_of
from nemo_simplerl.trainer.saving.step_state import StepInHand
from nemo_simplerl.trainer.setup.grader import Grader

_EVALUATION_STREAM = 1  # keeps evaluation's sample seeds apart from training's, which count steps


@dataclass
class Roles:
    config: Config
    mesh: Mesh
    actor: Actor
    critic: Critic
    engine: RolloutEngine
    grader: Grader
    sampling: SamplingParams
    pad_id: int
    eos_id: int
    timer: PhaseTimer
    say: Callable[[str], None]  # a line in the run's log
    origin: str = ""  # fingerprint of the weights that the run began with
    in_hand: StepInHand = field(default_factory=StepInHand)

    @timed("rollout")
    def generate(self, prompts: Sequence[Prompt], step: int) -> list[Completion]:
        """Takes the step in hand. All completions of the step on every rank, n of each prompt in order. Collective."""
        seeds = [
            sample_seed(self.config.trainer.seed, step, position, k)
            for position in range(len(prompts))
            for k in range(self.sampling.n)
        ]
        self.in_hand.take(self._key(prompts, step, seeds), {"critic": self.critic.series, "actor": self.actor.series})
        completions = self.in_hand.completions(lambda: self._sample(prompts, seeds))
        if self.config.rollout.engine == "trtllm":
            self.engine.sleep()  # the step's updates have its memory, until the refit
        return completions

    @timed("reward")
    def grade(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> tuple[list[Grade], list[float]]:
        """Grade and reward of every completion, on every rank. Collective."""
        responses = responses_of(prompts, completions, self.sampling.n)
        grades = self.in_hand.grades(lambda: grade_sharded(self.grader.grade, responses, dist.group.WORLD))
        return grades, [reward_of(grade.verdict, self.config.reward) for grade in grades]

    def batch(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], scores: Sequence[float], step: int
    ) -> Batch:
        """This data rank's samples of the rollout as tensors."""
        algo = self.config.algo
        rows = self.local_rows(completions, step)
        return collate(
            [prompts[i // self.sampling.n].token_ids for i in rows],
            [completions[i] for i in rows],
            [scores[i] for i in rows],
            pad_id=self.pad_id,
            truncated=algo.truncated,
            overwrite_truncated_with_eos=self.eos_id if algo.overwrite_truncated_with_eos else None,
            device=self.mesh.device,
        )

    def values(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the critic's, from before the step's first update. Collective."""
        return self.column("values", batch, self.critic.values)

    def require_finite(self, step: int, completions: Sequence[Completion], **columns_BT: torch.Tensor) -> None:
        """RuntimeError naming the samples where a column of this data rank's has a number that is not. Collective."""
        rows = self.local_rows(completions, step)
        require_finite(columns_BT, rows, self.sampling.n, step, self.mesh)

    def local_rows(self, completions: Sequence[Completion], step: int) -> list[int]:
        """Samples of this data rank: its share of each update in a permutation seeded by the step, so that the samples
        of one prompt spread over updates and update k has the same samples at every data-parallel size."""
        config, num_samples = self.config, len(completions)
        generator = torch.Generator().manual_seed(sample_seed(config.trainer.seed, step, num_samples, 0))
        return even_share(
            torch.randperm(num_samples, generator=generator).tolist(),
            [len(completion.token_ids) for completion in completions],
            window=math.gcd(config.actor.global_batch_size, config.critic.global_batch_size),
            rank=self.mesh.dp_rank,
            num_ranks=self.mesh.dp_size,
        )

    @timed("refit")
    def refit(self, version: int) -> dict[str, float]:
        """Hand the actor's weights to the engines of all ranks. Returns metrics. Collective."""
        rollout, verify = self.config.rollout, self.config.rollout.verify_refit
        self.engine.wake()
        is_nth = isinstance(verify, int) and (version % verify == 0 or self.engine.weight_version is None)
        return verified_refit(
            self.engine,
            self.actor.hf_buckets(rollout.refit_bucket_mb * 2**20),
            version,
            verify=verify == "every" or is_nth,
            group=dist.group.WORLD,
        )

    @timed("eval")
    def evaluate(self, prompts: Sequence[Prompt]) -> Evaluation:
        """Evaluation of the engine's weights. Collective."""
        trainer = self.config.trainer
        self.engine.wake()
        return evaluate(
            prompts,
            self._sampler,
            self.grader.grade,
            self.sampling,
            num_samples=trainer.eval_samples,
            seed=sample_seed(trainer.seed, 0, 0, _EVALUATION_STREAM),
            group=dist.group.WORLD,
        )

    def column(self, name: str, batch: Batch, compute: Callable[[Batch], Tensor]) -> Tensor:
        """float32 [B, T]: what `compute` makes of this data rank's samples, once a step: a step that is taken up again
        has it from its record. Collective."""
        record = self.in_hand.record
        assert record.completions is not None
        return self.in_hand.column(name, batch, self.local_rows(record.completions, record.key.step), compute)

    def _key(self, prompts: Sequence[Prompt], step: int, seeds: Sequence[int]) -> Key:
        config = self.config
        asked = [
            [(prompt.token_ids, prompt.problem.answer) for prompt in prompts],
            asdict(self.sampling),
            seeds,
            [config.algo.ppo_epochs, config.critic.global_batch_size, config.actor.global_batch_size],
        ]
        return Key(step, self.engine.weight_version, digest_of(asked), digest_of([self.origin, deciding(config)]))

    def _sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Completion]:
        self.engine.wake()
        return generate_sharded(
            self._sampler,
            [prompt.token_ids for prompt in prompts],
            self.sampling,
            seeds,
            group=dist.group.WORLD,
            should_stop=self.in_hand.should_stop,
        )

    @property
    def _sampler(self) -> RolloutEngine | None:
        """The engine, on the ranks that sample; None where another rank's engine samples for this one too."""
        return self.engine if self.engine.generates else None
