"""Tokenizers of folders that either version of transformers wrote, against tokenizer.json itself."""

import codecs
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from nemo_simplerl.data.tokenizer import build_tokenizer, load_tokenizer

WRITTEN = Path(__file__).parents[1] / "model/readers/folders"
TEXT = "Add 12345 and 678:\n\n  it's 13,023.  é<|im_end|>\n"


@pytest.fixture(scope="module")
def core(tmp_path_factory) -> Tokenizer:
    """The tokenizer that a run makes."""
    folder = tmp_path_factory.mktemp("core")
    build_tokenizer(["Ann has 12 apples. Ann finds 7 more."] * 20, 300, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def byte_level(*steps) -> Tokenizer:
    """Bytes and a merge of two digits and of a blank before a letter, and the special tokens <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "12", "Ġi"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("1", "2"), ("Ġ", "i")]))
    raw.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>"])
    return raw


def folder_of(folder: Path, raw: Tokenizer, **config) -> Path:
    raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("version", ["4", "5"])
def test_either_versions_folder_gives_the_ids_and_special_tokens_of_its_file(tmp_path, core, version):
    folder_of(tmp_path, core)
    written = WRITTEN / f"transformers-{version}/tokenizer_config.json"
    (tmp_path / "tokenizer_config.json").write_bytes(written.read_bytes())
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXT, add_special_tokens=False) == core.encode(TEXT, add_special_tokens=False).ids
    assert (loaded.eos_token, loaded.pad_token) == ("<|endoftext|>", "<|endoftext|>")
    assert {"<|im_start|>", "<|im_end|>"} <= set(loaded.all_special_tokens)
    assert loaded.decode(loaded.encode("12<|im_end|>"), skip_special_tokens=True) == "12"
    assert len(loaded.get_vocab()) == core.get_vocab_size()


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "GPT2Tokenizer", "LlamaTokenizerFast", "TokenizersBackend"])
def test_the_class_that_is_named_changes_nothing_of_how_the_file_splits(tmp_path, name):
    raw = byte_level(pre_tokenizers.Digits(individual_digits=True))
    folder_of(tmp_path, raw, tokenizer_class=name, eos_token="</s>", bos_token="<s>")
    expected = raw.encode(TEXT, add_special_tokens=False).ids
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(TEXT, add_special_tokens=False) == expected and raw.token_to_id("12") not in expected
    assert loaded.decode(expected) == TEXT


@pytest.mark.parametrize(
    ("config", "post_processor", "begins"),
    [
        ({"tokenizer_class": "LlamaTokenizerFast"}, False, True),  # the class's own default
        ({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True}, False, True),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, True, False),
        ({"tokenizer_class": "CodeLlamaTokenizer"}, False, True),
        ({"tokenizer_class": "GemmaTokenizerFast", "add_bos_token": False}, True, False),
        ({"tokenizer_class": "LlamaTokenizer", "backend": "tokenizers"}, False, False),  # of version 5
        ({"tokenizer_class": "TokenizersBackend"}, True, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}, False, False),
    ],
)
def test_a_text_begins_with_bos_where_its_own_transformers_puts_one(tmp_path, config, post_processor, begins):
    raw = byte_level()
    if post_processor:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    loaded = load_tokenizer(folder_of(tmp_path, raw, eos_token="</s>", bos_token="<s>", **config))
    assert loaded("it").input_ids.count(loaded.bos_token_id) == int(begins)
    assert loaded("it", add_special_tokens=False).input_ids == raw.encode("it", add_special_tokens=False).ids


def test_special_tokens_are_found_in_the_older_file_and_as_objects(tmp_path):
    folder_of(tmp_path, byte_level(), eos_token={"content": "</s>", "lstrip": False, "__type": "AddedToken"})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>", "rstrip": False}}))
    loaded = load_tokenizer(tmp_path)
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")


def test_chat_templates_are_found_in_all_their_places(tmp_path):
    folder = folder_of(tmp_path, byte_level(), eos_token="</s>", chat_template="old")
    assert load_tokenizer(folder).chat_template == "old"
    (folder / "chat_template.jinja").write_text("new")
    assert load_tokenizer(folder).chat_template == "new"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool.jinja").write_text("tool")
    assert load_tokenizer(folder).chat_template == {"default": "new", "tool": "tool"}
    named = [{"name": "default", "template": "a"}, {"name": "rag", "template": "b"}]
    (tmp_path / "two").mkdir()
    two = folder_of(tmp_path / "two", byte_level(), eos_token="</s>", chat_template=named)
    assert load_tokenizer(two).chat_template == {"default": "a", "rag": "b"}


def test_what_notepad_adds_to_the_files_of_a_folder_stands_in_no_prompt(tmp_path):
    folder = folder_of(tmp_path, byte_level(), eos_token="</s>")
    for name, text in (("chat_template.jinja", "a\nb"), ("tokenizer_config.json", '{"eos_token": "</s>"}')):
        (folder / name).write_bytes(codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode())
    assert load_tokenizer(folder).chat_template == "a\nb"


def test_a_config_that_changes_the_files_ids_is_refused_with_what_to_do(tmp_path):
    added = {"260": {"content": "apples", "special": False}}
    folder_of(tmp_path, byte_level(), eos_token="</s>", added_tokens_decoder=added)
    with pytest.raises(ValueError, match=r"other ids than tokenizer\.json .* remove what tokenizer_config\.json adds"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be loaded: tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_added_token_that_gets_another_id_than_its_file_says_is_refused(tmp_path, core):
    size = core.get_vocab_size()
    token = {"content": "<|tool|>", "special": True}
    folder_of(tmp_path, core, added_tokens_decoder={str(size + 30): token})
    with pytest.raises(ValueError, match=rf"'<\|tool\|>' has id {size} and not {size + 30}"):
        load_tokenizer(tmp_path)
    folder_of(tmp_path, core, eos_token="<|endoftext|>", added_tokens_decoder={str(size): token})
    assert load_tokenizer(tmp_path).convert_tokens_to_ids("<|tool|>") == size
