import json

import pytest
import torch

from nemo_simplerl.data.sft import SftExample, collate_sft, load_sft
from nemo_simplerl.data.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(["question and answer"], 259, tmp_path_factory.mktemp("tokenizer"))


def load(tmp_path, tokenizer, rows, *, max_tokens=1000, overlong="error", template="qwen25-math-cot"):
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"trailing_newline": True, "max_tokens": max_tokens, "overlong": overlong}
    return load_sft(path, tokenizer, template, **options)


def test_a_question_is_rendered_and_a_prompt_stands_as_it_is(tmp_path, tokenizer):
    rows = [{"question": "1+1?", "response": "2"}, {"prompt": "1+1=", "response": "2"}]
    (rendered, ready), report = load(tmp_path, tokenizer, rows)
    text = tokenizer.decode(rendered.prompt_ids)
    assert text.startswith("<|im_start|>system")
    assert text.endswith("1+1?<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(ready.prompt_ids) == "1+1="
    assert (report.num_kept, report.num_dropped, report.longest) == (2, 0, len(rendered))


def test_messages_are_a_prompt_and_its_response_in_every_form(tmp_path, tokenizer):
    asked, said = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
    rows = [
        {"question": "1+1?", "response": "2"},
        {"messages": [{"role": "system", "content": "Be brief."}, asked, said]},
        {"prompt": [asked], "completion": [said]},
        {"prompt": [asked], "response": "2"},
        {"prompt": "1+1?", "messages": [asked, said]},
    ]
    examples, _ = load(tmp_path, tokenizer, rows)
    assert len(set(examples)) == 1
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    _, chat, *_ = load(tmp_path, tokenizer, rows, template="chat")[0]
    tokenizer.chat_template = None
    assert tokenizer.decode(chat.prompt_ids) == "[system]Be brief.[user]1+1?"


def test_a_response_ends_in_one_eos(tmp_path, tokenizer):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b<|endoftext|>"}]
    examples, _ = load(tmp_path, tokenizer, rows)
    assert [tokenizer.decode(example.response_ids) for example in examples] == ["b<|endoftext|>"] * 2


def test_the_prompt_is_masked_and_the_eos_is_learned():
    batch = collate_sft([SftExample((1, 2, 3), (4, 0)), SftExample((5,), (6, 7, 8, 0))], pad_id=0, device="cpu")
    assert batch.tokens_BS.tolist() == [[1, 2, 3, 4, 0], [5, 6, 7, 8, 0]]
    assert batch.mask_BT.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert torch.equal(batch.loss_mask_BT, batch.mask_BT)
    assert batch.scores_B.tolist() == [0, 0]
    assert not batch.truncated_B.any()


def test_padding_after_the_eos_is_not_learned_though_it_is_the_same_token():
    batch = collate_sft([SftExample((1,), (4, 0)), SftExample((5,), (6, 7, 8, 0))], pad_id=0, device="cpu")
    assert batch.tokens_BS[0].tolist() == [1, 4, 0, 0, 0]
    assert batch.mask_BT[0].tolist() == [1, 1, 0, 0]


def test_overlong_examples_are_dropped_and_named(tmp_path, tokenizer):
    # One token a byte: 1 + 2 + EOS is 4 tokens, the limit; 1 + 3 + EOS is 5.
    rows = [{"prompt": "a", "response": "bcd"}, {"prompt": "a", "response": "bc"}]
    examples, report = load(tmp_path, tokenizer, rows, max_tokens=4, overlong="drop")
    assert [len(example) for example in examples] == [4]
    assert (report.num_kept, report.dropped_rows, report.longest) == (1, (0,), 5)


def test_overlong_examples_are_refused_when_asked(tmp_path, tokenizer):
    rows = [{"prompt": "a", "response": "bcd"}, {"prompt": "a", "response": "bc"}]
    message = r"1 row \(0; counted from 0\) of 2 have more than 4 tokens, the longest 5; raise sft.max_tokens or"
    with pytest.raises(ValueError, match=message):
        load(tmp_path, tokenizer, rows, max_tokens=4, overlong="error")


def test_nothing_left_after_dropping_is_an_error(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="raise sft.max_tokens$"):
        load(tmp_path, tokenizer, [{"prompt": "a", "response": "bcd"}], max_tokens=4, overlong="drop")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"response": "x"}, 'exactly one of "question", "prompt" and "messages"'),
        ({"question": "x", "prompt": "x", "response": "x"}, 'exactly one of "question", "prompt" and "messages"'),
        ({"messages": "x"}, r'a list of {"role": \.\.\., "content": \.\.\.} in "messages"'),
        ({"messages": [{"role": "user", "content": "x"}]}, "do not end in the answer of the assistant"),
        ({"question": 3, "response": "x"}, 'without text in "question"'),
        ({"prompt": " ", "response": "x"}, 'without text in "prompt"'),
        ({"prompt": "x"}, 'without text in "response"'),
        ({"prompt": "x", "response": ""}, 'without text in "response"'),
    ],
)
def test_faulty_rows_are_named(tmp_path, tokenizer, row, message):
    good = {"question": "x", "response": "y"}
    with pytest.raises(ValueError, match=rf"sft.jsonl: 2 rows \(1, 3; counted from 0\) .*{message}"):
        load(tmp_path, tokenizer, [good, row, good, row])
