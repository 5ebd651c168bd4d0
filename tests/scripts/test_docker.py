"""The images' files without Docker: the command, what is installed, and the CPU image's steps in a clean root."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from debian import PATH, Unavailable, provide

from nemo_simplerl.doctor.examine import REQUIRABLE

ROOT = Path(__file__).parents[2]
RUN = ROOT / "docker/run.sh"
CPU_IMAGE = ROOT / "docker/Dockerfile.cpu"
DEBIAN = "bookworm"  # of the CPU image's base
SMALL = (
    "model.create.num_layers=2 data.eval_limit=10 data.rollout_batch_size=16 trainer.max_steps=1 sft.output=null "
    "rollout.max_response_tokens=16"
)


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found  # dataclasses look there
    spec.loader.exec_module(found)
    return found


lacking = _module(ROOT / "docker/lacking.py")


def dry_run(*words: str, **env: str) -> list[str]:
    env = {"PATH": os.environ["PATH"]} | env
    done = subprocess.run([RUN, "--dry-run", *words], env=env, capture_output=True, text=True, check=True)
    return shlex.split(done.stdout)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest of the line) without comments; lines that end in a backslash are joined."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.startswith("#"))
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_a_dry_run_prints_the_command_that_trains_on_all_gpus(tmp_path):
    (tmp_path / "my models").mkdir()
    words = dry_run(
        *("train", "experiment=quickstart", "data.x=[1, 2]"),
        SIMPLERL_MODEL_DIR=str(tmp_path / "my models"),
        RUNS=str(tmp_path / "runs"),
        MASTER_ADDR="n1",
    )
    assert words[:2] == ["docker", "run"]
    assert words[-4:] == [
        "nemo-simplerl",
        "/opt/nemo_simplerl/scripts/train.sh",
        "experiment=quickstart",
        "data.x=[1, 2]",
    ]
    pairs = list(zip(words, words[1:], strict=False))
    assert {
        ("--gpus", "all"),
        ("--ulimit", "memlock=-1"),
        ("--user", f"{os.getuid()}:{os.getgid()}"),
        ("--volume", f"{tmp_path}/my models:/models:ro"),
        ("--volume", f"{tmp_path}/runs:/work/runs"),
        ("--env", "SIMPLERL_MODEL_DIR=/models"),
        ("--env", "MASTER_ADDR"),
    } <= set(pairs)
    assert "--ipc=host" in words and "SIMPLERL_DATA_DIR" not in " ".join(words)
    assert not (tmp_path / "runs").exists()


def test_image_gpus_and_options_can_be_chosen_and_other_commands_run_as_they_are():
    words = dry_run("bash", "-c", "ls", IMAGE="mine:1", GPUS="device=0", DOCKER_ARGS="--cpus 8")
    assert words[-4:] == ["mine:1", "bash", "-c", "ls"]
    assert words[words.index("--gpus") + 1] == "device=0" and words[words.index("--cpus") + 1] == "8"
    assert dry_run("simplerl", "doctor")[-4:] == ["python3", "-m", "nemo_simplerl", "doctor"]


def test_a_folder_that_is_not_there_is_refused_before_docker_makes_it(tmp_path):
    env = {"PATH": os.environ["PATH"], "SIMPLERL_DATA_DIR": str(tmp_path / "none")}
    done = subprocess.run([RUN, "train", "a=1"], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and "is not a folder" in done.stderr


def test_the_places_in_the_image_are_those_that_run_sh_mounts_and_starts():
    for name in ("Dockerfile", "Dockerfile.cpu"):
        lines = instructions(ROOT / "docker" / name)
        assert ("WORKDIR", "/opt/nemo_simplerl") in lines and ("WORKDIR", "/work") in lines
        assert any("HOME=/home/simplerl" in text and "VENV=system" in text for word, text in lines if word == "ENV")
        assert any(word == "USER" for word, _ in lines)
    required = dict(text.split("=", 1) for word, text in instructions(ROOT / "docker/Dockerfile") if word == "ARG")
    assert set(required["REQUIRE"].strip('"').split()) <= set(REQUIRABLE)


MEGATRON = "megatron-core<0.20,>=0.16.1"
NEEDS = ["torch>=2.6", MEGATRON, "transformers<6,>=4.57", "mpmath>=1.3", 'ray>=2.40; extra == "trtllm"']
IMAGE = {"torch": "2.11.0a0+nv26.2", "transformers": "4.57.3", "numpy": "1.26.4"}


def test_an_image_keeps_its_torch_and_is_given_what_it_lacks():
    found = lacking.lists(NEEDS, IMAGE)
    assert found.installed == ["numpy==1.26.4", "torch==2.11.0a0+nv26.2", "transformers==4.57.3"]
    assert found.lacking == ["mpmath>=1.3"]
    assert found.replaced == [MEGATRON]


def test_megatron_alone_is_replaced_and_then_not_held_at_the_images_version():
    found = lacking.lists(NEEDS, IMAGE | {"megatron-core": "0.15.0"})
    assert found.replaced == [MEGATRON]
    assert not [line for line in found.installed if line.startswith("megatron")]
    kept = lacking.lists(NEEDS, IMAGE | {"megatron-core": "0.17.0"})
    assert kept.replaced == [] and "megatron-core==0.17.0" in kept.installed
    with pytest.raises(ValueError, match="transformers 6.0 where .* choose another BASE"):
        lacking.lists(NEEDS, IMAGE | {"transformers": "6.0"})


def test_ray_comes_beside_a_tensorrt_llm_that_is_there_and_never_brings_it():
    needs = [*NEEDS, 'tensorrt-llm<1.3,>=1.2; extra == "trtllm"']
    assert lacking.lists(needs, IMAGE | {"tensorrt-llm": "1.2.0"}).lacking == ["mpmath>=1.3", "ray>=2.40"]
    assert lacking.lists(needs, IMAGE).lacking == ["mpmath>=1.3"]


def image(name: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Packages of an image in the order of Python's path, and what its TensorRT-LLM needs."""
    lines = (Path(__file__).parent / f"images/{name}.txt").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    return [(first, second) for first, second in words if first != "needs"], [
        second for first, second in words if first == "needs"
    ]


