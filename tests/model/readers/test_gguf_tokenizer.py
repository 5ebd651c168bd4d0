"""Tokenizers rebuilt from a GGUF file's tokens, against those that the models' original files make."""

import json

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from nemo_simplerl.data.tokenizer import load_tokenizer
from nemo_simplerl.model.readers.gguf_tokenizer import tokenizer_files
from nemo_simplerl.model.readers.small_files import write_files

TEXT = "Add 12345 and 1234:\n\n  it's 13,023.  e\u0301 \xe9 <|turn|>IT'S\t12 ab\n"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<|end|>", "<|turn|>", "<tool>"]
# Merges that tell how digits, blanks, contractions and letters with marks were cut.
MERGES = ["1 2", "12 3", "123 4", "Ġ 1", "Ġ a", "Ġa b", "' s", "Ċ Ċ", "Ġ Ġ", "a b", "Ã ©", "I T"]
TOKENS = [*SPECIAL, *ALPHABET, *(merge.replace(" ", "") for merge in MERGES), "it's", "unused"]
METADATA = {
    "model": "gpt2",
    "tokens": TOKENS,
    "token_type": [3, 3, 4] + [1] * (len(TOKENS) - 4) + [5],
    "merges": MERGES,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "padding_token_id": 0,
    "add_bos_token": False,
}
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def split(digits: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(CONTRACTIONS + digits + REST), behavior="isolated")


# Name: the steps of tokenizer.json of SmolLM2, GPT-2, Llama 3 and Qwen2.5.
ORIGINALS = {
    "smollm": [DIGITS, GPT2],
    "gpt-2": [GPT2],
    "llama-bpe": [split(r"\p{N}{1,3}"), BYTES],
    "qwen2": [split(r"\p{N}"), BYTES],
}


def metadata(**changes) -> dict:
    return {f"tokenizer.ggml.{key}": value for key, value in (METADATA | changes).items() if value is not None}


def original(pre: str) -> Tokenizer:
    """The tokenizer as the model's own tokenizer.json makes it."""
    vocab = {token: index for index, token in enumerate(TOKENS[:-1])}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(ORIGINALS[pre])
    if pre == "qwen2":
        raw.normalizer = normalizers.NFC()
    raw.add_special_tokens(SPECIAL[:2])
    raw.add_tokens(SPECIAL[2:])
    return raw


@pytest.mark.parametrize("pre", ORIGINALS)
def test_ids_and_special_tokens_are_those_of_the_models_own_file(tmp_path, pre):
    write_files(tmp_path, tokenizer_files(metadata(pre=pre)))
    loaded = load_tokenizer(tmp_path)
    expected = original(pre).encode(TEXT, add_special_tokens=False).ids
    assert loaded.encode(TEXT, add_special_tokens=False) == loaded.encode(TEXT) == expected
    assert loaded.decode(expected) == (TEXT.replace("e\u0301", "\xe9") if pre == "qwen2" else TEXT)
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|turn|>", "<|end|>", "<|end|>")
    assert loaded.decode(loaded.encode("ab<|turn|><tool>"), skip_special_tokens=True) == "ab<tool>"
    assert "unused" not in loaded.get_vocab()


def test_the_four_ways_to_cut_a_text_differ():
    cuts = {pre: tuple(original(pre).encode(TEXT).ids) for pre in ORIGINALS}
    assert len(set(cuts.values())) == len(ORIGINALS)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"pre": "llama-bpe", "add_bos_token": None}, True),
        ({"pre": "llama-bpe"}, False),
        ({"pre": "qwen2", "add_bos_token": None}, False),
        ({"pre": "smollm", "add_bos_token": True}, True),
    ],
)
def test_a_text_begins_with_bos_where_the_file_or_its_models_say_so(tmp_path, changes, begins):
    write_files(tmp_path, tokenizer_files(metadata(**changes)))
    ids = load_tokenizer(tmp_path)("ab").input_ids
    assert ids == [1] * begins + [TOKENS.index("ab")]


def test_further_ends_of_a_response_and_chat_templates_are_kept():
    more = {"tokenizer.chat_template": "turns", "tokenizer.chat_template.tool": "tools"}
    files = tokenizer_files(metadata(pre="llama-bpe", eot_token_id=1, eom_token_id=0) | more)
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [0, 1]}
    assert [entry["template"] for entry in json.loads(files["tokenizer_config.json"])["chat_template"]] == [
        "turns",
        "tools",
    ]
    assert "generation_config.json" not in tokenizer_files(metadata(pre="qwen2"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "default"}, r"tokenizer\.ggml\.pre is 'default', whose steps are not known; known: gpt-2"),
        ({"pre": None}, r"pre is None"),
        ({"model": "llama"}, r"tokenizer\.ggml\.model is 'llama'; only a byte-level BPE"),
        ({"model": None}, "holds no tokenizer"),
        ({"pre": "qwen2", "merges": None}, r"tokenizer\.ggml\.merges is missing"),
        ({"pre": "qwen2", "merges": ["1 2 3"]}, "its merge '1 2 3' joins no two tokens"),
        ({"pre": "qwen2", "merges": ["1 ab"]}, "its merge '1 ab' joins no two tokens"),
        ({"pre": "qwen2", "token_type": [1]}, "has 1 token_type for them"),
        ({"pre": "qwen2", "tokens": ["a"] * len(TOKENS)}, "tokens are not distinct"),
        ({"pre": "qwen2", "eos_token_id": 5000}, r"eos_token_id is 5000, no id of its \d+ tokens"),
    ],
)
def test_what_cannot_be_rebuilt_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_files(metadata(**changes))
