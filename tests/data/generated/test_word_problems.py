"""Word problems: right golds by their words, nothing of the held-out set in training, the same bytes from a seed."""

import json
import re
from collections import Counter

import pytest

from nemo_simplerl.data.generated.tasks import write_task
from nemo_simplerl.data.generated.word_problems import STORIES, TWO_STEPS, Exercise, Task
from nemo_simplerl.data.generated.word_problems import write_task as write_small

SMALL = Task(num_train=600, num_eval=150)


def write(folder, seed=7, task=SMALL):
    return write_small(folder / "train.jsonl", folder / "eval.jsonl", seed=seed, task=task)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    write(folder)
    return {name: read(folder / f"{name}.jsonl") for name in ("train", "eval")}


def told(question: str) -> tuple[str, tuple[int, ...]]:
    """The operations and numbers of a question, found by the story that it is."""
    for operations, stories in STORIES.items():
        for story in stories:
            pattern = re.sub(r"\\\{(\d)\\\}", r"(?P<n\1>\\d+)", re.escape(story), count=3)
            pattern = re.sub(r"\\\{\w+\\\}", r"\\w+", pattern)
            if found := re.fullmatch(pattern, question):
                return operations, tuple(int(found[f"n{i}"]) for i in range(len(operations) + 1))
    raise AssertionError(question)


def test_golds_are_what_the_words_say_and_every_story_tells_all_its_numbers(rows):
    by_hand = {"+": lambda a, b: a + b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
    seen = set()
    for row in rows["train"] + rows["eval"]:
        operations, (total, *others) = told(row["question"])
        for operation, number in zip(operations, others, strict=True):
            total = by_hand[operation](total, number)
        assert total == int(row["answer"]) and 2 <= total <= 100
        assert row["level"] == len(operations)
        seen.add(operations)
    assert seen == STORIES.keys()


def test_no_exercise_of_the_held_out_set_is_in_training_in_whatever_words_and_order(rows):
    def exercises(name):
        return {Exercise(*told(row["question"])).without_order for row in rows[name]}

    assert not exercises("train") & exercises("eval")
    assert Exercise("++", (5, 3, 4)).without_order == Exercise("++", (3, 4, 5))
    assert Exercise("*+", (5, 3, 4)).without_order == Exercise("*+", (3, 5, 4))
    assert Exercise("/", (6, 3)).without_order != Exercise("/", (6, 2)).without_order
    questions = [row["question"] for row in rows["train"] + rows["eval"]]
    assert len(set(questions)) == len(questions)


def test_the_seed_alone_decides_the_bytes_and_what_is_there_stays(tmp_path):
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        write(tmp_path / name, seed)
    files = {name: (tmp_path / name / "train.jsonl").read_bytes() for name in ("one", "same", "other")}
    assert files["one"] == files["same"] != files["other"]
    (tmp_path / "one/eval.jsonl").write_text("mine")
    assert write(tmp_path / "one") == []
    assert (tmp_path / "one/eval.jsonl").read_text() == "mine"


def test_the_harder_set_has_two_steps_each_and_no_demonstrations(tmp_path):
    paths = [tmp_path / f"{name}.jsonl" for name in ("train", "eval", "sft")]
    assert write_task("two_step_problems", *paths, seed=1) == paths[:2]
    rows = read(paths[0]) + read(paths[1])
    assert len(rows) == TWO_STEPS.num_train + TWO_STEPS.num_eval and {row["level"] for row in rows} == {2}


def test_every_kind_of_exercise_has_its_share_of_either_file(rows):
    """One-step products are 36 exercises: a held-out set that takes those it meets leaves training none of them."""
    task = Task()
    for name in ("train", "eval"):
        told_of = Counter(told(row["question"])[0] for row in rows[name])
        for num_steps, share in ((1, 1 - task.share_of_two_steps), (2, task.share_of_two_steps)):
            kinds = [operations for operations in STORIES if len(operations) == num_steps]
            expected = len(rows[name]) * share / len(kinds)
            for kind in kinds:
                assert abs(told_of[kind] - expected) < 4 * expected**0.5, (name, kind)


def test_numbers_too_small_for_an_exercise_of_either_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found no exercise '.' for (train|eval); allow larger numbers: Task"):
        write(tmp_path, task=Task(num_eval=150, max_number=2, max_factor=2, share_of_two_steps=0.0, max_result=4))
