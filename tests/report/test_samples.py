"""The choice of samples for the page, and what explains them."""

import base64
import gzip
import json

import pytest

from nemo_simplerl.report.payload import pack_samples
from nemo_simplerl.report.samples import MAX_RESPONSE_CHARS, ReportSample, SampleSelection, is_kept, load_samples, thin
from support.run_on_disk import write_lines, write_run


def some(source, step, count):
    return [ReportSample(source, step, {"id": str(number)}, "", "", None, "") for number in range(count)]


def kept(samples):
    return [(sample.step, int(sample.row["id"])) for sample in samples]


def test_an_even_choice_has_the_first_row_and_steps_of_one_size():
    assert [number for number in range(10) if is_kept(number, 0.5)] == [0, 2, 4, 6, 8]
    # 0.4 n passes a whole number at n = 3, 5, 8, 10.
    assert [number for number in range(11) if is_kept(number, 0.4)] == [0, 3, 5, 8, 10]
    assert all(is_kept(number, 1.0) for number in range(10))
    assert [number for number in range(1000) if is_kept(number, 1e-6)] == [0]


def test_thinning_is_by_step_so_that_evaluations_keep_the_same_problems():
    samples = some("training", 1, 4) + some("training", 2, 4) + some("greedy", 2, 2)
    assert kept(thin(samples, 0.5)) == [(1, 0), (1, 2), (2, 0), (2, 2), (2, 0)]
    assert kept(thin(samples, 1.0)) == kept(samples)


def test_below_one_row_a_step_steps_are_left_out_evenly():
    samples = [sample for step in range(8) for sample in some("training", step, 2)]
    assert kept(thin(samples, 0.25)) == [(0, 0), (2, 0), (4, 0), (6, 0)]


def test_of_files_larger_than_the_memory_meant_for_them_an_even_choice_is_read(tmp_path):
    run = write_run(tmp_path / "run", steps=4, per_step=40)
    whole = load_samples(run)
    assert len(whole.rows) == whole.num_written == 4 * 40 + 10
    size = sum(path.stat().st_size for path in [*run.glob("rollouts/*"), *run.glob("eval/*")])
    half = load_samples(run, max_bytes=size // 2)
    assert half.num_written == whole.num_written
    assert abs(len(half.rows) - 85) <= 5
    assert {sample.step for sample in half.rows} == {0, 1, 2, 3, 4}


def test_level_and_subject_come_from_the_problems_also_where_the_run_was_moved(tmp_path):
    run = write_run(tmp_path / "run", steps=1)
    moved = run.rename(tmp_path / "moved")
    problems = {row["id"]: row for row in map(json.loads, (moved / "data/train.jsonl").read_text().splitlines())}
    for sample in load_samples(moved).rows:
        problem = problems[sample.row["id"]]
        assert (sample.level, sample.subject) == (str(problem["level"]), problem["subject"])
    for spoil in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        spoil(moved / "data" / "train.jsonl")
        training = [sample for sample in load_samples(moved).rows if sample.source == "training"]
        assert {(sample.level, sample.subject) for sample in training} == {("", "")}


def test_the_answer_is_the_one_in_the_row_or_the_one_the_grader_finds(tmp_path):
    run = write_run(tmp_path / "run", steps=1)
    rows = [
        {"id": "a", "response": r"\boxed{1} and \boxed{2}"},
        {"id": "b", "response": "2"},
        {"id": "c", "response": r"\boxed{1}", "answer": "said"},
    ]
    write_lines(run / "rollouts" / "step_000001.jsonl", rows)
    training = [sample for sample in load_samples(run).rows if sample.source == "training"]
    assert [sample.answer for sample in training] == ["1, 2", None, "said"]


def test_the_middle_of_a_very_long_response_is_left_out_and_said_so(tmp_path):
    run = write_run(tmp_path / "run", steps=1)
    text = "a" * MAX_RESPONSE_CHARS + "b" * MAX_RESPONSE_CHARS
    write_lines(run / "rollouts" / "step_000001.jsonl", [{"response": text}, {"response": text[:MAX_RESPONSE_CHARS]}])
    long, whole = (sample.response for sample in load_samples(run).rows if sample.source == "training")
    assert whole == "a" * MAX_RESPONSE_CHARS
    assert long == "a" * 6000 + "\n[... 12000 characters left out ...]\n" + "b" * 6000


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "a"}'])
def test_a_damaged_row_is_named(tmp_path, line):
    run = write_run(tmp_path / "run", steps=1, per_step=1)
    with (run / "rollouts" / "step_000001.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match="step_000001.jsonl, line 2"):
        load_samples(run)


def test_numbers_and_text_that_a_browser_cannot_read_do_not_spoil_the_others():
    row = {"reward": float("nan"), "length": 3}
    sample = ReportSample("training", 1, row, "", "", None, "a lone surrogate: \ud800")
    packed = pack_samples([SampleSelection((sample,), 1)], ["run"], 100_000)
    text = gzip.decompress(base64.b64decode(packed.text)).decode()
    assert '"reward":[null]' in text and "a lone surrogate: ?" in text
