"""A tokenizer from the files of a folder, the same under transformers 4 and 5.

tokenizer.json is the tokenizer: how texts become ids stands there. AutoTokenizer of version 5 may take another split
from the name of a class (Qwen2's for any Qwen2Tokenizer, so that digits or spaces are lost), and that of version 4
fails at the tokenizer_config.json of version 5. So the file is loaded as it is, and the ids of a probe are compared.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nemo_simplerl.user_files import read_text

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_PASSED_ON = ("clean_up_tokenization_spaces", "model_max_length", "padding_side", "split_special_tokens")
# Their BOS is put in front by add_bos_token, true where it is absent, and not by tokenizer.json alone.
_LLAMA_CLASSES = tuple(
    f"{name}Tokenizer{ending}" for name in ("Llama", "CodeLlama", "Gemma", "Cohere") for ending in ("", "Fast")
)
_PROBE = "12 + 3.50 = 1234567 apples,  don't we'LL\n\n\tf(x) = \\frac{1}{2}x^2 é 猫 \U0001f600\n"


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder that holds tokenizer.json, or whatever AutoTokenizer makes of its other files.

    Raises ValueError for files that make none, and where the installed transformers changes what tokenizer.json says.
    """
    if not (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    config = _read(folder / "tokenizer_config.json")
    older = _read(folder / "special_tokens_map.json")  # beside tokenizer_config.json, by version 4 alone
    config |= {name: value for name, value in older.items() if config.get(name) is None}
    try:
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"tokenizer.json: {error}") from error
    _set_bos(raw, config)
    added = config.get("added_tokens_decoder") or {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        chat_template=_chat_template(folder, config),
        additional_special_tokens=_additional(config),
        added_tokens_decoder={int(index): _token(token) for index, token in added.items()},
        add_prefix_space=_adds_prefix_space(raw),
        **{name: _token(config[name]) for name in _NAMED if config.get(name) is not None},
        **{name: config[name] for name in _PASSED_ON if config.get(name) is not None},
    )
    _check_added(tokenizer, added)
    _check_ids(tokenizer, raw)
    return tokenizer


def _check_added(tokenizer: PreTrainedTokenizerBase, added: Mapping[str, Any]) -> None:
    """Raise ValueError where a token of added_tokens_decoder has another id than is written there."""
    named = {int(index): str(_token(token)) for index, token in added.items()}
    found = {index: tokenizer.convert_tokens_to_ids(name) for index, name in named.items()}
    if moved := [f"{named[index]!r} has id {own} and not {index}" for index, own in found.items() if own != index]:
        raise ValueError(
            f"added_tokens_decoder of tokenizer_config.json and tokenizer.json disagree: {'; '.join(moved[:5])}"
            f"{f' and {len(moved) - 5} more' if len(moved) > 5 else ''}; bring both files of the same model"
        )


def _check_ids(tokenizer: PreTrainedTokenizerBase, raw: Tokenizer) -> None:
    """Raise ValueError where the ids of the probe are not those of tokenizer.json."""
    raw.no_truncation()
    raw.no_padding()
    for special in (False, True):
        expected = raw.encode(_PROBE, add_special_tokens=special).ids
        if tokenizer.encode(_PROBE, add_special_tokens=special) != expected:
            import transformers

            raise ValueError(
                f"transformers {transformers.__version__} gives other ids than tokenizer.json for a text of digits "
                "and blanks; remove what tokenizer_config.json adds to it (added_tokens_decoder, special tokens), or "
                "install another version"
            )


def _set_bos(raw: Tokenizer, config: dict[str, Any]) -> None:
    """Let the tokenizer begin and end texts as Llama's classes do by their settings; others follow tokenizer.json."""
    if config.get("tokenizer_class") not in _LLAMA_CLASSES:
        return
    is_new = "backend" in config  # written by transformers 5, which keeps the settings in tokenizer.json alone
    has_own = isinstance(raw.post_processor, processors.TemplateProcessing)
    if "add_bos_token" not in config and (is_new or has_own):
        return
    adds = {"bos_token": config.get("add_bos_token", True), "eos_token": config.get("add_eos_token", False)}
    found = {name: str(_token(config[name])) if config.get(name) else None for name in adds}
    ids = {name: raw.token_to_id(token) for name, token in found.items() if token and adds[name]}
    used = {name: index for name, index in ids.items() if index is not None}
    bos, eos = (f"{found[name]}" if name in used else "" for name in adds)
    raw.post_processor = processors.TemplateProcessing(
        single=[part for part in (bos, "$A", eos) if part],
        pair=[part for part in (bos, "$A", eos, bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if part],
        special_tokens=[(str(found[name]), index) for name, index in used.items()],
    )


def _additional(config: dict[str, Any]) -> list[AddedToken | str]:
    """Further special tokens: version 4's list, and version 5's list or version 4's names under another key."""
    extra = config.get("extra_special_tokens") or []
    listed = [*(config.get("additional_special_tokens") or []), *(extra.values() if isinstance(extra, dict) else extra)]
    return list({str(token): token for token in map(_token, listed)}.values())


def _chat_template(folder: Path, config: dict[str, Any]) -> str | dict[str, str] | None:
    """The chat template, or several by name. Files go before what tokenizer_config.json holds."""
    given = config.get("chat_template")
    named = {entry["name"]: entry["template"] for entry in given} if isinstance(given, list) else {}
    if isinstance(given, str):
        named = {"default": given}
    if (folder / "chat_template.jinja").is_file():
        named["default"] = _template(folder / "chat_template.jinja")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[file.stem] = _template(file)
    return named.get("default") if named.keys() <= {"default"} else named


def _template(file: Path) -> str:
    """A template's text: a byte order mark and Windows' ends of line would stand in every prompt."""
    return read_text(file).replace("\r\n", "\n")


def _adds_prefix_space(raw: Tokenizer) -> bool:
    """What tokenizer.json says of the space before a text: transformers would change it to what it is told."""
    step = raw.pre_tokenizer
    return False if step is None else bool(json.loads(step.__getstate__()).get("add_prefix_space", False))


def _token(value: Any) -> AddedToken | str:
    """A special token as its file holds it: a string, or the fields of an AddedToken."""
    if not isinstance(value, dict):
        return str(value)
    return AddedToken(**{key: entry for key, entry in value.items() if key != "__type"})


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Raises ValueError for anything else."""
    try:
        content = json.loads(read_text(file)) if file.is_file() else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no JSON object")
    return content
