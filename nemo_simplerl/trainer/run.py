"""A run: its roles, prompts, step count and log. What `train` in loop.py calls between steps."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch.distributed as dist
import xxhash

from nemo_simplerl.config.load import to_yaml
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.problems import Prompt
from nemo_simplerl.data.sampler import StepSampler
from nemo_simplerl.eval.run import SpreadRows
from nemo_simplerl.files import NotSaved, Unessential
from nemo_simplerl.model.conversion.convert import Target, convert, remove
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.trainer.guard.alarms import Alarms
from nemo_simplerl.trainer.guard.stop import Stop, write_stopped
from nemo_simplerl.trainer.logging.run_log import RunLog
from nemo_simplerl.trainer.logging.summary import summary_of
from nemo_simplerl.trainer.logging.timing import host_gb
from nemo_simplerl.trainer.roles import Roles
from nemo_simplerl.trainer.saving import checkpoint
from nemo_simplerl.trainer.saving.checkpoint import Found
from nemo_simplerl.trainer.saving.manifest import MANIFEST, Manifest, changed_versions, versions
from nemo_simplerl.trainer.saving.position import TrainingPosition
from nemo_simplerl.trainer.saving.saver import Saver
from nemo_simplerl.trainer.versions import version_after

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # in the run directory
_MOST_STEPS_UNSAVED = 20  # where trainer.save_every leaves it to the trainer


@dataclass(kw_only=True)
class Run:
    config: Config
    roles: Roles
    run_log: RunLog
    prompts: list[Prompt]
    eval_prompts: list[Prompt]
    sampler: StepSampler
    total_steps: int
    saver: Saver
    found: Found | None  # the checkpoint to resume from
    lap_started: float  # time.monotonic() when the last phase ended
    start_seconds: float | None = None  # of a resumed process, before its first step; None once they are logged
    stop: Stop
    alarms: Alarms
    steps_done: int = 0
    prompts_passed: int = 0  # the position in the sampler's order of prompts after those steps
    scores: dict[str, float] = field(default_factory=dict)  # of the evaluation after the last step, if it had one

    @property
    def is_new(self) -> bool:
        return self.found is None

    @property
    def last_step(self) -> int:
        """The step after which this process ends."""
        stop_after = self.config.trainer.stop_after_step
        return self.total_steps if stop_after is None else min(self.total_steps, stop_after)

    @property
    def save_every(self) -> int:
        """Steps between checkpoints; 0: only the last step has one."""
        every = self.config.trainer.save_every
        return max(min(self.total_steps // 10, _MOST_STEPS_UNSAVED), 1) if every is None else every

    def next_prompts(self) -> list[Prompt]:
        """The prompts that the step after those that are done may take, in order."""
        return self._prompts_at(self.prompts_passed)

    def _prompts_at(self, position: int) -> list[Prompt]:
        return [self.prompts[i] for i in self.sampler.offered(position)]

    def _position_after(self, count: int) -> int:
        """The position after the next step, where it takes so many prompts."""
        return list(self.sampler.offered(self.prompts_passed).values())[count - 1]

    def prompts_ahead(self, step: int) -> Callable[[int], list[Prompt]] | None:
        """The prompts that the step after `step` may take, of the number that `step` takes, where it is sampled
        meanwhile; None where it is not."""
        if not self.config.rollout.ahead or step == self.total_steps:
            return None
        return lambda count: self._prompts_at(self._position_after(count))

    def weight_version(self, step: int) -> int:
        """The step whose update produced the actor's weights after `step` steps."""
        return version_after(step, self.config.algo.critic_warmup_steps)

    def resume(self) -> int:
        """Restore the checkpoint that was found; returns the steps done. Collective."""
        if self.config.trainer.save_every is None:
            log.info(f"a checkpoint every {self.save_every} of {self.total_steps} steps (trainer.save_every=null)")
        if self.found is None:
            return 0
        mesh, saved = self.roles.mesh, self.found.manifest
        self.steps_done, passed = saved.step, saved.prompts_passed
        self.prompts_passed = self.sampler.position_of(saved.step) if passed is None else passed
        checkpoint.load(self.found, self.roles.learners)
        of_steps = (checkpoint.RECORD, checkpoint.AHEAD) if self.config.rollout.ahead else (checkpoint.RECORD,)
        for name in of_steps if saved.position.updates or self.config.rollout.ahead else ():
            if (record := checkpoint.load_record(self.found, mesh, name)) is not None:
                self.roles.step_state.restore(record)
        layouts = {role: known.layout for role, known in checkpoint.facts_of(self.roles.learners).items()}
        before = checkpoint.layouts_in_words({role: saved.layout_of(role) for role in layouts})
        now = checkpoint.layouts_in_words(layouts)
        change = "" if before == now else f", saved by {before} and continued by {now}"
        log.info(f"resumed after {saved.position.in_words} from {self.found.path}{change}")
        if differ := changed_versions(saved.versions, versions()):
            log.info(differ)
        self.start_seconds = time.monotonic() - self.lap_started
        if saved.step >= self.last_step:
            log.info(f"nothing is left to do: this command ends after step {self.last_step}")
        return saved.step

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the held-out set under the engine's weights, where this step is one to evaluate at. Collective."""
        every = self.config.trainer.eval_every
        is_due = step in (0, self.total_steps) or (every > 0 and step % every == 0)
        self.scores = {}
        if is_due and self.eval_prompts:
            evaluation = self.roles.evaluate(self.eval_prompts)
            self.run_log.eval(step, evaluation.rows)
            self.scores = evaluation.metrics
        return self.scores

    def log_samples(self, step: int, samples: SpreadRows) -> None:
        """Write a step's samples, whose rows are spread over the ranks. Collective."""
        with self.roles.timer("log"):
            self.run_log.rollouts(step, samples, group=dist.group.WORLD)

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics and timings. That of step 0 has the time of everything before the first step; that of the
        first step after a resume has it as `time/start`, beside what the step itself took."""
        seconds = self.roles.timer.drain()
        before, self.lap_started = self.lap_started, time.monotonic()
        seconds["time/total"] = self.lap_started - before
        step_seconds = seconds["time/total"]
        if self.start_seconds is not None:
            seconds["time/start"], self.start_seconds = self.start_seconds, None
            step_seconds -= seconds["time/start"]
        seconds["memory/host_gb"] = host_gb()
        new_tokens, self.roles.step_state.new_tokens = self.roles.step_state.new_tokens, 0
        rollout_seconds = (metrics | seconds).get("time/rollout")  # known to rank 0 where the engine has its own ranks
        if new_tokens and rollout_seconds:
            seconds["time/rollout_tokens_per_second"] = new_tokens / rollout_seconds
        if "rollout/tokens" in metrics and not self.roles.step_state.was_sampled_before:
            seconds["time/tokens_per_second"] = metrics["rollout/tokens"] / step_seconds
        self.run_log.metrics(step, metrics | seconds)
        for text in self.alarms.check(metrics):
            log.warning(f"step {step}: {text}")
        self.steps_done = step
        if step > 0:
            num_prompts = len(self.roles.step_state.record.completions) // self.roles.sampling.n
            self.prompts_passed = self._position_after(num_prompts)

    def save(self, step: int) -> None:
        """Complete the last save if it is written, and begin another where this step has one. Collective."""
        every = self.save_every
        is_due = step == self.last_step or (every > 0 and step % every == 0)
        if is_due or self.saver.is_pending:
            with self.roles.timer("save_blocking"):
                self.saver.finish_pending(block=False)
                if is_due:
                    position = TrainingPosition(step)
                    self.saver.save(self.roles.learners, self._manifest(position), self._records(position))

    def finish(self) -> None:
        """After the last step of this process: the last save, and at the end of the whole run actor and critic as
        trainer.export says, and the summary. Collective.

        The last checkpoint has their weights, so one rank writes them. Raises NotSaved on every rank where the
        checkpoint or one of them could not be written.
        """
        self.saver.finish()
        if self.last_step < self.total_steps:
            return
        problems = of_first_rank(self._export() if self.roles.mesh.rank == 0 else [], "checkpoint")
        if problems:
            raise NotSaved(
                f"{'; '.join(problems)}. The last checkpoint has the weights: mend it, and start the same "
                "command again."
            )

    def _export(self) -> list[str]:
        """Write the models of all roles in the forms of trainer.export, and the summary; returns what could not be
        written. On one rank."""
        run_dir = Path(self.config.trainer.run_dir)
        last = run_dir / CHECKPOINTS / TrainingPosition(self.total_steps).name
        problems = []
        for kind, name in product(self.config.trainer.export, self.roles.trained_roles):
            target = Target(kind, run_dir / kind / (f"{name}.nemo" if kind == "nemo" else name))
            if _is_older(target.path, last / MANIFEST):
                remove(target.path)  # of an earlier end, which the run was told to go beyond
            if not target.path.exists():
                try:
                    convert(open_source(last, "checkpoint", critic=name == "critic"), target, lambda done, total: None)
                except (OSError, ValueError) as error:
                    problems.append(f"{target.path} was NOT written: {str(error).rstrip('.')}")
        with Unessential().write("summary.json", run_dir):
            self.run_log.summary(summary_of(run_dir, self.config, self.roles.mesh.world_size))
        return problems

    def save_and_stop(self, reason: str) -> None:
        """Save how far the run has come, between updates too, and say how it goes on. Collective.

        Nothing is saved before the first update of a run. Raises NotSaved where the save fails.
        """
        step, step_state = self.steps_done + 1, self.roles.step_state
        if not self.roles.world.places.is_shared:
            step_state.agree_on_updates()
        position = TrainingPosition(self.steps_done, step_state.num_updates(step))
        self.saver.finish_pending(block=True)
        resumed_from = None if self.found is None else self.found.manifest.position
        if position > TrainingPosition(0) and position not in (self.saver.saved, resumed_from):
            self.saver.save(self.roles.learners, self._manifest(position), self._records(position))
            self.saver.finish()
        if self.roles.mesh.rank == 0:
            self.stop.delete_files()
            step = step if position.updates else position.steps
            write_stopped(Path(self.config.trainer.run_dir), step=step, updates_in_step=position.updates, reason=reason)
        log.info(f"stopped after {position.in_words}: {reason}. Start the same command again to go on.")

    def _records(self, position: TrainingPosition) -> dict[str, bytes]:
        """This rank's files of what is known of the steps after `position`: of the one that it is in, and of one that
        was sampled ahead. Collective over the world."""
        roles, step = self.roles, position.steps + 1
        roles.announce_ahead()
        ahead = None if roles.sampled_ahead is None else roles.sampled_ahead.step
        is_begun = bool(position.updates or (self.config.rollout.ahead and roles.step_state.trained_step == step))
        files: dict[str, bytes] = {}
        for number, name in ((step, checkpoint.RECORD), (step + 1, checkpoint.AHEAD)):
            if number == ahead or (number == step and is_begun):
                files |= roles.step_state.files(roles.world.rank, name, number)
        return files

    def _manifest(self, position: TrainingPosition) -> Manifest:
        """What a checkpoint says of all roles. Collective."""
        return checkpoint.manifest_of(
            position,
            checkpoint.facts_of(self.roles.learners),
            prompts_passed=self.prompts_passed,
            weight_version=self.weight_version(position.steps),
            evaluation={} if position.updates else self.scores,
            config_xxh3=xxhash.xxh3_64_hexdigest(to_yaml(self.config).encode()),
        )


def _is_older(path: Path, than: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns < than.stat().st_mtime_ns
