"""Conversion between the forms of model files, a tensor at a time."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nemo_simplerl.config.forms.folder import FORMS
from nemo_simplerl.files import synced_beside
from nemo_simplerl.model.conversion import megatron_writers, nemo_writer
from nemo_simplerl.model.conversion.nemo_writer import folder_writer
from nemo_simplerl.model.formats import safetensors_io
from nemo_simplerl.model.formats.archive import Extent, TarWriter
from nemo_simplerl.model.formats.nemo_config import nemo_config
from nemo_simplerl.model.formats.safetensors_io import Spec
from nemo_simplerl.model.hf_map import hf_tensors
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.model.readers.huggingface import config_to_write, hf_specs
from nemo_simplerl.model.readers.small_files import (
    GENERATION,
    generation_config,
    tokenizer_files,
    top_files,
    write_files,
)

_OVERHEAD = 1.01  # records, padding, headers
_SLACK = 32 << 20


@dataclass(frozen=True)
class Target:
    """The form and place to write to. dtype None keeps each tensor's own; `tokenizer` is a folder that replaces the
    source's tokenizer files."""

    kind: str  # a key of model.source.READERS, but for gguf
    path: Path
    dtype: torch.dtype | None = None
    shard_bytes: int = 4_000_000_000
    tokenizer: Path | None = None


def convert(source: Source, target: Target, progress: Callable[[int, int], None]) -> None:
    """Write `source` as `target`, which appears under its name when it is complete and on disk, or not at all.

    progress: called with the bytes done and the bytes in all, after each tensor.
    Raises ValueError, before anything is written, where the target exists, the disk is too small, the tokenizer does
    not fit the vocabulary, or the form cannot hold the model.
    """
    small = small_files_of(source, tokenizer=target.tokenizer, dtype=target.dtype)
    specs = {name: _cast(spec, target.dtype) for name, spec in source.specs.items()}
    total = sum(spec.num_bytes for spec in specs.values())
    check_target(target.path, int(total * _OVERHEAD) + _SLACK)
    root = source.path.parent if source.kind == "checkpoint" else source.path
    if Path(os.path.realpath(target.path)).is_relative_to(os.path.realpath(root)):
        raise ValueError(f"{target.path} lies inside {root}, which is read; choose a place outside.")

    def tensors() -> Iterator[tuple[str, Tensor]]:
        done = 0
        for name, tensor in _read_ahead(source):
            yield name, tensor.to(specs[name].dtype)
            done += specs[name].num_bytes
            progress(done, total)

    if target.kind == "hf":
        _write_hf(source, target, specs, tensors(), small)
    elif target.kind in FORMS:
        dtype = next(iter(specs.values())).dtype
        model = megatron_writers.Writing(source.hf, dtype, source.is_critic, small, target.path.absolute())
        write = megatron_writers.writer_of(target.kind, model)
        with atomic_output(target.path) as partial:
            write(folder_writer(partial), tensors())
    else:
        _write_nemo(source, target, specs, tensors(), small)


