"""What the batch shell of a job decides, with srun and scontrol played by a few lines of shell."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PPO = ROOT / "scripts/slurm/ppo.sbatch"
# As NeMo-Run's batch script goes about it: the shell waits for srun, and requeues whatever has failed.
NEMO_RUN = f"""#!/bin/bash
set -evx
set +e
source "{ROOT}/scripts/slurm/job.sh"
take_srun run 4
srun --output log.out --wait=60 --kill-on-bad-exit=1 bash train.sh
exitcode=$?
set -e
if [ "$exitcode" -ne 0 ]; then
  if [ "$TORCHX_MAX_RETRIES" -gt "${{SLURM_RESTART_COUNT:-0}}" ]; then scontrol requeue again; fi
  exit "$exitcode"
fi
"""
SAVED = """echo '{"step": 3, "updates_in_step": 0, "reason": "%s"}' >run/stopped.json; exit 1"""
UNTIL_ASKED = "touch started; until [ -e run/stop ]; do sleep 0.05; done; "


@pytest.fixture
def job(tmp_path):
    """Starts ppo.sbatch or another script as Slurm would, with this for srun; scontrol writes down what it is told."""
    started = []

    def start(srun: str, *overrides: str, script: Path = PPO, **env: str) -> subprocess.Popen:
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir(exist_ok=True)
        programs = {
            "srun": f'echo "$@" >>srun.log; {srun}',
            "scontrol": 'if [ "$1 $2" = "show hostnames" ]; then echo localhost; else echo "$@" >>scontrol.log; fi',
        }
        for name, body in programs.items():
            (bin_folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (bin_folder / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "NPROC": "4"}
        process = subprocess.Popen(
            [script, *(overrides or ("trainer.run_dir=run",))],
            cwd=tmp_path,
            env={"PATH": f"{bin_folder}:/usr/bin:/bin", "SIMPLERL_ROOT": str(ROOT), **slurm, **env},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    told = process.communicate(timeout=30)[1]
    return process.returncode, told


def requeues(folder: Path) -> list[str]:
    log = folder / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def signalled(process: subprocess.Popen, folder: Path, number: signal.Signals) -> tuple[int, str]:
    """What comes of a signal to the batch shell while srun runs."""
    while not (folder / "started").exists():
        time.sleep(0.02)
    process.send_signal(number)
    return finish(process)


def test_every_node_starts_once_and_one_that_fails_ends_the_others(job, tmp_path):
    status, told = finish(job("exit 0", "experiment=quickstart", "trainer.run_dir=run", "a=[1]"))
    assert status == 0 and "the run is finished: run" in told and "2 nodes x 4 ranks" in told
    words = (tmp_path / "srun.log").read_text().split()
    assert {"--ntasks=2", "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--mpi=none"} <= set(words)
    assert words[-6:] == [
        f"{ROOT}/scripts/slurm/node.sh",
        *("train", "experiment=quickstart", "trainer.run_dir=run", "a=[1]", "trainer.run_dir=run"),
    ]
    assert not [word for word in words if word.startswith("--container")] and requeues(tmp_path) == []


def test_near_its_end_the_job_asks_for_the_save_and_queues_again(job, tmp_path):
    status, told = signalled(job(UNTIL_ASKED + SAVED % "stop file"), tmp_path, signal.SIGUSR1)
    assert status == 0 and "goes on in its next allocation" in told
    assert requeues(tmp_path) == ["requeue 77"]
    assert not (tmp_path / "run/stop").exists()


def test_a_run_that_removes_the_request_while_it_starts_is_asked_again(job, tmp_path):
    status, _ = signalled(job(f"{UNTIL_ASKED} rm run/stop; {UNTIL_ASKED} {SAVED % 'x'}"), tmp_path, signal.SIGUSR1)
    assert status == 0 and requeues(tmp_path) == ["requeue 77"]


def test_a_job_that_is_terminated_saves_and_stays_down(job, tmp_path):
    status, told = signalled(job(UNTIL_ASKED + SAVED % "stop file"), tmp_path, signal.SIGTERM)
    assert status == 0 and "To go on, submit the same job" in told
    assert requeues(tmp_path) == []


@pytest.mark.parametrize(("reason", "again"), [("trainer.max_time=00:01:00:00", True), ("the file run/stop", False)])
def test_of_stops_that_the_job_did_not_ask_for_only_the_end_of_max_time_queues_again(job, tmp_path, reason, again):
    status, _ = finish(job(SAVED % reason))
    assert status == 0 and bool(requeues(tmp_path)) == again


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGUSR1, ["requeue 77"]), (signal.SIGTERM, [])], ids=["time is up", "terminated"]
)
def test_a_job_of_nemo_runs_saves_and_queues_again_or_stays_down_as_ours_does(job, tmp_path, number, again):
    script = tmp_path / "sbatch.sh"
    script.write_text(NEMO_RUN)
    script.chmod(0o755)
    process = job(UNTIL_ASKED + SAVED % "stop file", script=script, TORCHX_MAX_RETRIES="0")
    status, told = signalled(process, tmp_path, number)
    assert status == 0 and requeues(tmp_path) == again, told
    assert (tmp_path / "srun.log").read_text().endswith("--kill-on-bad-exit=1 bash train.sh\n")


def test_a_job_of_nemo_runs_that_fails_is_not_queued_again(job, tmp_path):
    script = tmp_path / "sbatch.sh"
    script.write_text(NEMO_RUN)
    script.chmod(0o755)
    status, told = finish(job("exit 9", script=script, TORCHX_MAX_RETRIES="0"))
    assert status == 1 and "srun ended with 9" in told and requeues(tmp_path) == []


def test_a_job_that_gets_no_further_is_not_queued_for_ever(job, tmp_path):
    assert finish(job(SAVED % "max_time"))[0] == 0
    status, told = finish(job(SAVED % "max_time"))
    assert status == 1 and "got no further" in told and requeues(tmp_path) == ["requeue 77"]
    further = (SAVED % "max_time").replace('"step": 3', '"step": 4')
    assert finish(job(further))[0] == 0 and len(requeues(tmp_path)) == 2


def test_a_failure_is_one_even_where_an_earlier_allocation_left_its_stop(job, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/stopped.json").write_text('{"step": 3, "updates_in_step": 0, "reason": "max_time"}')
    status, told = finish(job("exit 9"))
    assert status == 1 and "srun ended with 9" in told and "logs/node_*.log" in told
    assert requeues(tmp_path) == []


def test_without_a_run_directory_the_job_makes_one_of_its_own_and_keeps_it_when_queued_again(job, tmp_path):
    for start in ("0", "1"):
        status, _ = finish(job("exit 0", "experiment=quickstart", SLURM_RESTART_COUNT=start))
        assert status == 0
    lines = (tmp_path / "srun.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["trainer.run_dir=runs/slurm_77"] * 2


def test_settings_that_cannot_be_used_are_told_by_the_job_itself(job, tmp_path):
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "run/logs/node_0.log").write_text("1 rank\nconfig: trainer.sed is not a key\n")
    status, told = finish(job("exit 2"))
    assert status == 1 and "config: trainer.sed is not a key" in told and "Mend what is named above" in told
    assert requeues(tmp_path) == []


def test_a_run_directory_may_have_spaces_accents_and_a_home(job, tmp_path):
    assert finish(job("exit 0", "trainer.run_dir=~/José (1)/a=b", HOME=str(tmp_path)))[0] == 0
    assert (tmp_path / "José (1)/a=b/logs").is_dir()


@pytest.mark.parametrize("text", ["'runs/a'", "${oc.env:HOME}/r", "", "a,b"])
def test_a_run_directory_that_the_shell_cannot_read_is_refused(job, tmp_path, text):
    status, told = finish(job("exit 0", f"trainer.run_dir={text}"))
    assert status == 1 and "plain path" in told and not (tmp_path / "srun.log").exists()


def test_a_container_gets_the_checkout_the_run_and_the_named_folders_and_its_own_python(job, tmp_path):
    folders = {"SIMPLERL_MODEL_DIR": "/models", "CONTAINER_MOUNTS": "/scratch:/scratch", "VENV": str(tmp_path)}
    show = 'echo "$VENV $PYTHON" >python.log; exit 0'
    assert finish(job(show, CONTAINER="/images/simplerl.sqsh", **folders))[0] == 0
    words = (tmp_path / "srun.log").read_text().split()
    mounts = ",".join(f"{path}:{path}" for path in (ROOT, tmp_path, tmp_path / "run", "/models", "/scratch"))
    assert {"--container-image=/images/simplerl.sqsh", f"--container-mounts={mounts}"} <= set(words)
    assert f"--container-workdir={tmp_path}" in words
    assert (tmp_path / "python.log").read_text() == "system python3\n"


def test_a_node_starts_torchrun_at_its_own_rank_without_what_slurm_and_mpi_set(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[ "$1" = -c ] && exit 0\necho "$*"\nenv | cut -d= -f1\n')
    python.chmod(0o755)
    world = {"NNODES": "2", "NPROC": "4", "MASTER_ADDR": "n1", "MASTER_PORT": "20077"}
    launcher = {"SLURM_NODEID": "1", "SLURM_PROCID": "1", "SRUN_X": "1", "PMI_RANK": "1", "PMIX_ID": "1", "OMPI_X": "1"}
    done = subprocess.run(
        [ROOT / "scripts/slurm/node.sh", "train", "a=1"],
        env={"PATH": os.environ["PATH"], "VENV": "system", "PYTHON": str(python), "KEPT": "1", **world, **launcher},
        capture_output=True,
        text=True,
    )
    checked, started = done.stdout.split("-m torch.distributed.run")
    assert checked.startswith("-m nemo_simplerl train a=1 --check\n")
    assert {"WORLD_SIZE", "LOCAL_WORLD_SIZE"} <= set(checked.splitlines()), "what says which node has which ranks"
    command, *names = f"-m torch.distributed.run{started}".splitlines()
    assert command == (
        "-m torch.distributed.run --nnodes 2 --node_rank 1 --master_addr n1 --master_port 20077 --nproc_per_node 4 "
        "-m nemo_simplerl train a=1"
    )
    assert "KEPT" in names and not launcher.keys() & set(names)
    assert "machine 1 of 2, 4 ranks on each" in done.stderr and "meeting at n1:20077" in done.stderr


def test_a_batch_script_away_from_the_checkout_says_what_to_set(tmp_path):
    env = {"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)}
    for name in ("ppo", "sft"):
        done = subprocess.run([ROOT / f"scripts/slurm/{name}.sbatch"], env=env, capture_output=True, text=True)
        assert done.returncode == 2 and "SIMPLERL_ROOT" in done.stderr


@pytest.mark.parametrize(
    ("words", "gpu", "options", "script"),
    [
        (["--time=60"], "h100-80g", ["--nodes=1", "--gpus-per-node=1", "--time=60"], "ppo"),
        (["--sft"], "cpu", ["--nodes=1"], "sft"),
    ],
)
def test_a_run_that_fits_is_submitted_with_the_sizes_of_its_plan(tmp_path, words, gpu, options, script):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/bash\necho "$SIMPLERL_ROOT $NPROC $VENV"; printf "%s\\n" "$@"\n')
    sbatch.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/slurm/submit.sh", *words, "--", "experiment=quickstart", "trainer.seed=2"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "VENV": "system", "PYTHON": sys.executable, "NPROC": "1", "GPU": gpu},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Can run." in done.stderr
    first, *arguments = done.stdout.splitlines()
    assert first == f"{ROOT} 1 system"
    assert arguments == [*options, f"{ROOT}/scripts/slurm/{script}.sbatch", "experiment=quickstart", "trainer.seed=2"]


@pytest.mark.parametrize("option", ["-N4", "--nodes=4", "--gpus-per-node=2"])
def test_sizes_that_the_plan_would_not_see_are_refused(option):
    done = subprocess.run(
        [ROOT / "scripts/slurm/submit.sh", option, "--", "experiment=quickstart"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "set NODES and NPROC" in done.stderr


def test_submit_without_overrides_tells_its_usage_as_an_error():
    done = subprocess.run([ROOT / "scripts/slurm/submit.sh", "--"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: scripts/slurm/submit.sh" in done.stderr
