"""Every command, given what a user can mend: it ends with 2 and a few words, never with a traceback.

One process drives them all, as rank 0 of a world of one: what is found late is found by the ranks.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from nemo_simplerl.cli.main import main
from support.forms import save_critic
from support.ranks import run_ranks
from support.small_run import SMALL, few_problems, train_here

pytestmark = pytest.mark.slow

# Words of a command line; {x} is a path below the folder of `inputs`.
_RUN = "train {small} {data} model.create=null model.path={base} trainer.run_dir={new}"
_SFT = "sft {small} {data} model.create=null model.path={base} trainer.run_dir={new}"
_EVAL = "eval {base} --data {own} --out {new} --template none --max-tokens 8 model.precision=fp32"
_DISTILL = "distill {own} --model {base} --out {new} --template none --max-tokens 8 --samples 1"
CASES = [
    *(f"{command} trainer.run_dir={{{name}}}" for command in (_RUN, _SFT) for name in ("file", "below_file")),
    *(f"{_RUN} data.train_path={{{name}}}" for name in ("missing", "folder", "half_jsonl", "half_json", "txt")),
    *(f"{_RUN} data.train_path={{{name}}}" for name in ("utf16", "rows_of_text", "empty")),
    *(
        f"{_RUN} model.path={{{name}}}"
        for name in ("missing", "file", "folder", "half_config", "half_weights", "half_tokenizer", "no_weights")
    ),
    *(f"{_RUN} model.path={{{name}}}" for name in ("no_tokenizer", "folder_for_weights", "folder_for_config")),
    *(f"{_RUN} data.template=chat model.path={{{name}}}" for name in ("raising_chat", "broken_chat", "undefined_chat")),
    f"{_RUN} critic.path={{missing}}",
    f"{_RUN} critic.path={{folder}}",
    f"{_RUN} model.tokenizer={{missing}}",
    f"{_RUN} experiment={{broken_yaml}}",
    f"{_RUN} --config-dir {{missing}}",
    f"{_RUN} rollout.engine=trtllm",
    f"{_RUN} reward.url=http://127.0.0.1:9",
    *(f"train {{small}} trainer.run_dir={{{name}}}" for name in ("half_run", "folder_run", "damaged_metrics")),
    f"{_SFT} sft.output={{file}}",
    f"{_SFT} sft.output={{new}} data.sft_path={{missing}}",
    f"{_SFT} sft.output={{new}} data.sft_path={{half_jsonl}}",
    f"{_SFT} sft.output={{new}} data.sft_path={{rows_of_text}}",
    *(
        f"{_EVAL} --out {{{name}}}"
        for name in ("file", "below_file", "half_eval", "odd_eval", "odd_settings", "odd_rows")
    ),
    *(f"{_EVAL} --data {{{name}}}" for name in ("missing", "folder", "file", "half_jsonl", "txt", "no_parquet")),
    *(
        _EVAL.replace("{base}", f"{{{name}}}")
        for name in ("missing", "file", "critic", "half_weights", "half_tokenizer")
    ),
    f"{_EVAL} --template chat",
    f"{_EVAL} --samples 4",
    f"{_EVAL} --limit 0",
    f"{_EVAL} --top-p 0",
    "eval",
    *(f"{_DISTILL} --out {{{name}}}" for name in ("folder", "below_file")),
    _DISTILL.replace("{base}", "{missing}"),
    _DISTILL.replace("{base}", "{critic}"),
    _DISTILL.replace("{own}", "{half_jsonl}"),
    "distill {own} --endpoint nonsense --model m --out {new}",
    *(f"data {{{name}}}" for name in ("missing", "folder", "txt", "half_jsonl", "half_json", "no_parquet")),
    *(f"data {{own}} {option} {{below_file}}" for option in ("--out", "--report", "--held-out", "--tokenizer")),
    "data {own} --tokenizer {half_tokenizer}",
    *(f"convert --from hf --to nemo {{{name}}} {{new}}" for name in ("missing", "file", "half_config", "half_weights")),
    *(
        f"convert --from {kind} --to hf {{{name}}} {{new}}"
        for kind in ("nemo", "checkpoint")
        for name in ("file", "folder")
    ),
    "convert --from hf --to nemo {base} {file}",
    "convert --from hf --to hf {base} {below_file}",
    "convert --from hf --to hf {base} {circle}/x",
    "plan quickstart --nodes 0",
    *(f"report {{{name}}}" for name in ("missing", "file", "folder", "half_summary", "half_run", "damaged_metrics")),
    "report {run} --eval {missing}",
    "report {run} --out {below_file}",
    "audit {missing}",
    "audit {folder}",
    "audit {file}",
    "audit {run} --json {below_file}",
    "doctor --require zzz",
    "reward-server --port 99999",
    "reward-server --host no.such.host.invalid",
    "reward-server --function {missing}",
    "zzz",
]


def half(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, str]:
    """Paths by name, the words of a small run, and those of its data."""
    root = tmp_path_factory.mktemp("x")
    data = few_problems(root)
    small = [*SMALL, "trainer.max_steps=1", "trainer.eval_every=0"]
    run_ranks(train_here, 1, [*small, *data, f"trainer.run_dir={root}/run"])
    base = root / "run/base"

    def copy(name: str, of: Path = base) -> Path:
        return Path(shutil.copytree(of, root / name))

    def chat(name: str, template: str) -> None:
        file = copy(name) / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))

    for name, content in {
        "file": b"x",
        "txt.txt": b"x",
        "half_jsonl.jsonl": b'{"question": "a", "answer": "1"}\n{"question": "b", "ans',
        "half_json.json": b'[{"question": "a", "answer": "1"}, {"ques',
        "utf16.jsonl": '{"question": "a", "answer": "1"}'.encode("utf-16"),
        "rows_of_text.jsonl": b'"a"\n"b"\n',
        "empty.jsonl": b"",
        "no_parquet.parquet": b"x",
        "broken_yaml.yaml": b"algo: [\n",
    }.items():
        (root / name).write_bytes(content)
    (root / "folder").mkdir()
    (root / "circle").symlink_to(root / "circle")
    half(copy("half_config") / "config.json")
    half(copy("half_weights") / "model.safetensors")
    half(copy("half_tokenizer") / "tokenizer.json")
    (copy("no_weights") / "model.safetensors").unlink()
    (copy("no_tokenizer") / "tokenizer.json").unlink()
    for name, file in {"folder_for_weights": "model.safetensors", "folder_for_config": "config.json"}.items():
        (copy(name) / file).unlink()
        (root / name / file).mkdir()
    chat("raising_chat", "{{ raise_exception('system turns alone') }}")
    chat("broken_chat", "{% if %}")
    chat("undefined_chat", "{{ messages[0].no.such }}")
    with half(copy("half_run", root / "run") / "config.yaml").open("a") as config:
        config.write("\ncut: [")  # a file that is cut between two lines can still be read
    (copy("half_summary", root / "run") / "summary.json").write_text("{")
    (copy("damaged_metrics", root / "run") / "metrics.jsonl").write_text("no\n")
    (root / "folder_run/config.yaml").mkdir(parents=True)
    for name, file, content in (
        ("half_eval", "results.json", '{"bench'),
        ("odd_eval", "results.json", "[]"),
        ("odd_settings", "settings.json", "[1]"),
        ("odd_rows", "responses/eval.jsonl", "{}\n"),
    ):
        (root / name / "responses").mkdir(parents=True)
        (root / name / file).write_text(content)
    save_critic(root / "critic")
    endings = {path.stem: str(path) for path in root.iterdir()}
    given = {"base": str(base), "own": f"{root}/eval.jsonl", "below_file": f"{root}/file/x", "missing": f"{root}/none"}
    return endings | given | {"small": " ".join(small), "data": " ".join(data), "root": str(root)}


def drive(inputs: dict[str, str], cases: list[str]) -> list[tuple[str, object, str]]:
    """Each case with its exit status and what it printed; an exception stands for the status."""
    os.chdir(inputs["root"])
    tempfile.tempdir = tempfile.mkdtemp(dir=inputs["root"])  # for the tracebacks of errors of the system
    os.mkdir("wandb")  # as W&B leaves it where people work: no package of that name
    answers = []
    for number, case in enumerate(cases):
        # The base's words hold spaces, no path does.
        words = case.format_map(inputs | {"new": f"{inputs['root']}/new_{number}"}).split()
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status: object = main(words)
            except SystemExit as left:  # of argparse
                status = left.code
            except BaseException as error:
                status = f"{type(error).__name__}: {error}"
        answers.append((case, status, err.getvalue()))
    return answers


def test_no_command_answers_what_a_user_can_mend_with_a_traceback(inputs):
    (answers,) = run_ranks(drive, 1, inputs, CASES, timeout_s=400)
    wrong = [answer for answer in answers if answer[1] != 2 or "Traceback" in answer[2] or not answer[2].strip()]
    assert wrong == []


@pytest.mark.parametrize(
    "override",
    ["trainer.run_dir={root}/closed/run", "data.train_path={root}/secret.jsonl", "model.path={root}/secret"]
    + ["critic.path={root}/secret", "sft.output={root}/closed/sft"],
)
def test_what_this_user_may_not_read_or_write_is_told_before_work_starts(inputs, tmp_path, override):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    shutil.copy(inputs["own"], tmp_path / "secret.jsonl")
    shutil.copytree(inputs["base"], tmp_path / "secret")
    for file in (tmp_path / "secret.jsonl", tmp_path / "secret/model.safetensors"):
        file.chmod(0)
    words = _RUN.format_map(inputs | {"new": f"{tmp_path}/new"}).split() + [override.format(root=tmp_path)]
    capabilities = "-dac_override,-dac_read_search"
    user = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", "--"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*user, sys.executable, "-m", "nemo_simplerl", *words, "--check"], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("config: ") and "this user has no permission" in line
