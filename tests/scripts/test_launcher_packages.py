"""The files and the script for launchers before the launchers' own packages, in environments of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launch_envs import python_of

from support.programs import program

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.launchers
TEXT = {"capture_output": True, "text": True}


def answer(name: str, code: str, folder: Path, *words: str) -> dict:
    """What the code prints as JSON on its last line, run in a launcher's environment with a home of its own."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([python_of(name), "-c", code, *words], env=env, cwd=folder, **TEXT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# The models drop what they do not know: a manifest that comes back equal to itself has nothing of the kind.
MANIFESTS = """
import copy, json, sys
from pathlib import Path
import kubeflow.training.models as training
import kubernetes.client
import yaml
from kubeflow.training.utils.utils import FakeResponse
from kubeflow_trainer_api import models
from kubernetes_validate import validate

for name in dir(training):
    if name.startswith("KubeflowOrg"):
        setattr(kubernetes.client.models, name, getattr(training, name))

def again(manifest):
    if manifest["kind"] == "PyTorchJob":
        client = kubernetes.client.ApiClient()
        return client.sanitize_for_serialization(client.deserialize(FakeResponse(manifest), "KubeflowOrgV1PyTorchJob"))
    model = {"TrainJob": models.TrainerV1alpha1TrainJob, "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime}
    return json.loads(model[manifest["kind"]].from_dict(manifest).to_json())

def refusal(manifest):
    try:
        validate(manifest, "1.33", strict=True)
    except Exception as error:
        return str(error)

def pod(spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}

def with_typo(manifest, *path):
    found = copy.deepcopy(manifest)
    place = found
    for key in path:
        place = place[key]
    place["terminationGracePeriodSecond"] = 1
    return found

folder = Path(sys.argv[1])
claim, runtime = yaml.safe_load_all((folder / "runtime.yaml").read_text())
job, pytorch = (yaml.safe_load((folder / name).read_text()) for name in ("trainjob.yaml", "pytorchjob.yaml"))
node = ("spec", "template", "spec", "replicatedJobs", 0, "template", "spec")
of_runtime = runtime
for key in node:
    of_runtime = of_runtime[key]
specs = [of_runtime["template"]["spec"]]
specs += [replica["template"]["spec"] for replica in pytorch["spec"]["pytorchReplicaSpecs"].values()]
batch = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, "spec": of_runtime}
typos = [
    with_typo(runtime, *node, "template", "spec"),
    with_typo(job, "spec", "trainer"),
    with_typo(pytorch, "spec", "runPolicy"),
]
print(json.dumps({
    "dropped": [manifest["kind"] for manifest in (job, runtime, pytorch) if again(manifest) != manifest],
    "refused": [refusal(manifest) for manifest in (claim, batch, *map(pod, specs))],
    "typos found": [again(typo) != typo for typo in typos] + [refusal(with_typo(pod(specs[0]), "spec")) is not None],
}))
"""


def test_manifests_hold_nothing_that_kubernetes_and_kubeflow_do_not_know(tmp_path):
    found = answer("kubernetes", MANIFESTS, tmp_path, str(ROOT / "scripts/kubernetes"))
    assert found == {"dropped": [], "refused": [None] * 5, "typos found": [True] * 4}


TASK = """
import json, sys
from pathlib import Path
import sky, yaml
from sky.volumes.volume import Volume

path = Path(sys.argv[1])
task = sky.Task.from_yaml(str(path))
config = yaml.safe_load(path.read_text())
config["resources"]["accelerator"] = config["resources"].pop("accelerators")
try:
    sky.Task.from_yaml_config(config)
    told = ""
except ValueError as error:
    told = str(error)
(resources,) = task.resources
volume = Volume.from_yaml_config(yaml.safe_load(path.with_name("volume.yaml").read_text()))
print(json.dumps({
    "nodes": task.num_nodes,
    "recovery": resources.job_recovery,
    "volumes": task.volumes,
    "volume": [volume.name, volume.config],
    "told": told,
}))
"""


def test_skypilot_takes_the_task_and_refuses_a_typo_in_it(tmp_path):
    found = answer("skypilot", TASK, tmp_path, str(ROOT / "scripts/skypilot/train.yaml"))
    assert found["nodes"] == 2 and found["volumes"] == {"/shared": "simplerl"}
    assert found["recovery"] == {"recover_on_exit_codes": [75], "max_restarts_on_errors": 0, "strategy": None}
    assert found["volume"] == ["simplerl", {"access_mode": "ReadWriteMany"}]
    assert "accelerator" in found["told"]


NEMO_RUN = ["--account=a", "--nodes=2", "--gpus-per-node=1", "--gpu=cpu", "--time=60", "--sbatch=qos=high", "--dry-run"]


def test_nemo_run_renders_the_job_that_submit_sh_submits(tmp_path):
    words = [python_of("nemo-run"), ROOT / "scripts/launch_nemo_run.py", "--executor=slurm", *NEMO_RUN]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "VENV": "system", "PYTHON": sys.executable}
    run = "trainer.run_dir=my runs/a"
    done = subprocess.run([*words, "--", "experiment=quickstart", run], env=env, cwd=tmp_path, **TEXT)
    assert done.returncode == 0 and "Can run." in done.stderr, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    options = {
        "nodes=2",
        "ntasks-per-node=1",
        "signal=B:USR1@300",
        "mem=0",
        "exclusive",
        "qos=high",
        "open-mode=append",
    }
    assert {f"#SBATCH --{option}" for option in options} <= set(lines)
    assert f"take_srun '{tmp_path}/my runs/a' 1" in lines and f"source {ROOT}/scripts/slurm/job.sh" in lines
    assert "export TORCHX_MAX_RETRIES=0" in lines
    (step,) = [line for line in lines if line.startswith("srun ")]
    assert lines.index(step) > lines.index(f"take_srun '{tmp_path}/my runs/a' 1")
    assert "--kill-on-bad-exit=1 --mpi=none --cpu-bind=none" in step

    too_many = [*words, "--", "experiment=quickstart", "actor.tensor_model_parallel_size=3"]
    done = subprocess.run(too_many, env=env, cwd=tmp_path, **TEXT)
    assert (done.returncode, done.stdout) == (1, "") and "nothing was submitted" in done.stderr


@pytest.mark.parametrize("ends", [0, 3])
def test_nemo_run_on_this_machine_ends_as_the_run_does(tmp_path, ends):
    python = program(tmp_path, "python", f'case "$*" in -c*|*--check|*plan*) ;; *) echo "ran $*"; exit {ends} ;; esac')
    words = [python_of("nemo-run"), ROOT / "scripts/launch_nemo_run.py", "--gpus-per-node=1", "--gpu=cpu", "--"]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "VENV": "system", "PYTHON": str(python)}
    env["NEMORUN_HOME"] = str(tmp_path / "nemo")
    done = subprocess.run([*words, "a=[1, 2]", "trainer.run_dir=run"], env=env, cwd=tmp_path, **TEXT)
    assert done.returncode == int(ends != 0), done.stdout + done.stderr
    assert f"ran -m nemo_simplerl train a=[1, 2] trainer.run_dir=run trainer.run_dir={tmp_path}/run" in done.stdout
