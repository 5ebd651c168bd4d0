"""The roles of a run (actor, estimator, engine, grader) and the verbs that `ppo_step` is made of.

Every rank calls every verb. A verb works on the ranks that its role lives on: elsewhere it does nothing, and what it
computes travels to the ranks that need it.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.config.placement import ROLES
from nemo_simplerl.config.run_dir import weight_affecting_settings
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.batch import Batch, collate
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import sample_seed
from nemo_simplerl.eval.run import Evaluation, evaluate, grade_sharded
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects, of_rank
from nemo_simplerl.reward.serving.pool import Grade, score_of
from nemo_simplerl.reward.shaping import terms_of
from nemo_simplerl.rollout.base import RolloutEngine, SamplingParams
from nemo_simplerl.rollout.distribute import BrokenOff, generate_sharded
from nemo_simplerl.rollout.spread import SpreadCompletions
from nemo_simplerl.trainer.announcement import Announcement
from nemo_simplerl.trainer.consistency import ConsistencyGate, GateResult
from nemo_simplerl.trainer.estimators import Estimate, Estimator
from nemo_simplerl.trainer.groups import Rollout, SampledGroups
from nemo_simplerl.trainer.guard.finite import require_finite
from nemo_simplerl.trainer.guard.stop import Stopping
from nemo_simplerl.trainer.learners.actor import Actor
from nemo_simplerl.trainer.learners.elsewhere import ModelElsewhere
from nemo_simplerl.trainer.learners.learner import Learner
from nemo_simplerl.trainer.logging.metrics import update_metrics
from nemo_simplerl.trainer.logging.screen import Outbox
from nemo_simplerl.trainer.logging.timing import PhaseTimer, timed
from nemo_simplerl.trainer.meeting import Told, joined_reports, new_messages
from nemo_simplerl.trainer.refitting import refit_engines
from nemo_simplerl.trainer.saving.record import StepKey, digest_of
from nemo_simplerl.trainer.saving.step_state import StepState, kept_in_step
from nemo_simplerl.trainer.setup.grader import Grader
from nemo_simplerl.trainer.setup.world import World
from nemo_simplerl.trainer.shares import Share, shares_of
from nemo_simplerl.trainer.versions import lags

log = logging.getLogger(__name__)

_EVALUATION_STREAM = 1  # keeps evaluation's sample seeds apart from training's, which count steps


@dataclass
class Roles:
    """All ranks call every verb, in the order of `ppo_step`; all are collective.

    safe_point: raises on every rank of the world where one was asked to stop.
    """

    config: Config
    world: World
    actor: Actor | ModelElsewhere
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
    safe_point: Callable[[], None] = lambda: None
    outbox: Outbox = field(default_factory=Outbox)  # messages for rank 0, where roles live apart
    stopped: Stopping | None = None  # why a model that lives on this rank has left out updates of this step
    sent_version: int | None = None  # of the last refit; None before the first and where the last one failed
    sampled_ahead: SampledGroups | None = None  # of the next step, where they are sampled
    _is_ahead: bool = False  # whether they are sampled now

    @property
    def mesh(self) -> Mesh:
        """The actor's, whose batches the page computes with. On ranks without it they have no rows."""
        return self.world.actor

    @property
    def trained_roles(self) -> tuple[str, ...]:
        """The models that are trained, saved and exported, wherever they live."""
        return ("actor", *self.estimator.roles)

    @property
    def learners(self) -> dict[str, Learner]:
        """The trained models that live on this rank, by role."""
        of_actor = {"actor": self.actor.learner} if isinstance(self.actor, Actor) else {}
        return {**of_actor, **self.estimator.learners}

    def begin(self, prompts: Sequence[Prompt], step: int) -> SampledGroups:
        """Begin the step, whose groups are sampled from the first of these prompts on. Collective."""
        self.step_state.begin(self._key(prompts, step, self._seeds(step, range(len(prompts)))))
        return self._no_groups(prompts, step)

    def _no_groups(self, prompts: Sequence[Prompt], step: int) -> SampledGroups:
        rollout, reward = self.config.rollout, self.config.reward
        only_mixed = rollout.keep_groups == "mixed"
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
        """The prompts of each round, until the step has the groups that it trains on: see groups.py. Collective.

        There are none on ranks without the engine, but for a step that a checkpoint has, which every rank reads.
        """
        if not (self.world.engine.is_member or self.step_state.is_known_to_all):
            return
        while new := groups.next_prompts():
            yield new
        if self.engine.sleeps_between_rollouts and not self.world.places.is_engine_apart:
            with self.timer("rollout"):
                self.engine.sleep()
        if (warning := groups.warning) is not None:
            log.warning(f"step {groups.step}: {warning}")

    @timed("rollout")
    def generate(self, prompts: Sequence[Prompt], step: int) -> SpreadCompletions:
        """Sample n completions of each prompt of a round. Every rank keeps those that it sampled."""
        first = self.step_state.num_sampled // self.sampling.n
        seeds = self._seeds(step, range(first, first + len(prompts)))
        try:
            return self.step_state.completions(lambda: self._sample(prompts, seeds), len(seeds))
        except BrokenOff:
            if self.world.places.is_shared:
                self.safe_point()
            elif not self._is_ahead:
                of_rank(None, self.world.places.engine[0], "announce")
                self.safe_point()
            raise

    def sample_ahead(self, sample: Callable[[], SampledGroups]) -> None:
        """Sample the groups of the next step, which `announce` takes then. Where that is broken off, ranks of other
        roles hear of it when all meet."""
        self._is_ahead = True
        try:
            self.sampled_ahead = sample()
        except BrokenOff:
            log.warning("the next step was not sampled to its end: the resumed run samples it by newer weights")
            self.sampled_ahead = self._no_groups((), 0)
        finally:
            self._is_ahead = False

    @timed("reward")
    def grade(self, prompts: Sequence[Prompt], completions: SpreadCompletions) -> tuple[list[Grade], list[float]]:
        """Grade and reward every completion of a round. Returns grades and rewards of all on every rank."""
        grades = self.step_state.grades(
            lambda: grade_sharded(self.grader.grade, prompts, completions, self.world.engine.role), len(completions)
        )
        return grades, self._rewards(grades)

    def _rewards(self, grades: Sequence[Grade]) -> list[float]:
        return [score_of(grade, self.config.reward) for grade in grades]

    def announce(self, groups: SampledGroups) -> SampledGroups:
        """The groups as every rank knows them: facts and grades of all that was sampled, and on the ranks that sampled
        them tokens and texts. Collective over the world. Raises Stopping on every rank where one was asked to stop."""
        known, self.sampled_ahead = self._announced(groups), None
        if not self.world.places.is_shared:
            self.safe_point()
        assert known is not None, "what was broken off was stopped"
        self.step_state.take({**self.estimator.update_loops, "actor": self.actor.update_loop})
        return known

    def announce_ahead(self) -> None:
        """Let every rank know of the groups of the next step, where they are sampled. Collective over the world."""
        if self.sampled_ahead is not None:
            self.sampled_ahead = self._announced(self.sampled_ahead)

    def _announced(self, groups: SampledGroups) -> SampledGroups | None:
        """See `announce`; None where the sampling was broken off."""
        state, engines = self.step_state, self.world.places.engine
        if self.world.places.is_shared or state.is_known_to_all:
            return groups if groups.rounds else None
        told = Announcement.of(groups, state.sampled, state.was_known, engines) if groups.rounds else None
        if (told := of_rank(told, engines[0], "announce")) is None:
            return None
        state.announce(told.record_on(self.world.rank, groups), was_known=told.was_known)
        return told.fill(self._no_groups(groups.offered, groups.step), state.sampled, self._rewards)

    def deliver(self, rollout: Rollout, step: int) -> None:
        """Send the tokens of the rollout from the ranks that sampled them to those that train on them. Collective over
        the world."""
        lengths, seed = rollout.completions.lengths.tolist(), self.config.trainer.seed
        meshes = {role: getattr(self.world, role) for role in self.trained_roles}
        shares = shares_of(lengths, step, seed, window=math.gcd(*self._update_sizes), meshes=meshes)
        self.step_state.share_out(rollout.completions, shares)

    def batch(self, rollout: Rollout, step: int) -> Batch:
        """This rank's samples of the rollout as tensors, for the actor; the estimator gets its models'. Collective."""
        if not self.step_state.is_delivered:
            self.deliver(rollout, step)
        shares = self.step_state.shares
        made: dict[int, Batch] = {}
        for share in shares.values():  # models with the same samples have one batch
            if id(share) not in made:
                made[id(share)] = self._collated(rollout, share)
        batches = {role: made[id(share)] for role, share in shares.items()}
        self.estimator.begin(batches)
        return batches["actor"]

    def _collated(self, rollout: Rollout, share: Share) -> Batch:
        algo, (prompts, _, grades, scores) = self.config.algo, rollout
        responses, rows = self.step_state.responses(share), share.mine
        if not rows:
            return Batch.of_no_rows(self.mesh.device)
        return collate(
            [prompts[i // self.sampling.n].token_ids for i in rows],
            responses,
            [scores[i] for i in rows],
            groups=[i // self.sampling.n for i in rows],
            is_correct=[grades[i].verdict == "correct" for i in rows],
            pad_id=self.pad_id,
            truncated=algo.truncated,
            overwrite_truncated_with_eos=self.eos_id if algo.overwrite_truncated_with_eos else None,
            device=self.mesh.device,
        )

    @kept_in_step("old_logprobs", "actor")
    def old_logprobs(self, batch: Batch) -> Tensor:
        """float32 [B, T]: the policy's log-probabilities before the step's first update."""
        return self.gate.choose_old_logprobs(batch, self.actor.logprobs)

    def consistency_gate(self, batch: Batch, old_logprobs_BT: Tensor, step: int) -> GateResult:
        """Hold the engine's log-probabilities against the trainer's: see ConsistencyGate.check."""
        if not self.config.rollout.ahead:
            return self.gate.check(batch, old_logprobs_BT, step)
        lag = lags(self.step_state.versions, step, self.config.algo.critic_warmup_steps)
        earlier = self.actor.earlier_logprobs if self.actor.has_earlier else None
        result = self.gate.check(batch, old_logprobs_BT, step, is_older=bool(lag.max() > 0), earlier_logprobs=earlier)
        return replace(result, metrics=result.metrics | {"rollout/lag": float(lag.mean())})

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """float32 [B, T]: log-probabilities under the policy that training started from."""
        return self.actor.reference_logprobs(batch)

    def estimate(self, step: int, batch: Batch, rewards_BT: Tensor) -> Estimate:
        """Advantages of the response tokens: see Estimator.estimate."""
        return self.estimator.estimate(step, batch, rewards_BT)

    def require_finite(self, step: int, **columns_BT: torch.Tensor) -> None:
        """Raise RuntimeError naming the samples where a column of any rank holds NaN or infinity."""
        require_finite(columns_BT, self.step_state.shares["actor"].mine, self.sampling.n, step, self.mesh)

    def update_critic(self, batch: Batch, estimate: Estimate) -> dict[str, float]:
        """Train the estimator's models, where it has any, on the rollout. Returns metrics."""
        return self._until_stopped(lambda: self.estimator.update(batch, estimate))

    def update_actor(
        self,
        batch: Batch,
        old_logprobs_BT: Tensor,
        ref_logprobs_BT: Tensor,
        advantages_BT: Tensor,
        gate_weights_BT: Tensor,
    ) -> dict[str, float]:
        """Train the policy on the rollout: see Actor.update. Returns metrics."""
        columns_BT = (old_logprobs_BT, ref_logprobs_BT, advantages_BT, gate_weights_BT)
        return self._until_stopped(lambda: update_metrics("actor", self.actor.update(batch, *columns_BT)))

    def _until_stopped(self, update: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The metrics of updates that may be left out where this model's ranks are asked to stop. Where other ranks do
        not know of it yet, all stop when they `meet`."""
        try:
            return update()
        except Stopping as asked:
            if self.world.places.is_shared:
                raise
            self.stopped = asked
            return {}

    @timed("refit")
    def refit(self, version: int) -> dict[str, float]:
        """Hand the actor's weights to the engines. Returns metrics, on rank 0 those of all."""
        if self._is_actor_stopped():
            return {}
        verify = self.config.rollout.verify_refit
        last_sent, self.sent_version = self.sent_version, None
        is_nth = isinstance(verify, int) and (version % verify == 0 or last_sent is None)
        metrics = refit_engines(
            self.world,
            self.actor,
            self.engine,
            version,
            max_bytes=self.config.rollout.refit_bucket_mb * 2**20,
            verify=verify == "every" or is_nth,
        )
        self.sent_version = version
        return metrics

    def _is_actor_stopped(self) -> bool:
        """Whether the actor has left out updates of the step, as its first rank says to engines on other ranks."""
        stops = self.stopped is not None and self.world.actor.is_member
        return any(gather_objects(stops, self.world.refit, "refit"))

    def meet(self, metrics: dict[str, float]) -> dict[str, float]:
        """The step's metrics, with those of models on other ranks on rank 0. Collective over the world.

        The one meeting of all ranks at the end of a step: raises Stopping on every rank where a model has left out
        updates, or a rank was asked to stop. Roles that share their ranks have nothing to tell each other.
        """
        if self.world.places.is_shared:
            return metrics
        stopped, self.stopped = self.stopped, None
        mine, places, rank = self.outbox.drain(), self.world.places, self.world.rank
        speaks = rank in {places.of(role)[0] for role in ROLES}
        seconds, new_tokens = self.timer.seconds, self.step_state.new_tokens
        told = Told(stopped and str(stopped), metrics, seconds, mine, new_tokens) if speaks else None
        by_rank = gather_objects(told, dist.group.WORLD, "meeting")
        others = {role: by_rank[places.of(role)[0]] for role in ROLES if places.of(role)[0]}
        if rank == 0:
            metrics = joined_reports(metrics, others)
            self.step_state.new_tokens = by_rank[places.engine[0]].new_tokens
            for level, text in new_messages(mine, others.values()):
                log.log(level, text)
        if reasons := [one.stopped for one in by_rank if one is not None and one.stopped]:
            raise Stopping(reasons[0])
        self.safe_point()
        return metrics

    @timed("eval")
    def evaluate(self, prompts: Sequence[Prompt]) -> Evaluation:
        """Answer and grade held-out prompts with the engine's weights. Collective over the world."""
        engines = self.world.places.engine
        found = self._evaluated(prompts) if self.world.engine.is_member else None
        return found if len(engines) == self.world.size else of_rank(found, engines[0], "evaluation")

    def _evaluated(self, prompts: Sequence[Prompt]) -> Evaluation:
        trainer = self.config.trainer
        self._wake()
        return evaluate(
            prompts,
            self._sampler,
            self.grader.grade,
            self.sampling,
            num_samples=trainer.eval_samples,
            seed=sample_seed(trainer.seed, 0, 0, _EVALUATION_STREAM),
            group=self.world.engine.role,
        )

    @property
    def _update_sizes(self) -> list[int]:
        """Samples of an update of each model, in the order of their updates."""
        return [getattr(self.config, role).global_batch_size for role in (*self.estimator.roles, "actor")]

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
            group=self.world.engine.role,
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