def test_the_default_base_is_given_what_it_lacks_and_keeps_its_own():
    base = dict(text.split("=", 1) for word, text in instructions(ROOT / "docker/Dockerfile") if word == "ARG")["BASE"]
    packages, needs = image(base.replace("nvcr.io/nvidia/", "").replace("/", "-").replace(":", "-"))
    found = lacking.lists([*NEEDS, 'tensorrt-llm<1.5,>=1.2; extra == "trtllm"'], lacking.imported(packages), needs)
    assert (found.lacking, found.replaced) == (["ray>=2.40"], [MEGATRON])
    assert {"torch==2.10.0a0+b4e4ee81d3.nv25.12", "transformers==4.57.3", "numpy==1.26.4"} <= set(found.installed)


def test_of_two_environments_that_lie_over_each_other_the_one_that_is_imported_counts():
    packages, needs = image("nemo-26.04")
    installed = lacking.imported(packages)
    assert (installed["transformers"], installed["tensorrt-llm"]) == ("5.3.0", "1.2.0")
    with pytest.raises(ValueError, match=r"transformers 5.3.0 where its tensorrt-llm 1.2.0 needs ==4.57.3; choose"):
        lacking.lists(NEEDS, installed, needs)


def test_the_image_does_not_tell_flashinfer_of_gpus_that_are_not_there():
    assert ("ENV", 'TORCH_CUDA_ARCH_LIST=""') in instructions(ROOT / "docker/Dockerfile")


def script(dockerfile: Path) -> tuple[str, dict[str, str], str, str]:
    """(shell script of the build, ENV, USER, CMD as a shell line). Raises on an instruction that it does not know."""
    lines, env, user, command = ["set -e"], {}, "0", ""
    for word, text in instructions(dockerfile):
        if word == "WORKDIR":
            lines.append(f"mkdir -p {text}; cd {text}")
        elif word == "COPY":
            assert text == ". .", text
            lines.append("cp -r /context/. .")
        elif word == "RUN":
            lines.append(text)
        elif word == "ENV":
            env |= dict(pair.split("=", 1) for pair in shlex.split(text))
            lines.append(f"export {text}")
        elif word == "USER":
            user = text
        elif word == "CMD":
            command = shlex.join(part.strip(' "') for part in text.strip("[]").split(","))
        else:
            assert word in ("FROM", "ARG"), word
    return "\n".join(lines), env, user, command


@pytest.fixture
def clean_root(tmp_path):
    """A Debian with Python and pip alone, and the build's context in it; in its own mount namespace nothing else."""
    try:
        provide(("debootstrap", "unshare", "chroot"), ("debootstrap",))
    except Unavailable as reason:
        pytest.skip(f"no clean root: {reason}")
    root = tmp_path / "root"
    packages = "--include=python3,python3-pip,ca-certificates"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", packages, DEBIAN, root],
        env=os.environ | {"PATH": PATH, "DPKG_FORCE": "unsafe-io"},  # nobody needs the root after a power cut
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        pytest.skip(f"debootstrap could not make a root: {done.stdout[-300:]}")
    # As in the base image: pip may install beside the system's packages, and knows whom this machine trusts.
    for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
        shutil.copyfile(file, root / file.lstrip("/"))
    context = root / "context"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, context / name)
    yield root
    shutil.rmtree(root)  # gigabytes


def inside(root: Path, user: str, code: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    """Run a shell script in the root, with local folders of pip's configuration at their places."""
    pip = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
    folders = [word for text in pip.values() for word in text.split() if Path(word).is_dir()]
    mounts = [f"mount --bind {path} {root}{path}" for path in ("/dev", "/proc", "/sys", *folders)]
    for path in folders:
        Path(f"{root}{path}").mkdir(parents=True, exist_ok=True)
    enter = f"chroot --userspec={user}:{user} {shlex.quote(str(root))} sh -c {shlex.quote(code)}"
    env = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1", **pip, **env}
    command = ["unshare", "--mount", "sh", "-ec", "; ".join([*mounts, enter])]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


@pytest.mark.long
def test_the_steps_of_the_cpu_image_make_a_root_in_which_a_nameless_user_runs_the_quickstart(clean_root):
    build, env, user, command = script(CPU_IMAGE)
    # As root the image's Python compiles what it loads; what nobody loads need not be compiled.
    done = inside(clean_root, "0", build, {"PIP_NO_COMPILE": "0"})  # as pip reads it, "0" is --no-compile
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    done = inside(clean_root, user, f"cd /work; {command} {SMALL}", env)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert (clean_root / "work/runs/quickstart/summary.json").is_file()
