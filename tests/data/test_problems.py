import json
from pathlib import Path

import pytest

from nemo_simplerl.data.problems import Problem, load_problems, problems_of, render_prompts

# A word tokenizer that anyone can count with: one token a word.
WORDS = ["zero", "one", "two", "three", "four"]


class WordTokenizer:
    def __call__(self, texts, add_special_tokens=True):
        rows = [[WORDS.index(word) for word in text.split()] for text in ([texts] if isinstance(texts, str) else texts)]
        return {"input_ids": rows[0] if isinstance(texts, str) else rows}

    def decode(self, ids, clean_up_tokenization_spaces):
        return " ".join(WORDS[index] for index in ids)


class ByteTokenizer:
    chat_template = "..."

    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": list(texts.encode()) if isinstance(texts, str) else [list(t.encode()) for t in texts]}

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        return "".join(f"[{turn['role']}]{turn['content']}" for turn in conversation) + "[assistant]"


FREELY = {"trailing_newline": True, "max_prompt_tokens": 500, "overlong": "error"}


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
        {"problem": "How many?", "gold": "12", "level": "Level 5", "subject": "Algebra", "id": None},
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


@pytest.mark.parametrize(
    "gold", ["", "  ", None, [], ["2", "3"], True, float("nan"), float("inf"), "NaN", {"value": 2}, r"\boxed{2", "####"]
)
def test_rows_without_a_usable_gold_are_named_and_counted(tmp_path, gold):
    rows = [{"q": "x", "a": "1"}] + [{"q": "x", "a": gold}] * 7
    with pytest.raises(ValueError, match=r"rows.jsonl: 7 rows \(1, 2, 3, 4, 5, \.\.\.; counted from 0\) without a 'a'"):
        load_problems(write(tmp_path / "rows.jsonl", rows), "q", "a")


def test_rows_without_a_gold_can_be_left_out_and_keep_the_others_names(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "x", "a": "1"}, {"q": "y", "a": ""}, {"q": "z", "a": 0}])
    problems, golds = load_problems(path, "q", "a", without_gold="drop")
    assert golds.notes() == ["1 row left out that has no gold answer (it is empty: 1)"]
    assert [(item.id, item.answer) for item in problems] == [("row-0", "1"), ("row-2", "0")]
    with pytest.raises(ValueError, match="3 rows .* without a 'answer'"):
        load_problems(path, "q", "answer", without_gold="drop")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("5 - 2 = 3.\n#### %s", "####"),
        (r"\boxed{%s}", r"\boxed{}"),
        (r"We add. The answer is $\boxed{%s}$.", r"\boxed{}"),
        ("We add. The answer is %s.", '"the answer is"'),
        ("<think>We add.</think><answer>%s</answer>", "<answer>"),
    ],
)
def test_golds_are_taken_out_of_longer_texts_and_counted(tmp_path, form, name):
    path = write(tmp_path / "rows.jsonl", [{"q": "x", "a": form % answer} for answer in (3, 12, 7)])
    problems, golds = load_problems(path, "q", "a")
    assert [item.answer for item in problems] == ["3", "12", "7"]
    assert golds.notes() == [f"3 gold answers taken out of longer values ({name}: 3)"]


PROSE = "She walks to the shop, buys 3 apples, and then gives all of them to her brother."


@pytest.mark.parametrize("gold", ["None", "N/A", "#### 5\n\nCheck: ok"])
def test_a_file_full_of_golds_that_stand_for_no_answer_is_refused(tmp_path, gold):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"question": "q", "answer": answer} for answer in ("5", gold, "6")]))
    with pytest.raises(ValueError, match=r"1 row \(1; counted from 0\).*neither mathematics nor words"):
        load_problems(path, "question", "answer")


