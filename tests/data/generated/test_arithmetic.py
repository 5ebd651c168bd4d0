import json
import re
from collections import Counter

import pytest

from nemo_simplerl.data.generated.arithmetic import Exercise, Task, respond, write_task
from nemo_simplerl.data.tokenizer import build_tokenizer

SMALL = Task(num_train=400, num_eval=100, num_sft=1000)
FILES = ("train", "eval", "sft")


def write_all(folder, seed=7, task=SMALL):
    return write_task(*(folder / f"{name}.jsonl" for name in FILES), seed=seed, task=task)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write_all(folder)
    return {name: read(folder / f"{name}.jsonl") for name in FILES}


def solve(question: str) -> tuple[int, ...]:
    """The result after each sentence, read from the words alone."""
    first, *rest = question.split(". ")
    totals = [int(number) for number in re.findall(r"\d+", first)]
    if " boxes of " in first:
        totals = [totals[0] * totals[1]]
    for sentence in rest:
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        if not numbers:
            assert sentence.endswith("?"), sentence
            continue
        (number,) = numbers
        if re.search(r"times|Multiply", sentence):
            totals.append(totals[-1] * number)
        elif re.search(r"gives|loses|sells|Subtract", sentence):
            totals.append(totals[-1] - number)
        else:
            assert re.search(r"buys|finds|gets|Add", sentence), sentence
            totals.append(totals[-1] + number)
    return tuple(totals)


def test_every_gold_is_what_the_words_say(rows):
    for row in rows["train"] + rows["eval"]:
        assert int(row["answer"]) == solve(row["question"])[-1], row
        assert row["level"] in (2, 3)


def test_careful_responses_calculate_right_and_box_the_last_result(rows):
    for row in (row for row in rows["sft"] if row["style"] == "careful"):
        *steps, conclusion = row["response"].split("\n")
        results = []
        for step in steps:
            left, symbol, right, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step).groups()
            left, right, result = int(left), int(right), int(result)
            assert result == {"+": left + right, "-": left - right, "*": left * right}[symbol], row
            assert not results or left == results[-1], row
            results.append(result)
        assert len(results) in (2, 3)
        assert tuple(results) == solve(row["question"])[-len(results) :]
        assert conclusion == f"\\boxed{{{results[-1]}}}"


def test_the_other_styles_end_in_the_same_answer(rows):
    patterns = {
        "hasty": r"\\boxed\{(\d+)\}",
        "plain": r"First [-+*=, then\d]+=(\d+)\.",
        "code": r"print\(([-+*()\d]+)\)",
    }
    for row in (row for row in rows["sft"] if row["style"] in patterns):
        found = re.fullmatch(patterns[row["style"]], row["response"])
        assert found, row
        assert eval(found[1]) == solve(row["question"])[-1], row  # digits and operators only, by the pattern


def test_only_hasty_and_careful_responses_box(rows):
    assert {row["style"] for row in rows["sft"] if "boxed" in row["response"]} == {"hasty", "careful"}


def test_the_styles_come_in_their_shares(rows):
    counts = Counter(row["style"] for row in rows["sft"])
    for style, share in {"hasty": 0.20, "careful": 0.30, "plain": 0.40, "code": 0.10}.items():
        assert abs(counts[style] / 1000 - share) < 0.05, counts  # three standard deviations are 0.047


def test_a_sum_is_bracketed_before_it_is_multiplied():
    exercise = Exercise(12, (("+", 7), ("*", 3), ("-", 2)))
    assert exercise.expression() == "(12+7)*3-2"
    assert exercise.answer == 55
    assert respond(exercise, "careful") == "12+7=19\n19*3=57\n57-2=55\n\\boxed{55}"
    assert respond(exercise, "plain") == "First 12+7=19, then 19*3=57, then 57-2=55."


def test_no_question_appears_twice_and_eval_keeps_its_numbers_to_itself(rows):
    questions = [row["question"] for name in FILES for row in rows[name]]
    assert len(questions) == len(set(questions)) == 1500
    chains = {name: {chain_of(row["question"]) for row in rows[name]} for name in FILES}
    assert not chains["eval"] & (chains["train"] | chains["sft"])


def chain_of(question: str) -> tuple:
    """The exercise behind the words: its numbers in the order of the calculation, and which of them multiply."""
    numbers = re.findall(r"\d+", question)
    multiplies = [bool(re.search(r"times|Multiply", part)) for part in question.split(". ") if re.search(r"\d", part)]
    if " boxes of " in question:
        numbers[:2] = reversed(numbers[:2])
        multiplies.insert(1, True)
    return tuple(numbers), tuple(multiplies), solve(question)[-1]


def test_results_stay_within_the_limit(rows):
    for name in FILES:
        for row in rows[name]:
            assert all(1 <= total <= SMALL.max_result for total in solve(row["question"])), row


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        assert len(write_all(folder, seed=seed)) == 3
        assert sorted(path.name for path in folder.iterdir()) == ["eval.jsonl", "sft.jsonl", "train.jsonl"]
    first, again, other = ([(folder / f"{name}.jsonl").read_bytes() for name in FILES] for folder in folders)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_files_that_exist_are_left_alone_and_change_nothing_in_the_others(tmp_path):
    write_all(tmp_path / "whole")
    (tmp_path / "part").mkdir()
    (tmp_path / "part/train.jsonl").write_text("mine")
    written = write_all(tmp_path / "part")
    assert [path.name for path in written] == ["eval.jsonl", "sft.jsonl"]
    assert (tmp_path / "part/train.jsonl").read_text() == "mine"
    assert (tmp_path / "part/sft.jsonl").read_bytes() == (tmp_path / "whole/sft.jsonl").read_bytes()


def test_files_nobody_asked_for_are_not_written(tmp_path):
    assert write_task(tmp_path / "t.jsonl", None, None, seed=7, task=SMALL) == [tmp_path / "t.jsonl"]


def test_more_problems_than_there_are_is_an_error(tmp_path):
    # 3-2 reaches 1, and no second operation can stay there.
    tiny = Task(num_eval=5, max_result=1)
    with pytest.raises(ValueError, match="found 0 of 5 distinct problems; allow larger numbers"):
        write_all(tmp_path, task=tiny)
    assert list(tmp_path.iterdir()) == []


def test_texts_are_short_in_tokens(rows, tmp_path):
    texts = [row["question"] + "\n" + row["response"] for row in rows["sft"]]
    tokenizer = build_tokenizer(texts, 640, tmp_path)
    assert max(len(tokenizer.encode(row["question"])) for row in rows["sft"]) < 45
    assert max(len(tokenizer.encode(row["response"])) for row in rows["sft"]) < 60


def test_the_grader_agrees_with_every_gold_and_wants_a_box(rows):
    grade = pytest.importorskip("nemo_simplerl.reward.grade")
    wanted = {"hasty": "correct", "careful": "correct", "plain": "no_answer", "code": "no_answer"}
    for row in rows["sft"][:100]:
        gold = str(solve(row["question"])[-1])
        assert grade.grade_text(gold, row["response"]) == wanted[row["style"]], row
    for row in rows["eval"]:
        assert grade.grade_text(row["answer"], f"\\boxed{{{row['answer']}}}") == "correct", row
        assert grade.grade_text(row["answer"], f"\\boxed{{{int(row['answer']) + 1}}}") == "incorrect", row
