"""A run: its roles, its prompts, its step count and its books. What loop.train calls between steps."""

import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.model.convert import Target, convert
from nemo_simplerl.model.source import open_source
from nemo_simplerl.trainer import checkpoint
from nemo_simplerl.trainer.learner import Learner
from nemo_simplerl.trainer.log import RunLog
from nemo_simplerl.trainer.prepare import model_folder
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.summary import summary_of


@dataclass
class Run:
    config: Config
    roles: Roles
    log: RunLog
    prompts: list[Prompt]
    eval_prompts: list[Prompt]
    sampler: StepSampler
    total_steps: int
    lap_started: float  # time.monotonic() when the last phase ended

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

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the held-out set under the engine's weights, where this step is one to evaluate at. Collective."""
        every = self.config.trainer.eval_every
        is_due = step in (0, self.total_steps) or (every > 0 and step % every == 0)
        if not (is_due and self.eval_prompts):
            return {}
        evaluation = self.roles.evaluate(self.eval_prompts)
        self.log.eval(step, evaluation.rows)
        return evaluation.metrics

    def log_samples(self, step: int, samples: list[dict]) -> None:
        with self.roles.timer("log"):
            self.log.rollouts(step, samples)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics and timings. That of step 0 has the time of everything before the first step."""
        seconds = self.roles.timer.drain()
        before, self.lap_started = self.lap_started, time.monotonic()
        seconds["time/total"] = self.lap_started - before
        if "rollout/tokens" in metrics:
            seconds["time/rollout_tokens_per_second"] = metrics["rollout/tokens"] / seconds["time/rollout"]
            seconds["time/tokens_per_second"] = metrics["rollout/tokens"] / seconds["time/total"]
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
                model_folder=model_folder(self.config),
                keep_last=self.config.trainer.keep_last,
            )

    def finish(self) -> None:
        """After the last step of the whole run: actor and critic as trainer.export says, and the summary. Collective.

        The last checkpoint has their weights, so one rank writes them.
        """
        if self.last_step < self.total_steps or self.roles.mesh.rank != 0:
            return
        run_dir, last = Path(self.config.trainer.run_dir), checkpoint.newest(self._checkpoints)
        for kind, name in product(self.config.trainer.export, self._learners):
            target = Target(kind, run_dir / kind / (f"{name}.nemo" if kind == "nemo" else name))
            if not target.path.exists():
                source = open_source(last, "checkpoint", critic=name == "critic")
                convert(source, target, progress=lambda done, total: None)
        self.log.summary(summary_of(run_dir, self.config, self.roles.mesh.world_size))

    @property
    def _checkpoints(self) -> Path:
        return Path(self.config.trainer.run_dir) / "checkpoints"

    @property
    def _learners(self) -> dict[str, Learner]:
        return {"actor": self.roles.actor.learner, "critic": self.roles.critic.learner}
