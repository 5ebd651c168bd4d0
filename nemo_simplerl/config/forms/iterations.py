"""Folders of Megatron's checkpoints by iteration: `iter_0000100/` or `release/`, and a file that names the last one."""

import re
from pathlib import Path
from typing import Any

from nemo_simplerl.config.forms.description import read_json, read_small
from nemo_simplerl.config.forms.pickles import MAX_PICKLE, fields_of_pickle, fields_of_torch_file

TRACKER = "latest_checkpointed_iteration.txt"
RUN_CONFIG = "run_config.yaml"
TRAIN_STATE = "train_state.pt"
RELEASE = "release"
_COMMON, _INDEX, _KIND = "common.pt", ".metadata", "metadata.json"
_COMMON_KEY = "common_state/shard_0_1"  # in place of common.pt from Megatron-core 0.19 on
_ITERATION = re.compile(r"iter_(\d+)")
_EMBEDDING = "embedding.word_embeddings.weight"


def is_iteration(path: Path) -> bool:
    """Whether `path` is the folder of one iteration, or a part of one."""
    names = (RUN_CONFIG, TRAIN_STATE, _INDEX)
    return any((path / name).is_file() for name in names) or any(path.glob("*.distcp")) or bool(_rank_files(path))


def holds_iterations(path: Path) -> bool:
    """Whether `path` is a folder of iterations, or what is left of one."""
    return bool(_iterations(path)) or (path / TRACKER).is_file()


def iteration_of(path: Path) -> Path:
    """The folder of the iteration that `path` stands for: itself, or the last one of those in it.

    Raises ValueError where the last one cannot be told, or is not there.
    """
    if is_iteration(path):
        return path
    found = _iterations(path)
    tracker = path / TRACKER
    if not tracker.is_file():
        if len(found) == 1:
            return next(iter(found.values()))
        if not found:
            raise ValueError(f"{path} holds no iteration of a checkpoint (iter_N or {RELEASE}).")
        raise ValueError(
            f"{path} lacks {TRACKER} and holds {', '.join(folder.name for folder in found.values())}; give one of them."
        )
    named = read_small(tracker, 1 << 10).decode(errors="replace").strip()
    key = named if named == RELEASE else int(named) if named.isdecimal() else None
    if key not in found:
        raise ValueError(f"{path} is incomplete: {TRACKER} names {named!r}, and no folder of that iteration is there.")
    later = [folder.name for number, folder in found.items() if isinstance(number, int) and number > _number(key)]
    if later:
        raise ValueError(
            f"{path}: {TRACKER} names {found[key].name}, and {', '.join(later)} is there too: Megatron-LM would take "
            f"the first, Megatron-Bridge the last; give the folder of one, such as {found[key]}."
        )
    return found[key]


def check_torch_dist(folder: Path) -> None:
    """Raise ValueError, with the kind that it is, where an iteration is no `torch_dist` checkpoint."""
    if ranks := _rank_files(folder):
        raise ValueError(
            f"{folder} is a checkpoint of ckpt-format torch ({ranks[0].parent.name}), which is not read; "
            "Megatron-LM turns it into torch_dist: --ckpt-convert-format torch_dist."
        )
    if not (folder / _INDEX).is_file():
        inner = folder / "hf"
        hint = f"; its weights are in Hugging Face's form: give {inner}" if inner.is_dir() else ""
        raise ValueError(f"{folder} lacks {_INDEX}: the checkpoint is incomplete or of another kind{hint}.")
    if not (folder / _KIND).is_file():
        raise ValueError(
            f"{folder} lacks {_KIND}: it is incomplete, or of ckpt-format torch_dcp or fsdp_dtensor, which are not "
            "read; save it as torch_dist."
        )
    kind = read_json(folder / _KIND).get("sharded_backend")
    if kind != "torch_dist":
        raise ValueError(f"{folder} is a checkpoint of kind {kind!r}, which is not read; save it as torch_dist.")


def common_state(folder: Path) -> dict[str, Any]:
    """What all ranks of a `torch_dist` checkpoint have in common, as plain values; empty where it holds none.

    Objects become `pickles.Inert`. Raises ValueError for a damaged file, and for a pickle that asks for code.
    """
    if (folder / _COMMON).is_file():
        content, where = read_small(folder / _COMMON, MAX_PICKLE), str(folder / _COMMON)
        state = fields_of_torch_file(content, where)
    else:
        storage = _part(_index(folder), "storage_data")
        infos = [info for place, info in storage.items() if _fields(place).get("fqn") == _COMMON_KEY]
        if not infos:
            return {}
        state = _object_at(folder, _fields(infos[0]))
        state = state[0] if isinstance(state, list) and state else state
    return state if isinstance(state, dict) else {}


def embedding_rows(folder: Path) -> int | None:
    """Rows of the embeddings by the index of a `torch_dist` checkpoint, with those that pad the vocabulary."""
    for key, entry in _part(_index(folder), "state_dict_metadata").items():
        size = _fields(entry).get("size")
        if str(key).removeprefix("model.").removeprefix("module.") == _EMBEDDING and isinstance(size, tuple) and size:
            return size[0] if type(size[0]) is int else None
    return None


def _index(folder: Path) -> Any:
    return fields_of_pickle(read_small(folder / _INDEX, MAX_PICKLE), str(folder / _INDEX))


def _object_at(folder: Path, info: dict[str, Any]) -> Any:
    """The object of a record of a `.distcp` file. Raises ValueError where the file or the record is not there."""
    name, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
    if not (isinstance(name, str) and Path(name).name == name and type(start) is type(length) is int):
        raise ValueError(f"{folder / _INDEX} is damaged: it does not say where {_COMMON_KEY} lies.")
    if not 0 <= length <= MAX_PICKLE or start < 0:
        raise ValueError(f"{folder / name}: {_COMMON_KEY} would have {length} bytes, more than any needs.")
    try:
        with open(folder / name, "rb") as file:
            file.seek(start)
            content = file.read(length)
    except OSError as error:
        raise ValueError(f"{folder / name}, which holds {_COMMON_KEY}, could not be read: {error.strerror}.") from error
    return fields_of_torch_file(content, f"{folder / name}:{_COMMON_KEY}")


def _part(index: Any, name: str) -> dict[Any, Any]:
    """One of the dicts of an index."""
    found = _fields(index).get(name)
    return found if isinstance(found, dict) else {}


def _fields(value: Any) -> dict[str, Any]:
    """The attributes that a pickled object had."""
    state = getattr(value, "state", None)
    return state if isinstance(state, dict) else {}


def _iterations(path: Path) -> dict[int | str, Path]:
    """The folders of iterations by number, in order; `release` by its name."""
    folders = {int(match[1]): folder for folder in path.glob("iter_*") if (match := _ITERATION.fullmatch(folder.name))}
    found: dict[int | str, Path] = {number: folders[number] for number in sorted(folders) if folders[number].is_dir()}
    return found | ({RELEASE: path / RELEASE} if (path / RELEASE).is_dir() else {})


def _rank_files(folder: Path) -> list[Path]:
    """The files of Megatron-LM's older kind of checkpoint, one a model-parallel rank."""
    return sorted(folder.glob("mp_rank_*/model_optim_rng.pt"))


def _number(key: Any) -> int:
    return key if isinstance(key, int) else -1
