"""The roles of a run (actor, estimator, engine, grader) and the verbs that `ppo_step` is made of."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.config.run_dir import weight_affecting_settings
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import all_rows, sample_seed
from nemo_simplerl.eval.run import Evaluation, evaluate, grade_sharded
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.reward.serving.pool import Grade, score_of
from nemo_simplerl.reward.shaping import terms_of
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.distribute import generate_sharded
from nemo_simplerl.rollout.refit import verified_refit
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.consistency import ConsistencyGate, GateResult
from nemo_simplerl.trainer.estimators import Estimate, Estimator
from nemo_simplerl.trainer.groups import Rollout, SampledGroups
from nemo_simplerl.trainer.guard.finite import require_finite
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.logging.metrics import update_metrics
from nemo_simplerl.trainer.logging.timing import PhaseTimer, timed
from nemo_simplerl.trainer.saving.record import StepKey, digest_of
from nemo_simplerl.trainer.saving.step_state import StepState, kept_in_step
from nemo_simplerl.trainer.setup.grader import Grader

log = logging.getLogger(__name__)

_EVALUATION_STREAM = 1  # keeps evaluation's sample seeds apart from training's, which count steps


@dataclass
class Roles:
    """All ranks call every verb, in the order of `ppo_step`; all are collective."""

    config: Config
    mesh: Mesh
    actor: Actor
    estimator: Estimator
    engine: RolloutEngine
    grader: Grader
    gate: ConsistencyGate
    sampling: SamplingParams
    pad_id: int
    eos_id: int
    timer: PhaseTimer
    initial_weights: str = ""  # digest of the weights that the run began with
    step_state: StepState = field(default_factory=StepState)
    sent_version: int | None = None  # of the last refit; None before the first and where the last one failed

    @property
    def learners(self) -> dict[str, Learner]:
        """The models that are trained, saved and exported, by role."""
        return {"actor": self.actor.learner, **self.estimator.learners}

    def begin(self, prompts: Sequence[Prompt], step: int) -> SampledGroups:
        """Begin the step, whose groups are sampled from the first of these prompts on. Collective."""
        rollout, reward = self.config.rollout, self.config.reward
        only_mixed = rollout.keep_groups == "mixed"
        update_loops = {**self.estimator.update_loops, "actor": self.actor.update_loop}
        self.step_state.begin(self._key(prompts, step, self._seeds(step, range(len(prompts)))), update_loops)
        return SampledGroups(
            step=step,
            offered=prompts,
            wanted=self.config.data.rollout_batch_size if only_mixed else len(prompts),
            n=self.sampling.n,
            only_mixed=only_mixed,
            max_rounds=rollout.max_rounds,
            terms_of=lambda num_tokens: terms_of(num_tokens, self.sampling.max_tokens, reward),
        )

    def rounds(self, groups: SampledGroups) -> Iterator[list[Prompt]]:
        """The prompts of each round, until the step has the groups that it trains on: see groups.py. Collective."""
        while new := groups.next_prompts():
            yield new
        if self.engine.sleeps_between_rollouts:
            with self.timer("rollout"):
                self.engine.sleep()
        if (warning := groups.warning) is not None:
            log.warning(f"step {groups.step}: {warning}")

    @timed("rollout")
    def generate(self, prompts: Sequence[Prompt], step: int) -> SpreadCompletions:
        """Sample n completions of each prompt of a round. Every rank keeps those that it sampled."""
        first = self.step_state.num_sampled // self.sampling.n
        seeds = self._seeds(step, range(first, first + len(prompts)))
        return self.step_state.completions(lambda: self._sample(prompts, seeds), len(seeds))

    @timed("reward")
    def grade(self, prompts: Sequence[Prompt], completions: SpreadCompletions) -> tuple[list[Grade], list[float]]:
        """Grade and reward every completion of a round. Returns grades and rewards of all on every rank."""
        grades = self.step_state.grades(
            lambda: grade_sharded(self.grader.grade, prompts, completions, dist.group.WORLD), len(completions)
        )
        return grades, [score_of(grade, self.config.reward) for grade in grades]

    def batch(self, rollout: Rollout, step: int) -> Batch:
        """This data rank's samples of the rollout as tensors, whose tokens come from the ranks that sampled them.
        Collective."""
        algo, (prompts, completions, grades, scores) = self.config.algo, rollout
        rows_of_ranks = self._rows_of_ranks(completions, step)
        grid = self.mesh.grid
        owners = [rows_of_ranks[grid.dp_rank(k)] if k in grid.ranks else [] for k in range(self.mesh.world_size)]
        rows = owners[self.mesh.rank]
        return collate(
            [prompts[i // self.sampling.n].token_ids for i in rows],
            self.step_state.responses(completions, owners),
            [scores[i] for i in rows],
            groups=[i // self.sampling.n for i in rows],
            is_correct=[grades[i].verdict == "correct" for i in rows],
            pad_id=self.pad_id,
            truncated=algo.truncated,
            overwrite_truncated_with_eos=self.eos_id if algo.overwrite_truncated_with_eos else None,
            device=self.mesh.device,
        )

    @kept_in_step("old_logprobs")
    def old_logprobs(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the policy's log-probabilities before the step's first update."""
        return self.gate.choose_old_logprobs(batch, self.actor.logprobs)

    def consistency_gate(self, batch: Batch, old_logprobs_BT: Tensor, step: int) -> GateResult:
        """Hold the engine's log-probabilities against the trainer's: see ConsistencyGate.check."""
        return self.gate.check(batch, old_logprobs_BT, step)

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """float32 [B, T]: log-probabilities under the policy that training started from."""
        return self.actor.reference_logprobs(batch)

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """Advantages of the response tokens: see Estimator.estimate."""
        return self.estimator.estimate(step, batch, rewards_BT)

    def require_finite(self, step: int, completions: SpreadCompletions, **columns_BT: torch.Tensor) -> None:
        """Raise RuntimeError naming the samples where a column of any rank holds NaN or infinity."""
        rows = self._rows_of_ranks(completions, step)[self.mesh.dp_rank]
        require_finite(columns_BT, rows, self.sampling.n, step, self.mesh)

    def update_critic(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """Train the estimator's models, where it has any, on the rollout. Returns metrics."""
        return self.estimator.update(batch, estimate)

    def update_actor(
        self,
        batch: Batch,
        old_logprobs_BT: Tensor,
        ref_logprobs_BT: Tensor,
        advantages_BT: Tensor,
        gate_weights_BT: Tensor,
    ) -> dict[str, float]:
        """Train the policy on the rollout: see Actor.update. Returns metrics."""
        updates = self.actor.update(batch, old_logprobs_BT, ref_logprobs_BT, advantages_BT, gate_weights_BT)
        return update_metrics("actor", updates)

    @timed("refit")
    def refit(self, version: int) -> dict[str, float]:
        """Hand the actor's weights to the engines of all ranks. Returns metrics."""
        rollout, verify = self.config.rollout, self.config.rollout.verify_refit
        self.engine.wake()
        last_sent, self.sent_version = self.sent_version, None
        is_nth = isinstance(verify, int) and (version % verify == 0 or last_sent is None)
        metrics = verified_refit(
            self.engine,
            self.actor.hf_buckets(rollout.refit_bucket_mb * 2**20),
            version,
            verify=verify == "every" or is_nth,
            group=dist.group.WORLD,
        )
        self.sent_version = version
        return metrics

    @timed("eval")
    def evaluate(self, prompts: Sequence[Prompt]) -> Evaluation:
        """Answer and grade held-out prompts with the engine's weights."""
        trainer = self.config.trainer
        self._wake()
        return evaluate(
            prompts,
            self._sampler,
            self.grader.grade,
            self.sampling,
            num_samples=trainer.eval_samples,
            seed=sample_seed(trainer.seed, 0, 0, _EVALUATION_STREAM),
            group=dist.group.WORLD,
        )

    def _rows_of_ranks(self, completions: SpreadCompletions, step: int) -> list[list[int]]:
        """The samples of each data rank, in the order of its batch: see data.sampler.rows_of."""
        alike = [role for role, learner in self.learners.items() if learner.mesh.grid == self.mesh.grid]
        window = math.gcd(*(getattr(self.config, role).global_batch_size for role in alike))
        lengths, seed = completions.lengths.tolist(), self.config.trainer.seed
        return all_rows(lengths, step, seed, window=window, num_ranks=self.mesh.dp_size)

    @property
    def _update_sizes(self) -> list[int]:
        """Samples of an update of each model, in the order of their updates."""
        return [getattr(self.config, role).global_batch_size for role in (*self.estimator.learners, "actor")]

    def _seeds(self, step: int, positions: range) -> list[int]:
        """The seeds of the samples of the prompts that have these positions in the step."""
        seed = self.config.trainer.seed
        return [sample_seed(seed, step, position, k) for position in positions for k in range(self.sampling.n)]

    def _key(self, prompts: Sequence[Prompt], step: int, seeds: Sequence[int]) -> StepKey:
        config = self.config
        request = [
            [(prompt.token_ids, prompt.problem.answer) for prompt in prompts],
            asdict(self.sampling),
            seeds,
            [config.algo.ppo_epochs, *self._update_sizes],
        ]
        settings = [self.initial_weights, weight_affecting_settings(config)]
        if config.reward.function is not None:  # under the same name its file may hold another one
            settings.append(self.grader.digest)
        return StepKey(step, self.sent_version, digest_of(request), digest_of(settings))

    def _sample(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> SpreadCompletions:
        self._wake()
        return generate_sharded(
            self._sampler,
            [prompt.token_ids for prompt in prompts],
            self.sampling,
            seeds,
            group=dist.group.WORLD,
            should_stop=self.step_state.should_stop,
        )

    def _wake(self) -> None:
        """Wake the engine, and hand it the weights again where it discarded them asleep and none came since: in a step
        that trains the critic alone."""
        self.engine.wake()
        if self.engine.weight_version is None and self.sent_version is not None:
            self.refit(self.sent_version)

    @property
    def _sampler(self) -> RolloutEngine | None:
        """The engine, on the ranks that sample; None where another rank's engine samples for this one too."""
        return self.engine if self.engine.generates else None
