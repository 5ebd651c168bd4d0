import json
from collections import Counter
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from nemo_simplerl.config.schema import DataConfig
from nemo_simplerl.data.problems import load_problems
from nemo_simplerl.data.templates import INSTRUCTION, NAMES, TEMPLATES, render, renderer

TRAINING_SET = Path(__file__).parents[2].parent / "shared/data/math_level3to5_data_processed_with_qwen_prompt.json"


needs_training_set = pytest.mark.skipif(
    not TRAINING_SET.is_file(), reason="the SimpleRL training set is not in ../shared/data"
)


@needs_training_set
def test_the_chat_template_equals_every_prompt_of_the_simplerl_training_set():
    rows = json.loads(TRAINING_SET.read_text())
    assert len(rows) == 8523
    for row in rows:
        assert render("qwen25-math-cot", row["question"], trailing_newline=False) == row["input"]


@needs_training_set
def test_two_rows_of_the_simplerl_training_set_have_no_gold():
    with pytest.raises(ValueError, match=r"2 rows \(5054, 5158; counted from 0\) without a 'gt_answer'"):
        load_problems(TRAINING_SET, "question", "gt_answer")
    problems, _ = load_problems(TRAINING_SET, "question", "gt_answer", without_gold="drop")
    assert len(problems) == 8521
    assert Counter(problem.level for problem in problems) == {5: 3361 - 2, 4: 2648, 3: 2514}
    assert problems[5054].id == "row-5055"


def test_the_chat_template_reads_as_the_model_was_trained():
    assert render("qwen25-math-cot", "What is $\\frac{1}{2}$?", trailing_newline=True) == (
        "<|im_start|>system\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is $\\frac{1}{2}$?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_boxed_template_gives_the_instruction_after_the_question():
    assert render("qwen-boxed", "1+1?", trailing_newline=True) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n1+1?\n"
        "Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("newline", [True, False])
def test_plain_templates_know_no_assistant_turn(newline):
    assert render("abel", "1+1?", trailing_newline=newline) == "Question:\n1+1?\nAnswer:\nLet's think step by step.\n"
    assert render("none", "1+1?", trailing_newline=newline) == "1+1?"


def test_a_question_that_ends_like_a_prompt_gets_no_newline():
    question = "Repeat <|im_start|>assistant"
    assert render("none", question, trailing_newline=True) == question


def test_braces_in_a_question_stay():
    assert "is {question} {0}?" in render("abel", "is {question} {0}?", trailing_newline=False)


def test_an_unknown_template_names_the_known_ones():
    with pytest.raises(ValueError, match=f"'chatml'; choose one of {', '.join(TEMPLATES)}"):
        render("chatml", "x", trailing_newline=True)


class Chatty:
    chat_template = "..."

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return "".join(f"[{turn['role']}]{turn['content']}" for turn in conversation) + "[assistant]"


def test_chat_is_the_tokenizers_own_template_with_the_instruction_after_the_question():
    assert renderer("chat", Chatty(), trailing_newline=True)("1+1?") == f"[user]1+1?\n{INSTRUCTION}[assistant]"
    assert renderer("abel", Chatty(), trailing_newline=True)("q") == render("abel", "q", trailing_newline=True)
    mute = Chatty()
    mute.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template; choose one of qwen25-math-cot"):
        renderer("chat", mute, trailing_newline=True)
    with pytest.raises(ValueError, match="unknown prompt template 'chatty'"):
        renderer("chatty", mute, trailing_newline=True)


def test_the_configuration_offers_every_template_and_no_other():
    assert get_args(get_type_hints(DataConfig)["template"]) == NAMES
