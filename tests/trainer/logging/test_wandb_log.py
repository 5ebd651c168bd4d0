"""Weights & Biases with the real package and no network: what an offline run holds, and what failures do."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from nemo_simplerl.config.load import compose, from_yaml, to_dict
from nemo_simplerl.eval.run import SpreadRows
from nemo_simplerl.trainer.logging.run_log import RunLog
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.logging.wandb_log import COLUMNS, MAX_SAMPLES
from support.ranks import run_ranks
from support.small_run import SMALL, train_here

pytest.importorskip("wandb", reason='the package wandb is not installed: pip install "nemo-simplerl[wandb]"')

OFFLINE = ["trainer.wandb.enabled=true", "trainer.wandb.mode=offline", "trainer.wandb.samples_every=2"]
TABLE = "samples/path"  # of a table's file, below the files of the process
ROW = dict.fromkeys(COLUMNS, "text") | {"reward": -0.5, "length": 7}


def records_of(run_dir: Path) -> list[list]:
    """The records of each process's offline run, in the order of the processes."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    found = []
    for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        store = DataStore()
        store.open_for_scan(str(file))
        found.append([Record.FromString(data) for data in iter(store.scan_data, None)])
    return found


def history_of(records: list) -> list[dict]:
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in row} for row in rows]


def test_a_run_and_its_continuation_are_one_run_with_the_metrics_samples_and_settings_of_the_books(tmp_path, data):
    run_dir = tmp_path / "zero"
    overrides = [*SMALL, *data, *OFFLINE, f"trainer.run_dir={run_dir}"]
    run_ranks(train_here, 1, [*overrides, "trainer.stop_after_step=2"])
    run_ranks(train_here, 2, overrides)
    processes = records_of(run_dir)
    assert len(processes) == 2, "of the two ranks one writes"
    opened = [record.run for records in processes for record in records if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in opened} == {(run_dir / "wandb_id").read_text()}
    assert {(run.project, run.display_name) for run in opened} == {("nemo_simplerl", "zero")}

    axes = [record.metric for record in processes[1] if record.WhichOneof("record_type") == "metric"]
    assert ("*", "step") in {(axis.glob_name, axis.step_metric) for axis in axes}

    settings = {item.key: json.loads(item.value_json) for item in opened[0].config.update}
    first = from_yaml((run_dir / "config.yaml").read_text())
    assert settings["rollout"] == to_dict(first)["rollout"] and settings["data"] == to_dict(first)["data"]

    history = [row for records in processes for row in history_of(records)]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = [{name: row[name] for name in row if name[0] != "_"} for row in history if TABLE not in row]
    assert logged == [{name: value for name, value in line.items() if value is not None} for line in lines]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["log/wandb_failures"] == 0 for line in lines)

    tables = {row["step"]: row[TABLE] for row in history if TABLE in row}
    assert list(tables) == [2, 4]
    (file,) = run_dir.glob(f"wandb/offline-run-*/files/{tables[4]}")
    rows = [json.loads(line) for line in (run_dir / "rollouts/step_000004.jsonl").read_text().splitlines()]
    table = json.loads(file.read_text())
    assert table["columns"] == list(COLUMNS)
    assert table["data"] == [[row[name] for name in COLUMNS] for row in rows]


def _log(run_dir: Path, changes: list[str]) -> RunLog:
    log = RunLog(run_dir, tensorboard=False, resume_step=None, is_writer=True)
    config = compose(["experiment=quickstart", "trainer.wandb.enabled=true", *changes])
    log.open_wandb(config.trainer.wandb, to_dict(config))
    return log


def _messages_after_its_process_died(run_dir: Path) -> str:
    messages: list[str] = []
    with messages_to(messages.append, is_first_rank=True):
        log = _log(run_dir, OFFLINE)
        log.metrics(1, {"reward/mean": 0.5})
        (service,) = (child for child in psutil.Process().children() if "wandb" in child.name())
        os.kill(service.pid, signal.SIGKILL)
        service.wait()
        for step in (2, 3, 4):
            log.rollouts(step, SpreadRows.alone([ROW]), group=None)
            log.metrics(step, {"reward/mean": 0.5})
        log.close()
    return "\n".join(messages)


def test_failures_are_told_once_and_counted_and_end_nothing(tmp_path):
    (messages,) = run_ranks(_messages_after_its_process_died, 1, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # The table of step 2 is the first to fail and the last to be tried; then three lines of metrics, and the end.
    assert [line["log/wandb_failures"] for line in lines] == [0, 1, 2, 3]
    assert messages.count("Weights & Biases failed, and the run goes on") == 1
    assert "5 calls failed" in messages


def _online(run_dir: Path, environment: dict[str, str]) -> str:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= {"HOME": str(run_dir), "NETRC": str(run_dir / "netrc"), **environment}
    messages: list[str] = []
    with messages_to(messages.append, is_first_rank=True):
        log = _log(run_dir, ["trainer.wandb.mode=online"])
        log.rollouts(10, SpreadRows.alone([ROW | {"id": i} for i in range(3 * MAX_SAMPLES - 1)]), group=None)
        log.close()
    return "\n".join(messages)


NOBODY_THERE = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a", "WANDB_INIT_TIMEOUT": "3"}


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({}, "No API key configured"), (NOBODY_THERE, "127.0.0.1:9")],
    ids=["no account", "no network"],
)
def test_what_cannot_begin_online_is_written_offline(tmp_path, environment, reason):
    (messages,) = run_ranks(_online, 1, tmp_path, environment)
    assert reason in messages and f"offline, in {tmp_path}/wandb" in messages and "1 calls failed" in messages
    deadline = time.monotonic() + 60  # W&B's own process may still be writing on a busy machine
    while not any(rows := [row for run in records_of(tmp_path) for row in history_of(run)]):
        assert time.monotonic() < deadline, "W&B wrote no history"
        time.sleep(0.2)
    (row,) = rows
    assert row["samples/nrows"] == MAX_SAMPLES
