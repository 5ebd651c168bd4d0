"""Prompts begin as the tokenizer itself begins a text: with real tokenizer classes, of Llama's kind and of Qwen's."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast, Qwen2TokenizerFast

from nemo_simplerl.data.problems import Problem, render_prompts
from nemo_simplerl.data.sft import load_sft
from nemo_simplerl.data.templates import TEMPLATES

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
PROBLEM = Problem("1", "How many?", "1", None, None)


def core(single: str | None = None) -> Tokenizer:
    """A byte-level tokenizer whose post-processor makes `single` of a text, as in a model's tokenizer.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    if single is not None:
        special = [(token, core.token_to_id(token)) for token in (BOS, EOS)]
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return core


LLAMA_2 = LlamaTokenizerFast(tokenizer_object=core(), bos_token=BOS, eos_token=EOS, legacy=False)
LLAMA = PreTrainedTokenizerFast(tokenizer_object=core(f"{BOS} $A"), bos_token=BOS, eos_token=EOS)  # Llama 3's
WITH_EOS = PreTrainedTokenizerFast(tokenizer_object=core(f"{BOS} $A {EOS}"), bos_token=BOS, eos_token=EOS)
QWEN = Qwen2TokenizerFast(tokenizer_object=core(), eos_token=EOS)
# A BOS that the class knows and puts before nothing, as GPT-2's.
UNUSED = PreTrainedTokenizerFast(tokenizer_object=core(), bos_token=BOS, eos_token=EOS)


def ids_of(tokenizer, template, problem=PROBLEM):
    options = {"trailing_newline": True, "max_prompt_tokens": 500, "overlong": "drop"}
    (prompt,), _ = render_prompts([problem], tokenizer, template, **options)
    return list(prompt.token_ids), prompt.text


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_ids_are_what_the_tokenizer_itself_gives_for_the_text(template):
    bos = LLAMA.convert_tokens_to_ids(BOS)
    for tokenizer, num_bos in ((LLAMA, 1), (LLAMA_2, 1), (QWEN, 0), (UNUSED, 0)):
        ids, text = ids_of(tokenizer, template)
        assert ids == tokenizer(text)["input_ids"]
        assert ids.count(bos) == num_bos


def test_a_prompt_has_no_eos_where_the_tokenizer_ends_texts_with_one():
    ids, text = ids_of(WITH_EOS, "none")
    assert ids == WITH_EOS(text)["input_ids"][:-1]


@pytest.mark.parametrize("tokenizer", [LLAMA, LLAMA_2, UNUSED])
def test_a_chat_template_that_writes_the_bos_gets_no_second_one(tokenizer):
    tokenizer.chat_template = "{{ bos_token }}{% for turn in messages %}{{ turn.content }}{% endfor %}"
    ids, text = ids_of(tokenizer, "chat")
    assert text.startswith(BOS)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_chat_template_that_raises_is_told_with_its_problem():
    LLAMA.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(
        ValueError, match=r"^1: the tokenizer's chat template does not write it \(TemplateError: no such"
    ):
        ids_of(LLAMA, "chat")


def test_an_example_of_the_warm_start_begins_as_a_prompt_of_ppo_does(tmp_path):
    (tmp_path / "sft.jsonl").write_text('{"question": "How many?", "response": "1"}\n')
    options = {"trailing_newline": True, "max_tokens": 500, "overlong": "error"}
    (example,), _ = load_sft(tmp_path / "sft.jsonl", LLAMA, "abel", **options)
    assert list(example.prompt_ids) == ids_of(LLAMA, "abel")[0]
    assert LLAMA.convert_ids_to_tokens(example.response_ids) == ["1", EOS]
