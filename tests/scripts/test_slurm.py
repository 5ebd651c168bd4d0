"""The job scripts on a real Slurm of two loopback nodes: trained to the end, stopped and gone on, failed fast."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from debian import Unavailable
from launch_envs import python_of
from slurm_cluster import Cluster, cluster

from nemo_simplerl.config.schema import CreateConfig
from nemo_simplerl.model.conversion.verify import different_tensors
from nemo_simplerl.model.source import open_source
from nemo_simplerl.trainer.setup.prepare import create_model
from support.ports import free_port
from support.ranks import run_ranks
from support.small_run import SMALL, books, few_problems, train_here

ROOT = Path(__file__).parents[2]
TRAIN = [*SMALL, "trainer.max_steps=3", "trainer.eval_every=0", "actor.tensor_model_parallel_size=2"]
WORLD = {"NODES": "2", "NPROC": "1", "GPU": "cpu", "VENV": "system", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
SIZES = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "num_query_groups": 1, "ffn_hidden_size": 64}
SIZES |= {"vocab_size": 600, "max_position_embeddings": 128}
TEXT = {"capture_output": True, "text": True}
LONG_S = 240  # four ranks on a busy machine take their time to import torch


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Cluster:
    try:
        with cluster(tmp_path_factory.mktemp("slurm")) as found:
            yield found
    except Unavailable as reason:
        if os.environ.get("CI"):
            pytest.fail(f"there is no Slurm to test with: {reason}")
        pytest.skip(str(reason))


def submit(slurm: Cluster, folder: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [ROOT / "scripts/slurm/submit.sh", "--parsable", "--", *overrides],
        env=slurm.env | WORLD | env,
        cwd=folder,
        capture_output=True,
        text=True,
    )


def train(slurm: Cluster, folder: Path, *overrides: str, **env: str) -> str:
    """The number of a job that trains in folder/run."""
    # Another test's cluster counts its jobs from 1 as well, and jobs choose their port by that number.
    env |= {"MASTER_PORT": str(free_port())}
    run = (*TRAIN, *few_problems(folder), "trainer.run_dir=run", *overrides)
    done = submit(slurm, folder, *run, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def logs(folder: Path) -> str:
    files = [*folder.glob("*.out"), *folder.glob("run/logs/node_*.log")]
    return "\n".join(f"== {path.name}\n{path.read_text()[-2500:]}" for path in files)


def told_by_shell(folder: Path) -> str:
    (out,) = folder.glob("simplerl-ppo-*.out")
    return out.read_text()


def wait_for_step(slurm: Cluster, number: str, folder: Path, step: int) -> None:
    """Until the line of a step is in the metrics of a job that runs."""
    deadline = time.monotonic() + LONG_S
    while not (metrics := folder / "run/metrics.jsonl").exists() or f'"step": {step},' not in metrics.read_text():
        state = slurm.job(number)["JobState"]
        assert state in ("PENDING", "CONFIGURING", "RUNNING"), f"{state}\n{logs(folder)}"
        assert time.monotonic() < deadline, logs(folder)
        time.sleep(0.2)


def wait(slurm: Cluster, number: str, folder: Path, state: str, timeout_s: float = LONG_S) -> dict[str, str]:
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    job = slurm.wait(number, state, *ends, timeout_s=timeout_s)
    assert job["JobState"] == state, f"{job}\n{logs(folder)}"
    return job


def assert_whole(folder: Path) -> None:
    """A job trained to the end on two nodes and wrote a log for each, and its shell says so."""
    assert (folder / "run/summary.json").is_file(), logs(folder)
    for rank in (0, 1):
        told = (folder / f"run/logs/node_{rank}.log").read_text()
        assert f"machine {rank} of 2, 1 rank on each, OMP_NUM_THREADS=1" in told
    assert "the run is finished: run" in told_by_shell(folder)


# The first save is the one that a stop asks for. One node's share of it is slow, then its completion on the other one.
SLOW = ["trainer.save_every=0"]
FAULTS = "delay@rollout#2,seconds=6;delay@checkpoint.write#1,rank=1,seconds=2;delay@checkpoint.rename#1,seconds=2"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run directory of the same run, left alone and without Slurm."""
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(train_here, 2, [*TRAIN, *SLOW, *few_problems(folder), f"trainer.run_dir={folder}/run"])
    return folder / "run"


def stop_and_go_on(slurm: Cluster, number: str, folder: Path, whole: Path) -> None:
    """Tell a job in its second step that its time is up; it is queued again and ends as the whole run."""
    wait_for_step(slurm, number, folder, 1)
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    job = wait(slurm, number, folder, "PENDING")
    assert job["Restarts"] == "1", f"{job}\n{logs(folder)}"
    wait(slurm, number, folder, "COMPLETED")
    assert '"step": 1' in (folder / "run/logs/resumed_from.json").read_text()
    assert "resumed after step 1 from" in (folder / "run/logs/node_0.log").read_text()
    assert not (folder / "run/stopped.json").exists() and not (folder / "run/stop").exists()
    assert books(folder / "run") == books(whole)
    for critic in (False, True):
        ends = [open_source(run / "checkpoints/step_000003", critic=critic) for run in (folder / "run", whole)]
        assert different_tensors(*ends, None) == []


