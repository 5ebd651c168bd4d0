"""The adapters through the real verl, TRL and OpenRLHF, and the grader's own environment as docs/grading.md makes it.

Each package is installed into an environment of its own, which sees the packages of this one behind its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from nemo_simplerl.reward.adapters import openrlhf
from support.servers import ROOT, reward_server

HERE = Path(__file__).parent
REQUIREMENTS = {
    "trl": ["trl==1.16.0"],
    # Without what verl needs for training alone, such as a transformers of its own.
    "verl": ["--no-deps", "verl==0.9.1", "tensordict>=0.8,<=0.10,!=0.9.0", "codetiming", "orjson", "pyvers", "dill"],
    "openrlhf": ["--no-deps", "openrlhf==0.11.2"],
}

pytestmark = pytest.mark.long


def make_environment(folder: Path) -> Path:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder / "bin/python"


def install(python: Path, *what: str, cwd: Path = ROOT) -> None:
    """Skips the test where that cannot be done here."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        pytest.skip(f"{' '.join(what)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")


def run(python: Path, *arguments: object, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def said(output: str, word: str) -> list[str]:
    return re.findall(rf"^{word} (.*)$", output, re.M)


@pytest.fixture(params=REQUIREMENTS)
def peer(request, tmp_path) -> tuple[str, Path]:
    python = make_environment(tmp_path / "environment")
    packages = next((tmp_path / "environment").glob("lib/python*/site-packages"))
    (packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install(python, *REQUIREMENTS[request.param])
    return request.param, python


def test_the_real_package_is_paid_by_this_grader(peer, tmp_path):
    name, python = peer
    script = HERE / f"with_{name}.py"
    if name == "trl":
        output = run(python, script, tmp_path / "model", cwd=tmp_path)
        assert said(output, "rewards") == ["text -1.0 -1.0", "chat -1.0 -1.0"]  # a random model boxes nothing
    elif name == "verl":
        recipe, binary = (
            json.loads(line.split(" ", 1)[1]) for line in said(run(python, script, "naive", cwd=tmp_path), "scored")
        )
        assert [found["reward_score"] for found in recipe] == [1.0, -0.5, -1.0]
        assert [found["reward_score"] for found in binary] == [1.0, 0.0, 0.0]
        assert [found["reward_extra_info"]["acc"] for found in recipe] == [1.0, 0.0, 0.0]
    else:
        expected = [[1.0, 1.0], [-0.5, 0.0], [-1.0, 0.0]]
        assert json.loads(said(run(python, script, openrlhf.__file__, cwd=tmp_path), "rewarded")[0]) == expected
        with reward_server(token="secret") as server:
            url = server.url.replace("http://", "http://any:secret@") + "/openrlhf"
            assert json.loads(said(run(python, script, url, cwd=tmp_path), "rewarded")[0]) == expected


def test_the_grader_and_its_server_install_alone_as_the_page_says(tmp_path):
    page = (ROOT / "docs/grading.md").read_text()
    (line,) = re.findall(r"^pip install .*--no-deps \.$", page, re.M)
    python = make_environment(tmp_path / "environment")
    copy = tmp_path / "copy"
    for name in ("nemo_simplerl", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for command in line.split(" && "):
        install(python, *(word.strip('"') for word in command.removeprefix("pip install ").split()), cwd=copy)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    graded = (
        "import sys; from nemo_simplerl.reward.adapters.verl import compute_score\n"
        r"print(compute_score('math', r'\boxed{1/2}', '0.5')['score'], sorted({'torch', 'megatron'} & {*sys.modules}))"
    )
    done = subprocess.run([python, "-c", graded], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout == "1.0 []\n", done.stderr
    installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, env=environment).stdout
    assert "nemo" in installed and "torch" not in installed
    simplerl = (str(python.with_name("simplerl")), "reward-server", "--workers", "1", "--port")
    with reward_server(command=simplerl, path=None) as server:
        assert server.url
