"""What Kubeflow, SkyPilot and their hooks start: the commands in our files for them, run with the variables
that they set and a Python that only says what it was asked."""

import json
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
import yaml

from support.programs import program

ROOT = Path(__file__).parents[2]
IMAGE = "/opt/nemo_simplerl"  # where docker/Dockerfile puts the checkout
# -c asks whether torch and megatron are there, --check whether the settings are right. What is started is told, and the
# variables that torchrun or a rank would take for its own.
PYTHON = 'case "$*" in -c*|*--check) ;; *) echo "$@"; env | grep -E "^(PET_|RANK=)"; exit "${ENDS:-0}" ;; esac'
TORCHRUN = (
    "-m torch.distributed.run --nnodes 2 --node_rank {rank} --master_addr {head} --master_port {port} "
    "--nproc_per_node 8 -m nemo_simplerl train {words}\n"
)
PET = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "8", "PET_MASTER_ADDR": "seven-node-0-0.seven"}
PET |= {"PET_MASTER_PORT": "29500"}
SKYPILOT = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
SKYPILOT |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}


@pytest.fixture
def run(tmp_path):
    """Runs a command with these variables alone, and a Python that only says what it was asked."""
    python = program(tmp_path / "bin", "python", PYTHON)
    program(tmp_path / "bin", "nvidia-smi", 'for gpu in 0 1 2 3 4 5 6 7; do echo "GPU $gpu: X"; done')

    def run(*words, **env):
        given = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "VENV": "system"} | env | {"PYTHON": str(python)}
        return subprocess.run(list(map(str, words)), env=given, cwd=tmp_path, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("launcher", "head"),
    [
        (PET, "seven-node-0-0.seven"),
        (
            PET | {"PET_NPROC_PER_NODE": "auto", "PET_RDZV_BACKEND": "c10d", "PET_STANDALONE": "1"},
            "seven-node-0-0.seven",
        ),
        (PET | {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "seven-master-0"}, "seven-master-0"),
        (SKYPILOT, "10.0.0.1"),
    ],
    ids=["TrainJob", "auto", "PyTorchJob", "SkyPilot"],
)
def test_a_machine_of_a_launchers_joins_the_others_without_another_word(run, launcher, head):
    done = run(ROOT / "scripts/train.sh", "a=1", **launcher)
    assert done.stdout == TORCHRUN.format(rank=1, head=head, port=29500, words="a=1"), done.stderr
    assert "machine 1 of 2, 8 ranks on each" in done.stderr


def test_what_is_set_by_hand_comes_before_what_a_launcher_says_and_torchrun_hears_nothing_else(run):
    done = run(ROOT / "scripts/train.sh", "a=1", **PET, NNODES="1", NPROC="2")
    assert done.stdout == "-m torch.distributed.run --standalone --nproc_per_node 2 -m nemo_simplerl train a=1\n"
    alone = PET | {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "1", "RANK": "0", "WORLD_SIZE": "1"}
    assert run(ROOT / "scripts/train.sh", "a=1", **alone).stdout == "-m nemo_simplerl train a=1\n"


def test_a_number_of_machines_that_may_change_is_refused(run):
    done = run(ROOT / "scripts/train.sh", "a=1", **PET | {"PET_NNODES": "1:4"})
    assert done.returncode == 1 and done.stdout == ""
    assert "NNODES=1:4: a run has a fixed number of machines" in done.stderr


def manifests(name):
    return list(yaml.safe_load_all((ROOT / "scripts/kubernetes" / name).read_text()))


def pods():
    """The pods of each kind of job, by the name of their file."""
    _, runtime = manifests("runtime.yaml")
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    (pytorch,) = manifests("pytorchjob.yaml")
    replicas = pytorch["spec"]["pytorchReplicaSpecs"].values()
    return [job["template"]["spec"]["template"]["spec"], *(replica["template"]["spec"] for replica in replicas)]


def containers():
    """What each kind of job starts, with its whole environment."""
    (job,) = manifests("trainjob.yaml")
    (node,) = pods()[0]["containers"]
    trainer = job["spec"]["trainer"]
    merged = node | {key: trainer[key] for key in ("command", "args")} | {"env": node["env"] + trainer["env"]}
    return [merged, *(pod["containers"][0] for pod in pods()[1:])]


def words_of(container):
    """As the kubelet makes them: $(NAME) is a variable of the container."""
    env = {item["name"]: item["value"] for item in container["env"]}
    words = [*container["command"], *container["args"]]
    expanded = [re.sub(r"\$\((\w+)\)", lambda name: env[name[1]], word) for word in words]
    return [word.replace(IMAGE, str(ROOT)) for word in expanded], env