def check_target(path: Path, num_bytes: int) -> None:
    """Raise ValueError where `path` exists, or cannot be made, or its disk has not `num_bytes` left."""
    if os.path.lexists(path):
        raise ValueError(f"{path} exists; choose another name or remove it.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK) or not folder.is_dir():
        raise ValueError(f"{path} cannot be made: {folder} is not a folder that may be written to.")
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(f"{path} needs {num_bytes / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free.")


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Use as a context: a temporary name beside `path`, renamed to it at the end, or removed where the block raises."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        for file in [partial, *partial.rglob("*")] if partial.is_dir() else [partial]:
            _sync(file)
        os.rename(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise ValueError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        remove(partial)


def small_files_of(
    source: Source, *, tokenizer: Path | None = None, dtype: torch.dtype | None = None
) -> dict[str, bytes | Extent]:
    """The files beside the weights, by name: config.json for weights of `dtype` (None: the source's), the tokenizer's
    files and generation_config.json.

    tokenizer: a folder whose files replace the source's, and whose ids of special tokens those of both configs. Raises
    ValueError where it does not fit the vocabulary, and where the source's own cannot be made.
    """
    if tokenizer is None and source.tokenizer_problem is not None:
        raise ValueError(
            f"{source.path}: the tokenizer cannot be rebuilt: {source.tokenizer_problem}. Give the folder of the "
            "original one: model.tokenizer=DIR, or --tokenizer DIR of convert."
        )
    hf = config_to_write(source.hf, critic=source.is_critic)
    hf["torch_dtype"] = str(dtype or source.dtype).removeprefix("torch.")
    files: dict[str, bytes | Extent] = dict(source.small_files)
    files.pop("config.json", None)
    if tokenizer is not None:
        given, original = tokenizer_files(tokenizer)
        if not given.keys() & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
            raise ValueError(f"{tokenizer} holds no tokenizer.json, tokenizer.model or vocab file.")
        files = {name: file for name, file in files.items() if name == GENERATION} | given
        hf |= _token_ids(original)
        _take_token_ids(files, tokenizer, original)
    check_tokenizer(files, hf["vocab_size"])
    return {"config.json": (json.dumps(hf, indent=2) + "\n").encode()} | files


def check_tokenizer(files: Mapping[str, bytes | Extent], vocab_size: int) -> None:
    """Raise ValueError where tokenizer.json has ids beyond the model's vocabulary, or is no tokenizer."""
    if "tokenizer.json" not in files:
        return
    largest = max(ids_of_tokens(files["tokenizer.json"]).values())
    if largest >= vocab_size:
        raise ValueError(
            f"tokenizer.json has ids up to {largest}, but the model's vocabulary is {vocab_size}; "
            "the tokenizer belongs to another model."
        )


def check_same_tokens(one: Mapping[str, bytes | Extent], other: Mapping[str, bytes | Extent]) -> None:
    """Raise ValueError where the tokenizer.json of two models give a token different ids. Either may lack one.

    Special tokens are left out: instruct models rename those that a base model reserves.
    """
    name = "tokenizer.json"
    if name not in one or name not in other:
        return
    ours, theirs = (ids_of_tokens(files[name], added=False) for files in (one, other))
    if differ := [token for token, index in ours.items() if theirs.get(token, index) != index]:
        token = differ[0]
        raise ValueError(
            f"their tokenizers differ: {len(differ)} tokens have other ids ({token!r}: {ours[token]} and "
            f"{theirs[token]}); choose models of one tokenizer."
        )


def ids_of_tokens(file: bytes | Extent, *, added: bool = True) -> dict[str, int]:
    """The id of every token of a tokenizer.json, with those `added` to its model's or without.

    Raises ValueError where it is no tokenizer.
    """
    try:
        tokenizer = json.loads(file.read() if isinstance(file, Extent) else file)
        vocabulary = tokenizer["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # of a unigram model: [token, score] pairs
            vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
        more = {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        tokens = vocabulary | more if added else {key: vocabulary[key] for key in vocabulary.keys() - more.keys()}
        return {token: int(index) for token, index in tokens.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"tokenizer.json is no tokenizer of the tokenizers library: {error!r}.") from error


def _token_ids(config: dict) -> dict:
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}


def _take_token_ids(files: dict[str, bytes | Extent], tokenizer: Path, original: dict) -> None:
    """Give the generation_config.json among `files` the ids of the folder `tokenizer`, whose config.json is `original`.

    It is made where only that folder has one: its list of ids that end a response stands nowhere else.
    """
    own, given = files.get(GENERATION), generation_config(top_files(tokenizer), tokenizer)
    before = json.loads(own.read() if isinstance(own, Extent) else own) if own is not None else {}
    after = before | (_token_ids(original) if before else {}) | _token_ids(given)
    if after != before:
        files[GENERATION] = (json.dumps(after, indent=2) + "\n").encode()


def _write_hf(source: Source, target: Target, specs: dict[str, Spec], tensors, small) -> None:
    planned = [spec for name in specs for spec in hf_specs(name, source.hf, specs[name].dtype, critic=source.is_critic)]
    with atomic_output(target.path) as partial:
        partial.mkdir()
        write_files(partial, small)
        stream = hf_tensors(tensors, source.hf, critic=source.is_critic)
        safetensors_io.write_folder(partial, planned, stream, target.shard_bytes)


def _write_nemo(source: Source, target: Target, specs: dict[str, Spec], tensors, small) -> None:
    config = nemo_config(
        source.hf,
        dtype=next(iter(specs.values())).dtype,
        tokenizer=_tokenizer_location(source, target),
        critic=source.is_critic,
    )
    num_layers = source.hf["num_hidden_layers"]
    with atomic_output(target.path) as partial:
        if target.kind == "checkpoint":
            folder = partial / ("critic" if source.is_critic else "actor")
            _write_all(folder_writer(folder), config, small, tensors, num_layers, source.is_critic)
            (partial / "manifest.json").write_text(json.dumps({"step": 0, "weights_only": True}) + "\n")
            return
        with open(partial, "wb") as file, synced_beside(file):
            tar = TarWriter(file)
            _write_all(tar.add, config, small, tensors, num_layers, source.is_critic)
            tar.finish()


def _write_all(create: nemo_writer.Create, config: dict, small, tensors, num_layers: int, is_critic: bool) -> None:
    nemo_writer.write_small_files(create, config, small)
    nemo_writer.write_weights(create, tensors, num_layers, is_critic=is_critic)


def _tokenizer_location(source: Source, target: Target) -> str | None:
    """The folder or hub name that NeMo is to load the tokenizer from: it does not look into the archive for it."""
    if target.tokenizer is not None:
        return str(target.tokenizer.absolute())
    if source.kind == "hf":
        return str(source.path.absolute())
    return source.tokenizer


def _read_ahead(source: Source) -> Iterator[tuple[str, Tensor]]:
    """(canonical name, tensor) of every parameter; a thread reads the next one while the caller uses this one."""
    names = list(source.specs)
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(source.read, names[0])
        for name, following in zip(names, [*names[1:], None], strict=True):
            tensor = ahead.result()
            if following is not None:
                ahead = reader.submit(source.read, following)
            yield name, tensor
            del tensor


def _cast(spec: Spec, dtype: torch.dtype | None) -> Spec:
    return spec if dtype is None else Spec(spec.name, spec.shape, dtype)


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link and not its target; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
