"""`simplerl data`: what it finds in a file, what it leaves out, and what it refuses."""

import json
from collections import Counter
from pathlib import Path

import pytest

from nemo_simplerl.cli.data import run
from nemo_simplerl.data.overlap import duplicates, overlaps
from nemo_simplerl.eval.benchmarks import BENCHMARKS, load_benchmark

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRAINING = SHARED / "math_level3to5_data_processed_with_qwen_prompt.json"
needs_data = pytest.mark.skipif(not TRAINING.is_file(), reason="the data sets are not beside the project")

LONG = "A train leaves the station at noon and travels east at sixty miles an hour; when does it meet the other train"


def _reported(tmp_path, source, *options):
    report = tmp_path / "report.json"
    assert run([str(source), "--report", str(report), *options]) == 0
    return json.loads(report.read_text())


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        ("What is  $x$?", "What is $x$?\n", "identical"),
        (r"Simplify $\sqrt{245}$.", r"simplify: \( \sqrt{245} \)", "same_words"),
        (r"Find $\dfrac{1}{2} + 3$", r"Find $\frac12 + 3.$", None),  # a brace less is another number
        (f"{LONG} that left at one?", f"{LONG} that left at two?", "near"),
        (f"{LONG}?", "How many letters has the word TRAIN?", None),
        ("How many letters has the word TRAIN?", "How many letters has the word TRAINS?", None),
    ],
)
def test_questions_match_by_their_text_their_words_or_most_of_their_runs(one, other, kind):
    assert [match.kind for match in overlaps([one], ["something else", other])] == ([kind] if kind else [])
    assert [(match.first, match.second) for match in duplicates([one, other])] == ([(0, 1)] if kind else [])


@needs_data
@pytest.mark.slow
def test_the_training_set_has_its_counts_its_two_duplicate_pairs_and_no_problem_of_the_benchmarks(tmp_path, capsys):
    options = ["--answer", "gt_answer", "--held-out", str(SHARED / "eval"), "--out", str(tmp_path / "out.jsonl")]
    found = _reported(tmp_path, TRAINING, *options, "--drop-duplicates", "identical")
    assert found["problems"] == 8523
    assert found["levels"] == {"3": 2514, "4": 2648, "5": 3361}
    assert found["subjects"] == {
        "Algebra": 1905,
        "Intermediate Algebra": 1637,
        "Prealgebra": 1246,
        "Geometry": 1027,
        "Number Theory": 1015,
        "Counting & Probability": 878,
        "Precalculus": 815,
    }
    assert [(p["id"], p["other"]) for p in found["duplicates"]["identical"]["first"]] == [
        ("row-1769", "row-4007"),
        ("row-4237", "row-4465"),
    ]
    assert found["overlaps"]["identical"]["count"] == 0
    # Two that differ in commas and a colon alone, which a comparison of texts does not see.
    others = {pair["other"] for pair in found["overlaps"]["same_words"]["first"]}
    assert others == {"college_math/200#200", "olympiadbench/2890#517"}
    assert Counter(drop["reason"].split()[0] for drop in found["dropped"]) == {"no": 2, "identical": 2}
    assert "the SimpleRL training set" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 8519
    assert rows[0] | {"question": ""} == {
        "id": "row-0", "question": "", "answer": "118", "level": 5, "subject": "Intermediate Algebra"
    }  # fmt: skip


@needs_data
@pytest.mark.slow
def test_twenty_problems_of_the_benchmarks_among_the_training_rows_are_all_found(tmp_path):
    stolen = [problem for name in BENCHMARKS for problem in load_benchmark(name, SHARED / "eval")][7::300][:20]
    assert len(stolen) == 20
    rows = [{"question": f"What is {i} plus {i * i}?", "answer": str(i + i * i)} for i in range(200)]
    for number, problem in enumerate(stolen):  # as they stand, in capitals, with other spaces
        text = [problem.question, problem.question.upper(), problem.question.replace(" ", "  ") + "\n"][number % 3]
        rows.insert(9 * number, {"question": text, "answer": "1", "id": f"stolen-{number}"})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    found = _reported(
        tmp_path, tmp_path / "rows.json", "--held-out", str(SHARED / "eval"), "--drop-overlap", "same_words"
    )
    assert {drop["id"] for drop in found["dropped"]} == {f"stolen-{number}" for number in range(20)}
    assert found["kept"] == 200