@pytest.mark.parametrize("container", containers(), ids=["TrainJob", "Master", "Worker"])
def test_a_pod_starts_torchrun_as_its_first_process_in_the_run_directory_of_its_claim(run, container):
    words, env = words_of(container)
    assert words[0].endswith("/scripts/train.sh")  # no shell before it: a shell as process 1 keeps TERM to itself
    done = run(*words, **env, **PET)
    told = " ".join(words[1:])
    assert done.stdout == TORCHRUN.format(rank=1, head=PET["PET_MASTER_ADDR"], port=29500, words=told), done.stderr
    (claim,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "shared"]
    assert told.startswith(f"trainer.run_dir={env['RUN_DIR']} ") and env["RUN_DIR"].startswith(f"{claim}/")
    assert env["SIMPLERL_MODEL_DIR"].startswith(f"{claim}/")


@pytest.mark.parametrize(
    ("pod", "container"), [*zip(pods(), containers(), strict=True)], ids=["TrainJob", "Master", "Worker"]
)
def test_a_pod_gives_a_save_its_time_and_the_run_its_memory_and_its_user(pod, container):
    (shell, _, command) = container["lifecycle"]["preStop"]["exec"]["command"]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert shell == "bash" and command.startswith(f'exec {IMAGE}/scripts/stop.sh "$RUN_DIR" ')
    grace, waits = pod["terminationGracePeriodSeconds"], int(command.split()[-1])
    assert 30 < waits <= grace - 30 and int(env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace
    (memory,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
    assert memory["medium"] == "Memory" and {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    user = re.search(r"^USER (\d+)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)[1]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user)


def task():
    return yaml.safe_load((ROOT / "scripts/skypilot/train.yaml").read_text())


@pytest.mark.parametrize(
    ("ends", "stopped", "status"), [("0", "", 0), ("1", "", 1), ("1", "while it ran", 75), ("2", "before", 2)]
)
def test_a_task_of_skypilots_that_was_stopped_starts_again_and_one_that_is_finished_or_cannot_run_ends(
    run, tmp_path, ends, stopped, status
):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    if stopped == "before":
        (run_dir / "stopped.json").write_text("{}")
    if stopped == "while it ran":
        program(
            tmp_path / "bin", "python", f'case "$*" in -c*|*--check) ;; *) touch {run_dir}/stopped.json; exit 1 ;; esac'
        )
    found = task()
    env = found["envs"] | SKYPILOT | {"RUN_DIR": str(run_dir), "SETTINGS": "a=1 b=[*]", "ENDS": ends}
    done = run("bash", "-c", found["run"].replace(IMAGE, str(ROOT)), **env)
    assert done.returncode == status, done.stderr
    assert found["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


def test_a_task_of_skypilots_gives_its_settings_as_they_stand(run, tmp_path):
    found = task()
    env = found["envs"] | SKYPILOT | {"RUN_DIR": str(tmp_path), "SETTINGS": "a=1 b=[*]"}
    done = run("bash", "-c", found["run"].replace(IMAGE, str(ROOT)), **env)
    words = f"trainer.run_dir={tmp_path} a=1 b=[*]"
    assert done.stdout == TORCHRUN.format(rank=1, head="10.0.0.1", port=29500, words=words), done.stderr
    (hook,) = found["config"]["hooks"]
    assert hook["run"] == f"{IMAGE}/scripts/stop.sh {found['envs']['RUN_DIR']} 540" and hook["timeout"] > 540


def test_a_stop_is_asked_for_until_the_run_says_that_it_is_saved(run, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "running.json").touch()

    def train():
        for _ in range(2):  # it starts, which forgets what was asked before
            while not (run_dir / "stop").exists():
                time.sleep(0.02)
            (run_dir / "stop").unlink()
        (run_dir / "stopped.json").write_text(json.dumps({"step": 3}))

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    done = run(ROOT / "scripts/stop.sh", run_dir, "20")
    thread.join(5)
    assert (done.returncode, done.stderr) == (0, 'saved: {"step": 3}\n')
    assert not (run_dir / "stop").exists()


def test_a_stop_does_not_wait_where_no_run_is_and_not_for_ever(run, tmp_path):
    done = run(ROOT / "scripts/stop.sh", tmp_path)
    assert (done.returncode, done.stderr) == (0, f"no run is in {tmp_path}\n")
    (tmp_path / "running.json").touch()
    done = run(ROOT / "scripts/stop.sh", tmp_path, "1")
    assert done.returncode == 1 and "has not stopped after 1 s; it is still asked to" in done.stderr
    assert (tmp_path / "stop").exists()
    assert "is not a folder" in run(ROOT / "scripts/stop.sh", tmp_path / "missing").stderr
