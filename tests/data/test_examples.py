"""Worked examples before every question: how prompts look, where responses end, and what is refused."""

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nemo_simplerl.config.load import compose
from nemo_simplerl.data.examples import check_examples, check_room, examples_of, stops_of
from nemo_simplerl.data.problems import Problem, render_prompts
from nemo_simplerl.data.sft import load_sft
from nemo_simplerl.data.templates import INSTRUCTION, WorkedExample, render, renderer

SUM = WorkedExample("3 plums and 4?", r"3 + 4 = 7. \boxed{7}", "7")
TWO_LINES = WorkedExample("2 + 2?", "It is four.\n\\boxed{4}", "4")


def config_of(*examples, template="question-answer", **changes):
    config = compose(["experiment=quickstart", f"data.template={template}"])
    rows = [row._asdict() if isinstance(row, WorkedExample) else row for row in examples]
    return replace(config, data=replace(config.data, examples=rows or None), **changes)


def test_examples_stand_before_the_question_in_the_form_of_the_template():
    assert render("question-answer", "1+1?", trailing_newline=True, examples=[SUM]) == (
        "Question: 3 plums and 4?\nAnswer: 3 + 4 = 7. \\boxed{7}\n\nQuestion: 1+1?\nAnswer:"
    )
    assert render("none", "1+1? ", trailing_newline=True, examples=[SUM]) == (
        "3 plums and 4?3 + 4 = 7. \\boxed{7}\n\n1+1? "
    )
    for newline in (True, False):  # the flag is of the open turn
        text = render("qwen25-math-cot", "1+1?", trailing_newline=newline, examples=[SUM, SUM])
        turn = "<|im_start|>user\n3 plums and 4?<|im_end|>\n<|im_start|>assistant\n3 + 4 = 7. \\boxed{7}<|im_end|>\n"
        assert text == (
            f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n{turn}{turn}"
            "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant" + "\n" * newline
        )


class Chatty:
    chat_template = "..."

    def apply_chat_template(self, conversation, *, tokenize, add_generation_prompt):
        return "".join(f"[{turn['role']}]{turn['content']}" for turn in conversation)


def test_under_a_tokenizers_own_template_examples_are_earlier_turns():
    from nemo_simplerl.data.chats import Turn

    prompt_of = renderer("chat", Chatty(), trailing_newline=True, examples=[SUM])
    asked = f"\n{INSTRUCTION}"
    assert prompt_of("1+1?") == f"[user]{SUM.question}{asked}[assistant]{SUM.response}[user]1+1?{asked}"
    chat = (Turn("system", "Box it."), Turn("user", "1+1?"))
    assert prompt_of(chat) == f"[system]Box it.[user]{SUM.question}[assistant]{SUM.response}[user]1+1?"


def test_a_response_ends_where_those_of_the_examples_do():
    assert stops_of(config_of(SUM).data) == ("\n",)
    assert stops_of(config_of(SUM, TWO_LINES).data) == ("\n\n",)
    paragraphs = TWO_LINES._replace(response="Two\n\nparts. \\boxed{4}")
    assert stops_of(config_of(paragraphs).data) == ("\n\nQuestion: ",)
    assert stops_of(config_of(SUM, template="qwen-boxed").data) == ()  # a token ends the turn
    assert stops_of(config_of(SUM, template="chat").data) == ()
    assert stops_of(config_of().data) == ()


def test_examples_are_read_from_a_list_or_a_file_and_a_number_is_an_answer(tmp_path):
    rows = [{"question": SUM.question, "response": f"{SUM.response}\n", "answer": 7, "source": "me"}]
    assert examples_of(config_of(*rows).data) == (SUM,)
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps(rows[0]))
    config = compose(["experiment=quickstart", f"data.examples={file}"])
    assert examples_of(config.data) == (SUM,)
    check_examples(config)
    inline = compose(["experiment=quickstart", 'data.examples=[{question: "a b", response: "c", answer: d}]'])
    assert examples_of(inline.data) == (WorkedExample("a b", "c", "d"),)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (SUM._replace(answer="8"), r"data.examples\[1\]: its response is graded incorrect against its answer '8'"),
        (SUM._replace(response="It is 7."), "is graded no_answer against its answer '7'. End it in the right answer"),
        (SUM._replace(response=r"\boxed{7}</s>"), r"its response holds '</s>', where a response would end"),
        ({"question": "1?", "answer": "1"}, r"data.examples\[1\] has no text as its 'response'; write each as"),
        ({"question": " ", "response": "1", "answer": "1"}, "has no text as its 'question'"),
    ],
)
def test_an_example_that_would_teach_something_wrong_is_refused(row, told):
    with pytest.raises(ValueError, match=told):
        check_examples(config_of(SUM, row))


def test_under_a_reward_of_ones_own_the_grader_does_not_judge_examples():
    config = config_of(SUM._replace(response="#### 7"))
    check_examples(replace(config, reward=replace(config.reward, function="mine.py:paid")))


def word_tokenizer():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", pad_token="</s>")


def test_an_example_that_no_response_could_equal_in_length_is_refused():
    check_room([SUM], word_tokenizer(), 7)
    with pytest.raises(
        ValueError, match=r"has 6 tokens, and rollout.max_response_tokens=6 cuts one like it. Set it to 12"
    ):
        check_room([SUM], word_tokenizer(), 6)


def test_problems_that_the_prompt_solves_are_counted():
    problems = [Problem(str(i), text, "7", None, None) for i, text in enumerate((SUM.question, "1+1?"))]
    options = {"trailing_newline": True, "max_prompt_tokens": 99, "overlong": "error"}
    prompts, report = render_prompts(problems, word_tokenizer(), "abel", examples=(SUM,), **options)
    assert prompts[1].text.startswith("Question:\n3 plums and 4?") and prompts[1].text.endswith("step by step.\n")
    assert report.notes() == ["1 problems stand in data.examples with their answers"]


def test_the_warm_start_reads_a_response_behind_the_same_prompt_and_space(tmp_path):
    file = tmp_path / "sft.jsonl"
    file.write_text(json.dumps({"question": "1+1?", "response": "2"}) + '\n{"prompt": "1+1?", "response": "2"}')
    seen = []

    class Spy:
        eos_token_id = 1

        def __call__(self, texts, **options):
            seen.append(texts)
            return {"input_ids": [[5] for _ in texts] if isinstance(texts, list) else [5]}

    options = {"trailing_newline": True, "max_tokens": 9, "overlong": "error"}
    load_sft(file, Spy(), "question-answer", worked=(SUM,), **options)
    assert seen[0] == [render("question-answer", "1+1?", trailing_newline=True, examples=[SUM]), "1+1?"]
    assert [" 2", "2"] in seen
