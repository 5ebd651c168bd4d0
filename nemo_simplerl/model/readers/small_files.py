"""Files beside a model's weights: config.json, generation_config.json, the tokenizer's and its chat templates.

Every form that is written carries them, so that what users rely on (which ids end a response, how a chat is written)
is not lost on the way.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from nemo_simplerl.config.families import check_hf_config
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.user_files import refuse_pointer

_MAX_BYTES = 256 << 20
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tekken.json",
)
GENERATION = "generation_config.json"
_MORE_TEMPLATES = "additional_chat_templates"  # a folder of named ones, NAME.jinja


def top_files(folder: Path) -> dict[str, Extent]:
    """The files of a Hugging Face folder by name, without those of its folders but for named chat templates.

    Files may be links into a hub's cache.

    Raises ValueError where there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give a Hugging Face model folder.")
    paths = [*sorted(folder.iterdir()), *sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))]
    files = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    return {name: Extent(path, 0, path.stat().st_size) for name, path in files.items()}


def small_files(files: Mapping[str, Extent]) -> dict[str, Extent]:
    """The files that go with the weights; not code, adapters and whatever else lies there."""
    names = [name for name in ("config.json", GENERATION) if name in files]
    names += [name for name in files if is_tokenizer_file(name)]
    return {name: bounded(files[name], name) for name in names}


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model folder, by its name there, belongs to the tokenizer: chat templates do."""
    folder, _, inner = name.rpartition("/")
    return name in _TOKENIZER_FILES or (folder == _MORE_TEMPLATES and inner.endswith(".jinja"))


def tokenizer_files(folder: Path) -> tuple[dict[str, Extent], dict]:
    """Tokenizer files of a Hugging Face folder by name, and its config.json (empty where it has none)."""
    files = small_files(top_files(folder))
    config = _read_json(files["config.json"], folder / "config.json") if "config.json" in files else {}
    return {name: file for name, file in files.items() if is_tokenizer_file(name)}, config


def generation_config(files: Mapping[str, Extent], where: object) -> dict:
    """The generation_config.json among `files`; empty where there is none. Raises ValueError where it is damaged."""
    return _read_json(files[GENERATION], f"{where}: {GENERATION}") if GENERATION in files else {}


def end_ids(folder: Path) -> tuple[int, ...]:
    """The ids that end a response by the files of a model folder, none where they name none.

    As for transformers and vLLM, generation_config.json goes before config.json: an instruct model lists its end of
    turn there, often nowhere else. Raises ValueError for ids that the model does not have.
    """
    files = small_files(top_files(folder))
    config = _read_json(files["config.json"], folder / "config.json") if "config.json" in files else {}
    name = GENERATION if GENERATION in files else "config.json"
    given = (generation_config(files, folder) if GENERATION in files else config).get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    size = config.get("vocab_size", 0)
    if wrong := [index for index in ids if type(index) is not int or not 0 <= index < size]:
        raise ValueError(
            f"{folder / name}: eos_token_id names {wrong[0]!r}, which is no id of a vocabulary of {size}; correct it, "
            "or say with rollout.stop_token_ids which ids end a response."
        )
    return tuple(ids)


def write_files(folder: Path, files: Mapping[str, bytes | Extent]) -> None:
    """Write files by name into `folder`, which need not exist."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.read() if isinstance(content, Extent) else content)


def read_config(file: Extent, where: object) -> dict:
    """A config.json that the training model honours, in the form of transformers 4, whichever version wrote it.

    Raises one ValueError that lists what would not be honoured.
    """
    return check_hf_config(_read_json(file, where), where)


def bounded(file: Extent, where: object) -> Extent:
    """The file itself. Raises ValueError where it is too large to be read whole, or a pointer of git-lfs."""
    if file.size > _MAX_BYTES:
        raise ValueError(f"{where} has {file.size} bytes, which no config and no tokenizer needs.")
    refuse_pointer(file.head(), file.path)
    return file


def _read_json(file: Extent, where: object) -> dict:
    """The object in a JSON file. Raises ValueError for anything else."""
    try:
        content = json.loads(bounded(file, where).read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds no JSON object; fetch the model again.")
    return content
