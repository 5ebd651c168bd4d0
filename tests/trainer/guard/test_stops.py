"""A run that is asked to stop saves between updates, exits with 75, and when resumed ends the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from nemo_simplerl.parallel.mesh import destroy_mesh
from nemo_simplerl.reward.serving.pool import RewardPool
from nemo_simplerl.rollout.distribute import BrokenOff
from nemo_simplerl.trainer import run
from nemo_simplerl.trainer.guard.stop import Stop, Stopping, write_stopped
from nemo_simplerl.trainer.learners.updates import UpdateLoop
from nemo_simplerl.trainer.saving.record import StepKey
from nemo_simplerl.trainer.saving.step_state import StepState
from support.forked_runs import different, problems_in, start
from support.ranks import run_ranks
from support.small_run import SMALL, few_problems, train_here

LENGTH = ["trainer.max_steps=3", "trainer.save_every=0", "trainer.eval_every=1", "algo.kl_coef=0.01"]
STOPPED = os.EX_TEMPFAIL
# Where a signal at the second visit to a point stops the run: the step, and the updates made of it (0: after it).
AT = {
    "rollout": (1, 0),
    "reward": (1, 0),
    "old_logprobs": (1, 0),
    "reference_logprobs": (1, 0),
    "values": (1, 0),
    "critic_update": (1, 0),
    "critic.update": (1, 1),
    "actor_update": (2, 2),
    "actor.update": (1, 3),
    "refit": (1, 4),
    "log": (2, 4),
    "eval": (1, 4),
    "checkpoint.write": None,  # the only save is the last: the run is at its end and reaches it
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    assert start(folder / "alone", [*problems_in(folder), *LENGTH], 1) == [0]
    return folder / "alone"


def _facts(run_dir: Path) -> dict:
    return json.loads((run_dir / "stopped.json").read_text())


QUICK = ["rollout", "critic.update", "actor.update"]


@pytest.mark.parametrize(
    "point", [*QUICK, *(pytest.param(point, marks=pytest.mark.slow) for point in AT if point not in QUICK)]
)
def test_a_signal_in_any_phase_stops_within_one_update_and_the_run_goes_on_to_the_same_bytes(tmp_path, alone, point):
    run_dir, words = tmp_path / "run", [*problems_in(alone.parent), *LENGTH]
    name = "TERM" if point.startswith(("r", "critic")) else "USR1"
    status = start(run_dir, words, 1, f"signal@{point}#2,name={name}")
    if AT[point] is None:
        assert status == [0]
    else:
        assert status == [STOPPED]
        assert not (run_dir / "summary.json").exists()
        facts = _facts(run_dir)
        assert facts["reason"] == f"SIG{name}"
        (last,) = (path.name for path in (run_dir / "checkpoints").glob("step_*"))
        step, updates = AT[point]
        assert (facts["step"], facts["updates_in_step"]) == (step, updates)
        assert last == f"step_{step:06d}" + (f"_update_{updates:04d}" if updates else "")
        assert start(run_dir, words, 1) == [0]
        assert not (run_dir / "stopped.json").exists()
    assert different(alone, run_dir) == []


def test_a_stop_file_and_the_end_of_max_time_stop_a_run_too(tmp_path, alone):
    words = [*problems_in(alone.parent), *LENGTH]
    run_dir = tmp_path / "run"
    assert start(run_dir, [*words, "trainer.max_time=00:00:00:01"], 1, "delay@rollout#2,seconds=1.1") == [STOPPED]
    assert _facts(run_dir)["reason"] == "trainer.max_time=00:00:00:01"
    process_output = (run_dir / "output.txt").read_text()
    assert "Start the same command again to go on." in process_output
    (run_dir / "stop").write_text("")  # left from before: a new start means to go on
    assert start(run_dir, words, 1) == [0]
    assert not (run_dir / "stop").exists()
    assert different(alone, run_dir) == []


def _second_signal() -> list:
    dist.init_process_group("gloo")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    seen = []
    with Stop(Path("here"), is_first_rank=dist.get_rank() == 0, max_time=None, started=0.0) as stop:
        stop.safe_point()
        state = StepState(should_stop=lambda: stop.is_urgent)
        state.begin(StepKey(1, 0, "", ""))

        def sample():
            for number in (signal.SIGINT, signal.SIGUSR1) if dist.get_rank() == 1 else ():
                seen.append(state.should_stop())
                os.kill(os.getpid(), number)
            seen.append(state.should_stop())
            raise BrokenOff

        try:
            state.completions(sample, 1)
        except BrokenOff:
            try:
                stop.safe_point()
            except Stopping as asked:
                seen.append(str(asked))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
    destroy_mesh()
    return seen


def test_a_second_signal_on_one_rank_breaks_off_the_rollout_of_all_and_handlers_are_handed_back():
    assert run_ranks(_second_signal, 2) == [[False, "SIGUSR1"], [False, False, True, "SIGUSR1"]]


def _stopped_slowly(run_dir: Path, data: list[str]) -> bool:
    """Whether stopped.json is there when this rank leaves a run whose first rank takes its time to write it."""

    def write_late(*args, **facts):
        time.sleep(2)
        write_stopped(*args, **facts)

    run.write_stopped = write_late
    train_here([*SMALL, *data, f"trainer.run_dir={run_dir}", "trainer.max_time=00:00:00:01", "trainer.eval_every=0"])
    return (run_dir / "stopped.json").exists()


@pytest.mark.slow
def test_no_rank_leaves_before_the_stop_is_written_down(tmp_path):
    """srun --kill-on-bad-exit ends the other machines as soon as one has left."""
    assert run_ranks(_stopped_slowly, 2, tmp_path / "run", few_problems(tmp_path)) == [True, True]


def _stop_of_one_group() -> str:
    """What the second rank hears at a safe point of a group that the first is not in."""
    dist.init_process_group("gloo")
    group = dist.new_group([1])
    with Stop(Path("here"), is_first_rank=dist.get_rank() == 0, max_time=None, started=0.0) as stop:
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            try:
                stop.on_phase("critic.update", group)
            except Stopping as asked:
                return str(asked)
    return "asked nothing"


def test_the_ranks_of_one_model_agree_to_stop_without_asking_the_others():
    assert run_ranks(_stop_of_one_group, 2) == ["asked nothing", "SIGUSR1"]


def test_a_reward_worker_leaves_signals_to_all_of_a_job_to_its_owner():
    with RewardPool(1, timeout_s=20.0, memory_limit_mb=1024) as pool:
        (pid,) = pool.worker_pids()
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(pid, number)
        (grade,) = pool.grade([("7", r"\boxed{7}")])
        assert (grade.verdict, grade.status) == ("correct", "ok")
        assert pool.worker_pids() == [pid]


def test_updates_that_were_made_are_not_made_again():
    made = []
    update_loop = UpdateLoop()
    begun = [{"loss": 1.0}]
    update_loop.skip_finished(begun)

    def update(mini: str, is_first: bool) -> dict:
        made.append((mini, is_first))
        return {"loss": 2.0}

    assert update_loop.run(["a", "b", "c"], update) == [{"loss": 1.0}, {"loss": 2.0}, {"loss": 2.0}]
    assert made == [("b", False), ("c", False)] and len(begun) == 3
    assert update_loop.run(["d"], update) == [{"loss": 2.0}] and made[-1] == ("d", True)


@pytest.fixture(scope="module")
def within(alone) -> Path:
    """A run that has stopped in its second step, after both updates of the critic and one of the actor."""
    run_dir = alone.parent / "within"
    words = [*problems_in(alone.parent), *LENGTH]
    assert start(run_dir, [*words, "trainer.save_every=1"], 1, "signal@actor.update#4,name=TERM") == [STOPPED]
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == [
        "latest",
        "step_000001",
        "step_000002_update_0003",
    ]
    assert _facts(run_dir) == {"step": 2, "updates_in_step": 3, "reason": "SIGTERM"}
    return run_dir


@pytest.mark.parametrize("file", ["step/record.npz", "actor/model_weights/__0_0.distcp"])
def test_where_it_is_damaged_the_checkpoint_before_it_is_used(tmp_path, alone, within, file):
    run_dir = Path(shutil.copytree(within, tmp_path / "run"))
    path = run_dir / "checkpoints/step_000002_update_0003" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert start(run_dir, [*problems_in(alone.parent), *LENGTH], 1) == [0]  # a copy in another place is the same run
    output = (run_dir / "output.txt").read_text()
    assert f"step_000002_update_0003 cannot be used: {file} holds other bytes than were written" in output
    assert "resumed after step 1 from" in output
    assert different(alone, run_dir) == []


def test_a_model_starts_from_a_checkpoint_within_a_step(tmp_path, alone, within):
    path = within / "checkpoints/step_000002_update_0003"
    words = [*problems_in(alone.parent), *LENGTH, "trainer.max_steps=1", "model.create=null"]
    run_dir = tmp_path / "run"
    assert start(run_dir, [*words, f"model.path={path}", f"critic.path={path}"], 1) == [0], (
        run_dir / "output.txt"
    ).read_text()


def test_a_step_begun_with_other_sizes_of_updates_is_refused_in_words(tmp_path, alone, within):
    run_dir = Path(shutil.copytree(within, tmp_path / "run"))
    words = [*problems_in(alone.parent), *LENGTH, "actor.global_batch_size=16"]
    assert start(run_dir, [*words, "trainer.resume_allow=[actor]"], 1) == [2]
    assert (
        "step 2 is to go on after 3 of its updates, but it was begun with other" in (run_dir / "output.txt").read_text()
    )


@pytest.mark.long
def test_a_stop_within_a_step_at_tp2_x_pp2_goes_on_at_dp2(tmp_path):
    data, run_dir = problems_in(tmp_path), tmp_path / "run"
    wide = ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"]
    assert start(tmp_path / "alone", [*data, *LENGTH, *wide], 4) == [0] * 4
    assert start(run_dir, [*data, *LENGTH, *wide], 4, "signal@actor.update#4,name=TERM,rank=2") == [STOPPED] * 4
    assert (run_dir / "checkpoints/step_000002_update_0003").is_dir()
    assert start(run_dir, [*data, *LENGTH], 2) == [0] * 2, (run_dir / "output.txt").read_text()
    found, expected = _metrics(run_dir), _metrics(tmp_path / "alone")
    assert [line["step"] for line in found] == [0, 1, 2, 3]
    for got, wanted in zip(found, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def _metrics(run_dir: Path) -> list[dict[str, float]]:
    """Metrics without timings, and without those that depend on rounding and bucket sizes alone."""
    of_layout = ("time/", "memory/", "consistency/", "refit/buckets", "actor/first_ratio", "actor/ratio_deviation")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(of_layout)} for line in lines]


@pytest.mark.long
def test_torchrun_that_is_terminated_lets_its_ranks_save(tmp_path):
    from kills import RUN

    run_dir = tmp_path / "run"
    words = [*RUN, *problems_in(tmp_path), *LENGTH, f"trainer.run_dir={run_dir}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"SIMPLERL_FAULTS": "delay@actor.update#4,seconds=4", "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "output.txt", "wb") as output:
        process = subprocess.Popen([*command, "-m", "nemo_simplerl", "train", *words], env=environment, stdout=output)
        try:
            deadline = time.monotonic() + 120
            while not (run_dir / "rollouts/step_000001.jsonl").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.terminate()
            assert process.wait(60) != 0
        finally:
            process.kill()
    assert _facts(run_dir)["reason"] == "SIGTERM", (tmp_path / "output.txt").read_text()
    assert start(run_dir, [*problems_in(tmp_path), *LENGTH], 2) == [0, 0]
    assert [line["step"] for line in _metrics(run_dir)] == [0, 1, 2, 3]
