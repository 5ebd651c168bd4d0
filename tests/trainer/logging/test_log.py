"""What a run writes into its directory and onto the screen."""

import io
import json
import logging

import pytest
import torch
from rich.console import Console

from nemo_simplerl.eval.run import SpreadRows
from nemo_simplerl.report.read import warnings_of
from nemo_simplerl.trainer.guard.faults import Faults, installed
from nemo_simplerl.trainer.logging.progress import duration
from nemo_simplerl.trainer.logging.run_log import MessageLog, RunLog


def open_log(run_dir, *, resume_step=None, terminal=False, is_writer=True, tensorboard=False, total_steps=10):
    """A log, and the text that it shows."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120, color_system=None)
    log = RunLog(run_dir, tensorboard=tensorboard, resume_step=resume_step, is_writer=is_writer, console=console)
    log.total_steps = total_steps
    return log, screen


def lines_of(run_dir):
    return (run_dir / "metrics.jsonl").read_text().splitlines()


def test_a_metrics_line_has_the_step_then_names_in_order_then_the_timings(tmp_path):
    log, _ = open_log(tmp_path)
    log.metrics(1, {"time/rollout": 2.0, "reward/mean": 0.1 + 0.2, "actor/loss": -1e-7, "value/x": 12})
    assert lines_of(tmp_path) == [
        '{"step": 1, "actor/loss": -1e-07, "reward/mean": 0.30000000000000004, "value/x": 12, "time/rollout": 2.0}'
    ]


def test_tensors_become_numbers_and_what_is_not_finite_becomes_null_and_is_told(tmp_path, caplog):
    log, _ = open_log(tmp_path)
    log.metrics(3, {"actor/loss": torch.tensor(0.25), "critic/loss": float("nan"), "actor/x": float("inf")})
    assert lines_of(tmp_path) == ['{"step": 3, "actor/loss": 0.25, "actor/x": null, "critic/loss": null}']
    assert caplog.messages == ["step 3: not a finite number: actor/x, critic/loss"]


def test_rollouts_evaluations_config_and_summary_have_their_places(tmp_path):
    log, _ = open_log(tmp_path / "run")
    log.config("trainer:\n  seed: 1\n")
    log.rollouts(
        12,
        SpreadRows.alone([{"response": "π = 3", "reward": 1.0, "logprob": float("-inf")}, {"response": "no"}]),
        group=None,
    )
    log.eval(0, [{"verdict": "correct"}])
    log.summary({"accuracy_after": torch.tensor(0.5), "steps": 12})
    log.close()
    files = {str(path.relative_to(tmp_path / "run")) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "rollouts/step_000012.jsonl", "eval/step_000000.jsonl", "summary.json"}
    rollouts = (tmp_path / "run/rollouts/step_000012.jsonl").read_text(encoding="utf-8")
    assert rollouts == '{"response": "π = 3", "reward": 1.0, "logprob": null}\n{"response": "no"}\n'
    assert (tmp_path / "run/eval/step_000000.jsonl").read_text() == '{"verdict": "correct"}\n'
    assert json.loads((tmp_path / "run/summary.json").read_text()) == {"accuracy_after": 0.5, "steps": 12}
    assert (tmp_path / "run/config.yaml").read_text() == "trainer:\n  seed: 1\n"


def test_a_resumed_run_forgets_the_steps_after_its_checkpoint_and_nothing_else(tmp_path):
    log, _ = open_log(tmp_path)
    for step in range(5):
        log.metrics(step, {"reward/mean": float(step)})
        log.rollouts(step, SpreadRows.alone([{"step": step}]), group=None)
        log.eval(step, [{"step": step}])
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rew')  # killed while writing
    log, _ = open_log(tmp_path, resume_step=2)
    assert [json.loads(line)["step"] for line in lines_of(tmp_path)] == [0, 1, 2]
    for folder in ("rollouts", "eval"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == ["step_000000.jsonl", "step_000001.jsonl", "step_000002.jsonl"]
    log.metrics(3, {"reward/mean": 30.0})
    assert json.loads(lines_of(tmp_path)[-1]) == {"step": 3, "reward/mean": 30.0}


def test_a_run_that_starts_over_drops_the_books_of_the_one_before_but_not_other_files(tmp_path):
    log, _ = open_log(tmp_path)
    log.metrics(0, {"eval/accuracy": 0.5})
    log.eval(0, [{}])
    log.summary({"steps": 0})
    (tmp_path / "eval" / "notes.jsonl").write_text("mine")
    log, _ = open_log(tmp_path)
    assert lines_of(tmp_path) == []
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["notes.jsonl"]
    assert not (tmp_path / "summary.json").exists()


def test_ranks_other_than_the_writer_touch_and_say_nothing(tmp_path, caplog):
    log, screen = open_log(tmp_path / "run", is_writer=False)
    log.config("x")
    log.metrics(1, {"reward/mean": float("nan")})
    log.rollouts(1, SpreadRows.alone([{}]), group=None)
    log.eval(1, [{}])
    log.summary({})
    log.close()
    assert log.total_steps == 10
    assert not (tmp_path / "run").exists()
    assert screen.getvalue() == "" and caplog.messages == []


def test_what_a_full_disk_refuses_is_told_and_the_metrics_are_written_once_there_is_room(tmp_path, caplog):
    log, _ = open_log(tmp_path)
    (tmp_path / "rollouts").write_text("no folder can be made here")
    log.rollouts(1, SpreadRows.alone([{}]), group=None)
    log.rollouts(2, SpreadRows.alone([{}]), group=None)
    assert [message.split(":")[0] for message in caplog.messages] == ["rollouts/ was NOT saved"]
    with installed(Faults.parse("fail@log.metrics#1;fail@log.metrics#2", 0)):
        for step in (1, 2, 3):
            log.metrics(step, {"reward/mean": 0.0})
    assert [json.loads(line)["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    assert caplog.messages[1].startswith("metrics.jsonl was NOT saved: No space left on device")
    assert len(caplog.messages) == 2


def test_messages_are_kept_with_time_and_level(tmp_path):
    record = logging.LogRecord("nemo_simplerl", logging.WARNING, "", 0, "step %d: é", (3,), None)
    MessageLog(tmp_path)(record)
    (tmp_path / "file").write_text("")
    MessageLog(tmp_path / "file")(record)  # cannot be written: nothing is raised
    (line,) = (tmp_path / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert (row["level"], row["text"]) == ("WARNING", "step 3: é") and row["time"].startswith("20")


def test_in_a_log_file_a_step_is_one_line_with_its_pace_and_the_time_left(tmp_path):
    log, screen = open_log(tmp_path, total_steps=10)
    step = {
        "reward/mean": -0.25,
        "reward/correct_share": 0.5,
        "rollout/length_mean": 212.4,
        "time/total": 30.0,
    }
    log.metrics(0, {"eval/accuracy": 0.125, "eval/length_mean": 40.0, "time/total": 5.0})
    log.metrics(1, step)
    log.metrics(2, step | {"eval/accuracy": 0.25, "time/total": 60.0, "time/eval": 20.0})
    assert screen.getvalue().splitlines() == [
        "evaluation after step 0: accuracy 12.5%, length 40",
        "step 1/10  reward -0.25  accuracy 50%  length 212  30.0 s/step  eta 4 min",
        # 60 s less the evaluation's 20; 8 steps at the mean of 30 s and 60 s are left.
        "step 2/10  reward -0.25  accuracy 50%  length 212  40.0 s/step  eta 6 min",
        "evaluation after step 2: accuracy 25.0%",
    ]


def test_on_a_terminal_one_line_moves(tmp_path):
    log, screen = open_log(tmp_path, terminal=True, resume_step=3)
    log.metrics(4, {"reward/mean": 0.5, "time/total": 401.0, "time/start": 400.0})
    log.close()
    text = screen.getvalue()
    assert "step 3/10" in text and "step 4/10" in text
    assert "reward +0.50  1.0 s/step  eta 6 s" in text, "the start of the process is none of the step's"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89.4, "89 s"), (90, "2 min"), (3569, "59 min"), (11100, "3 h 05 min")],
)
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert duration(seconds) == text


def test_tensorboard_has_the_metrics_and_after_a_resume_only_the_new_ones_of_a_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, _ = open_log(tmp_path, tensorboard=True)
    for step in range(3):
        log.metrics(step, {"reward/mean": float(step), "actor/loss": float("nan")})
    log.close()
    log, _ = open_log(tmp_path, tensorboard=True, resume_step=1)
    log.metrics(2, {"reward/mean": 20.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["reward/mean"]
    assert [(point.step, point.value) for point in events.Scalars("reward/mean")] == [
        (0, 0.0),
        (1, 1.0),
        (2, 20.0),
    ]


def test_messages_go_on_after_a_line_that_a_crash_cut_short_and_damaged_ones_are_not_reported(tmp_path):
    good = json.dumps({"time": "12:00", "level": "WARNING", "text": "before"})
    (tmp_path / "messages.jsonl").write_text(f'{{"time": {good}\n{good}\n{{"time": "12')
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, "after", (), None)
    MessageLog(tmp_path)(record)
    assert [text.split()[-1] for text in warnings_of(tmp_path)] == ["before", "after"]
    assert json.loads((tmp_path / "messages.jsonl").read_text().splitlines()[-1])["text"] == "after"
