"""docs/extending.md, followed: its blocks laid on a copy of the repository, and what five recipes add, run there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (REPOSITORY / "docs/extending.md").read_text(), re.M | re.S))
WITH_BLOCKS = [title for title, text in SECTIONS.items() if "```diff" in text]


def blocks_of(title: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[title], re.M | re.S)


def patched(text: str, hunk: str) -> str:
    """`text` with the lines of a hunk that begin with - or a space replaced by those with + or a space."""
    lines = hunk.splitlines()
    old = "\n".join(line[1:] for line in lines if line[0] in "- ")
    new = "\n".join(line[1:] for line in lines if line[0] in "+ ")
    assert text.count(old) == 1, f"the recipe expects this once:\n{old}"
    return text.replace(old, new)


def follow(title: str, copy: Path) -> set[str]:
    """Do what the section says in `copy`; the files that it changed or made."""
    touched = set()
    for block in blocks_of(title, "diff"):
        for path, hunk in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", block, re.M | re.S):
            file = copy / path
            file.write_text(patched(file.read_text(), hunk))
            touched.add(path)
    for block in blocks_of(title, "python"):
        if made := re.match(r"# (nemo_simplerl/\S+\.py)\n", block):
            assert not (copy / made[1]).exists()
            (copy / made[1]).write_text(block[made.end() :])
            touched.add(made[1])
    return touched


@pytest.fixture
def copy(tmp_path) -> Path:
    for folder in ("nemo_simplerl", "conf"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(copy: Path, *command: str) -> str:
    """What a Python command of the copy prints."""
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env={"PYTHONPATH": str(copy)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("title", WITH_BLOCKS)
def test_every_block_fits_the_code_as_it_is_and_leaves_it_valid(title, copy):
    touched = follow(title, copy)
    assert touched
    for path in touched:
        if path.endswith(".py"):
            compile((copy / path).read_text(), path, "exec")


def test_a_template_that_is_added_by_the_recipe_can_be_chosen_and_writes_its_prompt(copy):
    assert len(follow("A prompt template", copy)) == 2
    code = (
        "from nemo_simplerl.config.load import compose; from nemo_simplerl.data.templates import render\n"
        "config = compose(['experiment=quickstart', 'data.template=plain'])\n"
        "print(render(config.data.template, '1 + 1?', trailing_newline=True))"
    )
    assert run(copy, "-c", code) == (
        "Problem: 1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}.\nSolution:"
    )


def test_a_metric_that_is_added_by_the_recipe_is_reported_and_drawn(copy):
    assert len(follow("A metric", copy)) == 2
    code = (
        "from nemo_simplerl.report.panels import PANELS\n"
        "from nemo_simplerl.reward.serving.pool import Grade\n"
        "from nemo_simplerl.rollout.base import Completion\n"
        "from nemo_simplerl.rollout.completions import Completions\n"
        "from nemo_simplerl.trainer.logging.metrics import sample_metrics\n"
        "rollout = Completions.of([Completion((7,) * n, (0.0,) * n, '', 'stop', 0, 0) for n in (5, 2, 9)])\n"
        "grades = [Grade('correct', 'ok', 1.0)] * 3\n"
        "drawn = [series.key for panel in PANELS for series in panel.series]\n"
        "print(sample_metrics(rollout, grades, [1.0] * 3)['rollout/length_min'], drawn.count('rollout/length_min'))"
    )
    assert run(copy, "-c", code) == "2.0 1"


def test_a_command_that_is_added_by_the_recipe_has_help_is_listed_and_runs(copy):
    assert len(follow("A command", copy)) == 2
    (copy / "run").mkdir()
    (copy / "run/metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n')
    assert "how many steps a run directory has" in run(copy, "-m", "nemo_simplerl", "--help")
    assert run(copy, "-m", "nemo_simplerl", "steps", "--help").startswith("usage: simplerl steps")
    assert run(copy, "-m", "nemo_simplerl", "steps", "run") == "2"


def test_a_unit_that_is_added_by_the_recipe_is_converted(copy):
    follow("A rule of the grader", copy)
    code = (
        "from nemo_simplerl.reward.grade import grade_text\n"
        "print(grade_text(r'2 \\text{ mm}', r'\\boxed{2000000 \\text{ nm}}'),"
        " grade_text(r'2 \\text{ mm}', r'\\boxed{2 \\text{ nm}}'))"
    )
    assert run(copy, "-c", code) == "correct incorrect"


def test_the_estimator_of_the_recipe_takes_the_mean_of_the_step_off_each_score(copy):
    follow("An advantage estimator", copy)
    code = (
        "import torch; from nemo_simplerl.algo.batch_baseline import above_batch_mean\n"
        "print(above_batch_mean(torch.tensor([1.0, 0.0, 2.0, -1.0])).tolist())"
    )
    assert run(copy, "-c", code) == "[0.5, -0.5, 1.5, -1.5]"
