"""The Hugging Face tokenizer of a GGUF file, made of the tokens and merges in its header.

How a text is cut before merges stands in no GGUF file, only a name for it, `tokenizer.ggml.pre`. The table below gives
the steps that the original tokenizer.json of these models has; a name outside it is refused, since a guess would give
other tokens for digits or blanks than the model was trained on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_simplerl.model.readers.small_files import GENERATION

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # values of token_type
# Key of tokenizer_config.json: key of the header. Further ids that end a response go to generation_config.json.
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_MORE_ENDS = ("eot", "eom")
_DIGITS = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True)
class _Pre:
    """Steps before the merges of a byte-level BPE. split: of a pattern; None: GPT-2's, which ByteLevel has built in."""

    split: str | None = None
    single_digits: bool = False
    normalizer: str | None = None
    whole_words: bool = False  # a word that is a token is not merged
    bos: bool = False  # where the file does not say whether a text begins with one


def _words(digits: str) -> str:
    """The pattern of GPT-4's kind, with so many digits in one piece."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_QWEN2 = _Pre(split=_words(r"\p{N}"), normalizer="NFC")
_LLAMA3 = _Pre(split=_words(r"\p{N}{1,3}"), whole_words=True, bos=True)
_SMOLLM = _Pre(single_digits=True)
_PRE = {
    "gpt-2": _Pre(),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _SMOLLM),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2),
}


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and, where several ids end a response, generation_config.json.

    Raises ValueError for a tokenizer that cannot be rebuilt, with what it is.
    """
    pre = _pre_of(metadata)
    tokens = _list_of_texts(metadata, "tokens")
    kinds = metadata.get(f"{_KEY}token_type", [])
    if len(set(tokens)) < len(tokens) or len(kinds) != len(tokens):
        raise ValueError(f"its {len(tokens)} tokens are not distinct, or it has {len(kinds)} token_type for them")
    ids = {name: _id(metadata, f"{key}_token_id", tokens) for name, key in _SPECIAL.items()}
    special = {name: index for name, index in ids.items() if index is not None}
    files = {
        "tokenizer.json": _tokenizer(pre, tokens, kinds, metadata, special),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{name: tokens[index] for name, index in special.items()},
            **_chat_template(metadata),
        },
    }
    ends = [special.get("eos_token"), *(_id(metadata, f"{name}_token_id", tokens) for name in _MORE_ENDS)]
    named = list(dict.fromkeys(index for index in ends if index is not None))
    if len(named) > 1:
        files[GENERATION] = {"eos_token_id": named}
    return {name: (json.dumps(content, ensure_ascii=False) + "\n").encode() for name, content in files.items()}


def _pre_of(metadata: Mapping[str, Any]) -> _Pre:
    kind, name = metadata.get(f"{_KEY}model"), metadata.get(f"{_KEY}pre")
    if kind is None:
        raise ValueError("it holds no tokenizer")
    if kind != "gpt2":
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; only a byte-level BPE ('gpt2') is rebuilt")
    if not isinstance(name, str) or name not in _PRE:
        raise ValueError(f"tokenizer.ggml.pre is {name!r}, whose steps are not known; known: {', '.join(_PRE)}")
    return _PRE[name]


def _tokenizer(
    pre: _Pre, tokens: list[str], kinds: list[int], metadata: Mapping[str, Any], special: Mapping[str, int]
) -> dict[str, Any]:
    """The content of tokenizer.json."""
    # A converter gives the rows of a padded vocabulary tokens of their own, which the original does not have.
    vocab = {token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}
    added = [index for index, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)]
    prefix_space = bool(metadata.get(f"{_KEY}add_space_prefix", False))
    byte_level = {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True}
    steps: list[dict[str, Any]] = [_DIGITS] if pre.single_digits else []
    if pre.split is not None:
        steps.append({"type": "Split", "pattern": {"Regex": pre.split}, "behavior": "Isolated", "invert": False})
    steps.append(byte_level | {"use_regex": pre.split is None})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": tokens[index], "special": kinds[index] == _CONTROL}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for index in added
        ],
        "normalizer": pre.normalizer and {"type": pre.normalizer},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _post_processor(pre, tokens, metadata, special),
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.whole_words,
            "vocab": vocab,
            "merges": _merges(metadata, vocab),
        },
    }


def _merges(metadata: Mapping[str, Any], vocab: Mapping[str, int]) -> list[list[str]]:
    merges = [merge.split(" ") for merge in _list_of_texts(metadata, "merges")]
    for parts in merges:
        if len(parts) != 2 or not {*parts, "".join(parts)} <= vocab.keys():
            raise ValueError(f"its merge {' '.join(parts)!r} joins no two tokens to a third")
    return merges


def _post_processor(
    pre: _Pre, tokens: list[str], metadata: Mapping[str, Any], special: Mapping[str, int]
) -> dict[str, Any] | None:
    """What puts BOS in front of a text and EOS behind it, where the model's tokenizer does."""
    adds = {
        "bos_token": metadata.get(f"{_KEY}add_bos_token", pre.bos),
        "eos_token": metadata.get(f"{_KEY}add_eos_token", False),
    }
    used = {name: special[name] for name, is_added in adds.items() if is_added and name in special}
    if not used:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        named = {name: {"SpecialToken": {"id": tokens[index], "type_id": type_id}} for name, index in used.items()}
        parts = [named.get("bos_token"), {"Sequence": {"id": sequence, "type_id": type_id}}, named.get("eos_token")]
        return [part for part in parts if part]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]} for index in used.values()
        },
    }


def _chat_template(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The key chat_template of tokenizer_config.json: a text, or several by name; nothing where the file has none."""
    first = "tokenizer.chat_template"
    named = {key.removeprefix(f"{first}."): text for key, text in metadata.items() if key.startswith(f"{first}.")}
    if not named:
        return {"chat_template": metadata[first]} if first in metadata else {}
    named = ({"default": metadata[first]} if first in metadata else {}) | named
    return {"chat_template": [{"name": name, "template": text} for name, text in named.items()]}


def _list_of_texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    texts = metadata.get(_KEY + key)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_KEY}{key} is missing or no list of texts")
    return texts


def _id(metadata: Mapping[str, Any], key: str, tokens: list[str]) -> int | None:
    index = metadata.get(_KEY + key)
    if index is not None and (type(index) is not int or not 0 <= index < len(tokens)):
        raise ValueError(f"{_KEY}{key} is {index!r}, no id of its {len(tokens)} tokens")
    return index
