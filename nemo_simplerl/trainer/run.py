"""A run: its roles, its prompts, its step count and its books. What loop.train calls between steps."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.trainer import checkpoint
from nemo_simplerl.trainer.learner import Learner
from nemo_simplerl.trainer.log import RunLog
from nemo_simplerl.trainer.roles import Roles


@dataclass
class Run:
    config: Config
    roles: Roles
    log: RunLog
    prompts: list[Prompt]
    eval_prompts: list[Prompt]
    sampler: StepSampler
    total_steps: int
    started: float = field(default_factory=time.monotonic)

    @property
    def last_step(self) -> int:
        """Where this process ends."""
        stop_after = self.config.trainer.stop_after_step
        return self.total_steps if stop_after is None else min(self.total_steps, stop_after)

    def prompts_of(self, step: int) -> list[Prompt]:
        """The prompts of a step; steps count from 1, the sampler from 0."""
        return [self.prompts[i] for i in self.sampler.indices(step - 1)]

    def weight_version(self, step: int) -> int:
        """The step whose update produced the actor's weights after `step` steps."""
        return step if step > self.config.algo.critic_warmup_steps else 0

    def resume(self) -> int:
        """Restore the newest checkpoint of the run directory; returns the steps done. Collective."""
        latest = checkpoint.newest(self._checkpoints) if self.config.trainer.resume else None
        if latest is None:
            return 0
        done = checkpoint.load(latest, self._learners, self.roles.mesh)
        self.log.say(f"resumed after step {done} from {latest}")
        return done

    def evaluates_at(self, step: int) -> bool:
        every = self.config.trainer.eval_every
        return bool(self.eval_prompts) and (step == self.total_steps or (every > 0 and step % every == 0))

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the held-out set under the engine's weights; the responses go to eval/. Collective."""
        if not self.eval_prompts:
            return {}
        evaluation = self.roles.evaluate(self.eval_prompts)
        self.log.eval(step, evaluation.rows)
        return evaluation.metrics

    def log_rollouts(self, step: int, rows: list[dict]) -> None:
        with self.roles.timer("log"):
            self.log.rollouts(step, rows)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        seconds = self.roles.timer.drain()
        now = time.monotonic()
        seconds["time/total"], self.started = now - self.started, now
        if "rollout/tokens" in metrics:
            seconds["time/rollout_tokens_per_second"] = metrics["rollout/tokens"] / max(
                seconds["time/rollout"], 1e-9
            )
            seconds["time/tokens_per_second"] = metrics["rollout/tokens"] / max(seconds["time/total"], 1e-9)
        self.log.metrics(step, metrics | seconds)

    def saves_at(self, step: int) -> bool:
        every = self.config.trainer.save_every
        return step == self.last_step or (every > 0 and step % every == 0)

    def save(self, step: int) -> None:
        """Write a checkpoint. Collective."""
        with self.roles.timer("save"):
            checkpoint.save(
                self._checkpoints,
                step,
                self._learners,
                self.roles.mesh,
                keep_last=self.config.trainer.keep_last,
            )

    @property
    def _checkpoints(self) -> Path:
        return Path(self.config.trainer.run_dir) / "checkpoints"

    @property
    def _learners(self) -> dict[str, Learner]:
        return {"actor": self.roles.actor.learner, "critic": self.roles.critic.learner}
