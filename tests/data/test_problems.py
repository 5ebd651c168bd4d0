import json
from pathlib import Path

import pytest

from nemo_simplerl.data.problems import Problem, load_problems, render_prompts

# A word tokenizer that anyone can count with: one token a word.
WORDS = ["zero", "one", "two", "three", "four"]


class WordTokenizer:
    def __call__(self, texts, add_special_tokens):
        assert add_special_tokens is False, "the template says all; no BOS is added"
        return {"input_ids": [[WORDS.index(word) for word in text.split()] for text in texts]}

    def decode(self, ids, clean_up_tokenization_spaces):
        return " ".join(WORDS[index] for index in ids)


def write(path: Path, rows: list) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem(name: str, question: str) -> Problem:
    return Problem(id=name, question=question, answer="1", level=None, subject=None)


def render_words(problems, overlong):
    options = {"trailing_newline": True, "max_prompt_tokens": 2, "overlong": overlong}
    return render_prompts(problems, WordTokenizer(), "none", **options)


SHORT, EXACT, LONG = problem("a", "one"), problem("b", "one two"), problem("c", "one two three four")


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_both_forms_of_a_file_give_the_same_problems(tmp_path, suffix):
    rows = [
        {"problem": "How many?", "gold": "12", "level": "Level 5", "subject": "Algebra"},
        {"problem": "And now?", "gold": 27.0, "level": 3, "id": 60},
        {"problem": "A half?", "gold": 0.5, "level": "Level ?", "id": "half"},
    ]
    assert load_problems(write(tmp_path / f"rows{suffix}", rows), "problem", "gold")[0] == [
        Problem(id="row-0", question="How many?", answer="12", level=5, subject="Algebra"),
        Problem(id="60", question="And now?", answer="27", level=3, subject=None),
        Problem(id="half", question="A half?", answer="0.5", level=None, subject=None),
    ]


def test_a_line_may_hold_a_unicode_line_separator(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "one\u2028two", "a": "1"}\n\n{"q": "three", "a": "2"}\n', encoding="utf-8")
    assert [item.question for item in load_problems(path, "q", "a")[0]] == ["one\u2028two", "three"]


@pytest.mark.parametrize("gold", ["", "  ", None, [], ["2"], True])
def test_rows_without_a_usable_gold_are_named_and_counted(tmp_path, gold):
    rows = [{"q": "x", "a": "1"}] + [{"q": "x", "a": gold}] * 7
    with pytest.raises(ValueError, match=r"rows.jsonl: 7 rows \(1, 2, 3, 4, 5, \.\.\.; counted from 0\) without a 'a'"):
        load_problems(write(tmp_path / "rows.jsonl", rows), "q", "a")


def test_rows_without_a_gold_can_be_left_out_and_keep_the_others_names(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "x", "a": "1"}, {"q": "y", "a": ""}, {"q": "z", "a": 0}])
    problems, num_without_gold = load_problems(path, "q", "a", without_gold="drop")
    assert num_without_gold == 1
    assert [(item.id, item.answer) for item in problems] == [("row-0", "1"), ("row-2", "0")]
    with pytest.raises(ValueError, match="3 rows .* without a 'answer'"):
        load_problems(path, "q", "answer", without_gold="drop")


def test_a_wrong_field_name_shows_the_fields_that_are_there(tmp_path):
    path = write(tmp_path / "rows.json", [{"problem": "x", "solution": "1"}])
    with pytest.raises(ValueError, match=r"without a 'question'.*problem, solution.*data.question_field"):
        load_problems(path, "question", "answer")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.jsonl", None, "there is no file"),
        ("rows.parquet", "x", r"ends in \.parquet"),
        ("rows.jsonl", '{"q": 1}\n{"q": ', "line 2 is not JSON"),
        ("rows.json", "{", "the file is not JSON"),
        ("rows.json", "{}", "no rows"),
        ("rows.jsonl", "\n", "no rows"),
        ("rows.jsonl", '{"q": 1}\n[2]\n', r"1 row \(1; counted from 0\) that are not JSON objects"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_problems(tmp_path / name, "q", "a")


def test_overlong_prompts_are_dropped_and_named():
    prompts, report = render_words([SHORT, LONG, EXACT], "drop")
    assert [(prompt.problem, prompt.text, prompt.token_ids) for prompt in prompts] == [
        (SHORT, "one", (1,)),
        (EXACT, "one two", (1, 2)),
    ]
    assert (report.num_kept, report.num_dropped, report.dropped_ids) == (2, 1, ("c",))
    assert (report.num_truncated, report.longest) == (0, 4)


def test_overlong_prompts_are_cut_to_their_first_tokens():
    prompts, report = render_words([LONG, SHORT], "truncate")
    assert [(prompt.text, prompt.token_ids) for prompt in prompts] == [("one two", (1, 2)), ("one", (1,))]
    assert (report.num_kept, report.num_dropped, report.num_truncated, report.longest) == (2, 0, 1, 4)


def test_overlong_prompts_are_refused_when_asked():
    with pytest.raises(ValueError, match=r"1 of 2 prompts have more than 2 tokens, the longest 4 \(first: c\)"):
        render_words([SHORT, LONG], "error")


@pytest.mark.parametrize("problems", [[], [LONG]])
def test_no_prompt_left_is_an_error(problems):
    with pytest.raises(ValueError, match="no prompt is left"):
        render_words(problems, "drop")
