"""Reading a run directory, its table and its curves."""

import json
import subprocess
import sys

import pytest

from nemo_simplerl.cli import report
from nemo_simplerl.cli.main import main
from nemo_simplerl.report.curves import smooth, write_png
from nemo_simplerl.report.read import load_run, summary_so_far
from nemo_simplerl.report.table import plain_text, rows_of

SUMMARY = {
    "accuracy_before": 0.125,
    "accuracy_after": 0.5,
    "sampled_accuracy_before": 0.1,
    "sampled_accuracy_after": 0.05,
    "format_rate_before": 0.5,
    "format_rate_after": 1.0,
    "length_before": 40.0,
    "length_after": 31.5,
    "steps": 80,
    "train_seconds": 312.4,
    "seed": 1,
    "world_size": 2,
}


def write_run(path, *, steps=4, summary=None, torn=""):
    """Write a run directory with evaluations at step 0 and at the last step."""
    path.mkdir()
    rows = [{"step": 0, "eval/accuracy": 0.25, "eval/length_mean": 10.0}]
    for step in range(1, steps + 1):
        rows.append({"step": step, "reward/mean": step / 10, "reward/correct_share": 0.5, "actor/loss": None})
    rows[-1] |= {"eval/accuracy": 0.75, "eval/length_mean": 12.0}
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text + torn)
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_series_has_the_steps_where_the_metric_was_measured(tmp_path):
    run = load_run(write_run(tmp_path / "run", torn='{"step": 5, "rew'))
    assert run.series("reward/mean") == ([1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4])
    assert run.series("eval/accuracy") == ([0, 4], [0.25, 0.75])
    assert run.series("actor/loss") == ([], [])
    assert run.last_step == 4


def test_a_run_of_an_earlier_version_is_read_under_the_keys_of_today(tmp_path):
    rows = [
        {"step": 1, "policy/kl_ref": 0.5, "critic/value_loss": 2.0, "reward/policy/x": 3.0},
        {"step": 2, "actor/kl_ref": 0.25},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(tmp_path)
    assert run.series("actor/kl_ref") == ([1, 2], [0.5, 0.25])
    assert run.rows[0] == {"step": 1, "actor/kl_ref": 0.5, "critic/value_loss": 2.0, "reward/policy/x": 3.0}


def test_a_folder_that_is_no_run_is_an_error_that_says_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="trainer.run_dir"):
        load_run(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1.0}'])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        load_run(tmp_path)


def test_until_the_summary_is_written_the_latest_evaluation_stands_for_after(tmp_path):
    assert summary_so_far(load_run(write_run(tmp_path / "going"))) == {
        "steps": 4,
        "accuracy_before": 0.25,
        "accuracy_after": 0.75,
        "length_before": 10.0,
        "length_after": 12.0,
    }
    done = load_run(write_run(tmp_path / "done", summary=SUMMARY))
    assert summary_so_far(done) == SUMMARY


def test_where_the_roles_of_a_run_lived_is_told_below_its_table(tmp_path):
    run = write_run(tmp_path / "run", summary=SUMMARY)
    (run / "config.yaml").write_text("placement:\n  actor: null\n  critic: 4-5\n  engine: 6\n")
    told = "2 processes, actor on the other ranks, critic on ranks 4-5, engine on ranks 6\n"
    assert plain_text(summary_so_far(load_run(run))).endswith(told)
    (run / "config.yaml").write_text("algo:\n  advantage: group\nplacement:\n  engine: 6\n")
    assert load_run(run).placement == {"actor": "the other ranks", "engine": "ranks 6"}
    (run / "config.yaml").write_text("placement:\n  actor: null\n")
    assert load_run(run).placement == {}


def test_the_engine_of_a_run_is_told_below_its_table(tmp_path):
    run = write_run(tmp_path / "run", summary=SUMMARY)
    (run / "config.yaml").write_text("rollout:\n  engine: vllm\n")
    assert plain_text(summary_so_far(load_run(run))).endswith("seed 1, 2 processes, vllm engine\n")


@pytest.mark.parametrize("content", ["rollout: [", "rollout: vllm", "text"])
def test_damaged_settings_of_a_run_are_named(tmp_path, content):
    run = write_run(tmp_path / "run")
    (run / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match="config.yaml is damaged"):
        load_run(run)


def test_the_table_tells_shares_in_per_cent_and_their_change_in_points():
    assert plain_text(SUMMARY) == (
        "                         before    after        change\n"
        "accuracy, greedy         12.5 %   50.0 %  +37.5 points\n"
        "accuracy, sampled        10.0 %    5.0 %   -5.0 points\n"
        "answers found            50.0 %  100.0 %  +50.0 points\n"
        "response length, tokens    40.0     31.5          -8.5\n"
        "80 steps in 312 s, seed 1, 2 processes\n"
    )


def test_the_table_leaves_out_what_was_not_measured():
    rows = rows_of({"accuracy_before": 0.0, "accuracy_after": 0.5, "sampled_accuracy_before": 0.5})
    assert [row.label for row in rows] == ["accuracy, greedy"]


def test_smoothing_starts_at_the_first_value_and_weighs_the_past():
    # Second value: (0.5 * 0.5 * 2 + 0.5 * 8) / (0.5 * 0.5 + 0.5) = 4.5 / 0.75.
    assert smooth([2.0, 8.0], 0.5) == [2.0, 6.0]
    assert smooth([2.0, 8.0, -1.0], 0.0) == [2.0, 8.0, -1.0]


def test_the_png_shows_training_smoothed_and_evaluations_as_points(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    save = Figure.savefig

    def kept(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", kept)
    run_dir = write_run(tmp_path / "run", steps=40)
    assert write_png(run_dir) == run_dir / "report.png"
    assert (run_dir / "report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in run_dir.iterdir()) == ["metrics.jsonl", "report.png"]
    reward, accuracy, length = figures[0].axes
    raw, smoothed = (list(line.get_ydata()) for line in reward.lines)
    assert raw == [step / 10 for step in range(1, 41)]
    assert smoothed == smooth(raw, 0.75)
    assert [list(line.get_xdata()) for line in length.lines] == [[0, 40]]
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["training, sampled", "evaluation, greedy"]


def test_nothing_to_draw_is_an_error_and_draws_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="nothing to draw"):
        write_png(tmp_path)
    assert not (tmp_path / "report.png").exists()


def test_the_command_prints_the_table_and_where_the_curves_are(tmp_path, capsys):
    run_dir = write_run(tmp_path / "run", summary=SUMMARY)
    assert report.run([str(run_dir)]) == 0
    printed = capsys.readouterr().out
    assert plain_text(SUMMARY) in printed
    assert printed.splitlines()[-2] == f"Curves: {run_dir}/report.png"
    assert "Not finished" not in printed


def test_the_command_says_that_a_run_is_not_finished(tmp_path, capsys):
    assert report.run([str(write_run(tmp_path / "run"))]) == 0
    assert "Not finished: step 4" in capsys.readouterr().out


def test_the_command_refuses_a_folder_that_is_no_run_without_a_traceback(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_the_report_needs_no_torch_and_no_window_system():
    code = (
        "import sys; import nemo_simplerl.cli.report, nemo_simplerl.report.page, nemo_simplerl.report.follow;"
        "print([name for name in ('torch', 'megatron', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