def test_csv_and_parquet_with_their_own_field_names_become_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    (tmp_path / "a.csv").write_text('nr,text,result\n7,"What, if, 1+1?",2\n8,"Two\nlines",3\n')
    columns = {"nr": ["7", "8"], "text": ["What, if, 1+1?", "Two\nlines"], "result": ["2", "3"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    fields = ["--id", "nr", "--question", "text", "--answer", "result"]
    for name in ("a.csv", "a.parquet"):
        assert run([str(tmp_path / name), *fields, "--out", str(tmp_path / f"{name}.jsonl")]) == 0
    written = (tmp_path / "a.csv.jsonl").read_text()
    assert json.loads(written.splitlines()[0])["question"] == "What, if, 1+1?"
    assert written == (tmp_path / "a.parquet.jsonl").read_text()


def test_long_prompts_are_left_out_by_the_tokens_of_the_template(tmp_path):
    from nemo_simplerl.data.tokenizer import build_tokenizer

    build_tokenizer(["short", "long " * 50], 300, tmp_path / "t")
    (tmp_path / "a.jsonl").write_text('{"question": "x", "answer": 1}\n{"question": "%s", "answer": 1}\n' % ("z" * 400))
    options = ["--tokenizer", str(tmp_path / "t"), "--template", "none", "--max-prompt-tokens", "100"]
    assert [drop["reason"] for drop in _reported(tmp_path, tmp_path / "a.jsonl", *options)["dropped"]] == [
        "prompt of 400 tokens"
    ]


def test_of_copies_the_first_that_can_be_used_stays(tmp_path):
    rows = [{"question": "Same?", "answer": answer, "id": id_} for id_, answer in (("a", ""), ("b", "1"), ("c", "1"))]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = _reported(tmp_path, tmp_path / "a.json", "--drop-duplicates", "identical")
    assert {drop["id"]: drop["reason"] for drop in found["dropped"]} == {"a": "no gold answer", "c": "identical to b"}


def test_golds_that_need_a_look_are_named_and_those_in_longer_texts_are_taken_out(tmp_path, capsys):
    prose = "The two lines meet where both of the equations hold."
    golds = ["1/2", "} and {", prose, "October 30", "2 + 2 = 4.\n#### 4", r"\boxed{5}"]
    rows = [{"question": f"q{index}", "answer": answer} for index, answer in enumerate(golds)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = _reported(tmp_path, tmp_path / "a.json", "--check-golds", "--out", str(tmp_path / "out.jsonl"))
    lists = {name: found[name] for name in ("unreachable_golds", "prose_golds", "text_golds")}
    assert lists == {"unreachable_golds": ["row-1"], "prose_golds": ["row-2"], "text_golds": ["row-3"]}
    written = [json.loads(line)["answer"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert written[4:] == ["4", "5"]
    assert r"2 gold answers taken out of longer values (####: 1, \boxed{}: 1)" in capsys.readouterr().out


def test_a_chat_is_written_whole_and_surveyed_by_its_question(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": chat, "reward_model": {"ground_truth": "2"}}))
    fields = ["--question", "prompt", "--answer", "reward_model.ground_truth"]
    found = _reported(tmp_path, tmp_path / "a.jsonl", *fields, "--out", str(tmp_path / "b.jsonl"))
    assert found["question_chars"]["p100"] == len("1+1?")
    assert json.loads((tmp_path / "b.jsonl").read_text())["question"] == chat


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "q", "ends in .txt; bring one of .json, .jsonl, .csv, .parquet"),
        ("a.json", "", "the file is not JSON"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", '["q"]', "1 row (0; counted from 0) that are not JSON objects"),
        ("a.jsonl", '{"question": "q", "answer": "1"}\n{"question": ', "line 2 is not JSON"),
        (
            "a.jsonl",
            '{"question": "q", "answer": "1"}\n{"answer": "2"}\n',
            "1 row (1; counted from 0) without a 'question'",
        ),
        ("a.jsonl", '{"question": "q"}\n', "without a 'answer'"),
        ("a.csv", "question,answer\nq,1\nq,1,2\n", "line 3 has another number of fields"),
        ("a.csv", 'question,answer\nq,"1\n', "after row 0 it is no CSV"),
        ("a.csv", "question,answer\n", "holds no rows under its first line"),
        ("a.parquet", "PAR1", "is no parquet file"),
        ("missing.csv", None, "there is no file"),
    ],
)
def test_a_malformed_file_is_told_with_the_row(tmp_path, capsys, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    if content is not None:
        (tmp_path / name).write_text(content)
    assert run([str(tmp_path / name), "--out", str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