def test_a_file_whose_golds_are_half_prose_is_refused_with_rows_example_and_remedy(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "x", "a": gold} for gold in ("3", PROSE, "4", PROSE)])
    message = (
        r"2 rows \(1, 3; counted from 0\) without a 'a'.*sentences.*as in row 1, 'She walks.*rows_without_gold=drop"
    )
    with pytest.raises(ValueError, match=message):
        load_problems(path, "q", "a")
    problems, _ = load_problems(path, "q", "a", without_gold="drop")
    assert [item.answer for item in problems] == ["3", "4"]


def test_a_reward_of_the_users_own_may_make_something_of_any_gold(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "x", "a": gold} for gold in (PROSE, "assert f(1) == 2", "N/A")])
    problems, golds = load_problems(path, "q", "a", is_graded=False)
    assert [item.answer for item in problems] == [PROSE, "assert f(1) == 2", "N/A"] and golds.notes() == []
    with pytest.raises(ValueError, match="1 row .* without a 'a'"):
        rows = [{"q": "x", "a": None}, {"q": "x", "a": "y"}]
        load_problems(write(tmp_path / "rows.jsonl", rows), "q", "a", is_graded=False)


def test_a_few_golds_that_only_their_own_text_equals_are_told_and_kept(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"q": "x", "a": gold} for gold in ("October 30", PROSE, *"12345678")])
    problems, golds = load_problems(path, "q", "a")
    assert len(problems) == 10
    assert [note.rpartition(": ")[2] for note in golds.notes()] == ["1", "1 (such as 'October 30')"]


VERL = {
    "data_source": "gsm8k",
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
}


def test_verls_form_is_read_by_nested_names_and_its_fields_are_told_where_they_are_not_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", [VERL])
    (found,), _ = load_problems(path, "prompt", "reward_model.ground_truth")
    assert (found.question, found.answer, len(found.chat)) == ("1+1?", "2", 2)
    with pytest.raises(ValueError, match="data_source, prompt, reward_model.style, reward_model.ground_truth"):
        load_problems(path, "question", "answer")
    with pytest.raises(ValueError, match="object of style, ground_truth"):
        load_problems(path, "prompt", "reward_model")


def test_the_command_lines_own_options_are_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"problem": "x", "solution": "1"}])
    with pytest.raises(ValueError, match="--question FIELD and --answer FIELD, or mend the rows$"):
        problems_of(path, {})


def test_a_chat_is_written_as_it_stands_by_chat_and_as_its_question_by_the_others(tmp_path):
    path = write(tmp_path / "rows.jsonl", [VERL])
    problems, _ = load_problems(path, "prompt", "reward_model.ground_truth")
    (prompt,), report = render_prompts(problems, ByteTokenizer(), "chat", **FREELY)
    assert prompt.text == "[system]Be brief.[user]1+1?[assistant]"
    assert ["ask for no" in note for note in report.notes()] == [True]
    (prompt,), report = render_prompts(problems, ByteTokenizer(), "none", **FREELY)
    assert prompt.text == "1+1?"
    assert ["system messages left out" in note for note in report.notes()] == [True]


def test_a_chat_of_several_turns_needs_the_template_chat(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    problems, _ = load_problems(write(tmp_path / "rows.jsonl", [{"q": turns, "a": 1}]), "q", "a")
    assert len(render_prompts(problems, ByteTokenizer(), "chat", **FREELY)[0]) == 1
    with pytest.raises(ValueError, match=r"row-0: a chat of several turns \(user, assistant, user\).*template=chat"):
        render_prompts(problems, ByteTokenizer(), "none", **FREELY)


def test_a_wrong_field_name_shows_the_fields_that_are_there(tmp_path):
    path = write(tmp_path / "rows.json", [{"problem": "x", "solution": "1"}])
    with pytest.raises(ValueError, match=r"without a 'question'.*problem, solution.*data.question_field"):
        load_problems(path, "question", "answer")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.jsonl", None, "there is no file"),
        ("rows.txt", "x", r"ends in \.txt"),
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