@pytest.mark.long
def test_a_job_whose_time_is_up_queues_again_and_ends_as_a_run_without_slurm_though_a_node_is_slow_to_save(
    slurm, tmp_path, whole
):
    number = train(slurm, tmp_path, *SLOW, SIMPLERL_FAULTS=FAULTS)
    stop_and_go_on(slurm, number, tmp_path, whole)
    assert_whole(tmp_path)
    assert "USR1: asking the run to save" in told_by_shell(tmp_path) and "start 2:" in told_by_shell(tmp_path)
    assert "start 3:" not in told_by_shell(tmp_path)


@pytest.mark.launchers
def test_a_job_of_nemo_runs_whose_time_is_up_does_the_same(slurm, tmp_path, whole):
    sizes = ["--account=a", "--nodes=2", "--gpus-per-node=1", "--gpu=cpu", "--time=10"]
    words = [*TRAIN, *SLOW, *few_problems(tmp_path), "trainer.run_dir=run"]
    env = {"MASTER_PORT": str(free_port()), "SIMPLERL_FAULTS": FAULTS, "NEMORUN_HOME": str(tmp_path / "nemo")}
    before = slurm.jobs()
    done = subprocess.run(
        [python_of("nemo-run"), ROOT / "scripts/launch_nemo_run.py", "--executor=slurm", *sizes, "--", *words],
        env=slurm.env | WORLD | {"HOME": str(tmp_path)} | env,
        cwd=tmp_path,
        **TEXT,
    )
    assert done.returncode == 0 and "Can run." in done.stderr, done.stdout + done.stderr
    (number,) = set(slurm.jobs()) - set(before)
    stop_and_go_on(slurm, number, tmp_path, whole)


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_job_within_a_minute(slurm, tmp_path):
    number = train(slurm, tmp_path, SIMPLERL_FAULTS="kill@rollout#2,rank=3", NPROC="2")
    wait_for_step(slurm, number, tmp_path, 1)
    job = wait(slurm, number, tmp_path, "FAILED", timeout_s=60)
    assert job["Restarts"] == "0"
    assert "error: the run failed" in told_by_shell(tmp_path)


@pytest.mark.long
def test_actor_and_critic_train_on_one_node_what_the_engines_on_the_other_sample(slurm, tmp_path):
    """Ranks 0 and 1 are of the first node, 2 and 3 of the second; the trace says where which phase was."""
    places = ["placement.actor=0", "placement.critic=1", "placement.engine=2-3", "actor.tensor_model_parallel_size=1"]
    number = train(slurm, tmp_path, *places, SIMPLERL_TRACE="1", NPROC="2")
    wait(slurm, number, tmp_path, "COMPLETED")
    assert (tmp_path / "run/summary.json").is_file(), logs(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["refit/version"], line["refit/verified"]) for line in lines] == [
        (step, step, 1) for step in range(4)
    ]
    assert all((tmp_path / f"run/logs/node_{node}.log").is_file() for node in (0, 1))
    phases = {"rollout": {2, 3}, "actor_update": {0}, "critic_update": {1}, "values": {1}, "old_logprobs": {0}}
    ranks_of = {phase: set() for phase in phases}
    for rank in range(4):
        events = map(json.loads, (tmp_path / f"run/trace/rank_{rank}.jsonl").read_text().splitlines())
        for name in {event["name"] for event in events} & phases.keys():
            ranks_of[name].add(rank)
    assert ranks_of == phases


@pytest.mark.long
def test_a_configuration_that_cannot_run_is_told_and_not_queued(slurm, tmp_path):
    before = slurm.jobs()
    done = submit(slurm, tmp_path, *TRAIN, *few_problems(tmp_path), "actor.tensor_model_parallel_size=3")
    assert done.returncode == 1 and done.stdout == ""
    assert "Cannot run" in done.stderr and "nothing was submitted" in done.stderr
    assert slurm.jobs() == before and not list(tmp_path.glob("*.out"))


@pytest.mark.long
def test_an_evaluation_is_shared_by_the_nodes_and_told_at_the_end(slurm, tmp_path):
    create = CreateConfig(**SIZES, share_embeddings_and_output_weights=True)
    create_model(tmp_path / "model", create, ["What is 1 + 1?"], seed=1)
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n' * 8)
    ask = ["model", "--data=.", "--out=answers", "--benchmarks=gsm8k", "--template=none", "--max-tokens=8"]
    env = slurm.env | WORLD | {"SIMPLERL_ROOT": str(ROOT), "MASTER_PORT": str(free_port())}
    script = str(ROOT / "scripts/slurm/eval.sbatch")
    done = subprocess.run(["sbatch", "--parsable", "--nodes=2", script, *ask], env=env, cwd=tmp_path, **TEXT)
    assert done.returncode == 0, done.stderr
    ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
    job = slurm.wait(done.stdout.strip(), *ends, timeout_s=LONG_S)
    told = "\n".join(path.read_text()[-2500:] for path in [*tmp_path.glob("*.out"), *tmp_path.glob("answers/logs/*")])
    assert job["JobState"] == "COMPLETED", told
    assert "| GSM8K     | 8 " in (tmp_path / "answers/results.md").read_text()
    assert len(list((tmp_path / "answers/logs").glob("node_*.log"))) == 2
