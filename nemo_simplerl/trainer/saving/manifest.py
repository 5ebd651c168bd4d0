"""What a checkpoint says of itself: `manifest.json`, written last, with the size and xxh3 of every other file."""

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from nemo_simplerl.files import atomic_write
from nemo_simplerl.trainer.saving.position import Place

MANIFEST = "manifest.json"
_DIGEST = "xxh3"  # of the other keys
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class FileFacts:
    size: int
    xxh3: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`evaluation` has the step's metrics, where it was evaluated.

    step: steps done. updates_in_step: and updates made, of both roles, of the step after them. updates: of each role's
    optimizer, made or left out. skipped: those left out.
    """

    step: int
    updates_in_step: int = 0
    weight_version: int
    updates: dict[str, int]
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    layout: dict[str, int]
    evaluation: dict[str, float]
    versions: dict[str, str]
    config_xxh3: str
    files: dict[str, FileFacts]

    @property
    def place(self) -> Place:
        return Place(self.step, self.updates_in_step)


def versions() -> dict[str, str]:
    """Of this package and of what decides the numbers of a run."""
    packages = ("nemo_simplerl", "torch", "megatron-core")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    values = dataclasses.asdict(manifest)
    atomic_write(folder / MANIFEST, json.dumps({_DIGEST: _digest(values)} | values, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Raises ValueError that says what is wrong with it."""
    values = read_values(folder)
    if values.get("weights_only"):
        raise ValueError("it holds weights alone, nothing to resume; start from it with model.path")
    try:
        digest = values.pop(_DIGEST)
        is_as_written = digest == _digest(values)
        files = {name: FileFacts(**facts) for name, facts in values.pop("files").items()}
        manifest = Manifest(files=files, **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {MANIFEST} lacks what a checkpoint to resume from has ({error})") from error
    if not is_as_written:
        raise ValueError(f"its {MANIFEST} was changed after it was written")
    return manifest


def read_values(folder: Path) -> dict[str, Any]:
    """The manifest unchecked. Raises ValueError where there is none, or one that is no JSON object."""
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"its {MANIFEST} is no JSON object")
    return values


def file_problems(folder: Path, files: Mapping[str, FileFacts]) -> list[str]:
    """What is wrong with the files, in words; reads all of them."""
    return [problem for name, facts in files.items() if (problem := _problem(folder / name, name, facts))]


def share_of(files: Mapping[str, FileFacts], rank: int, size: int) -> dict[str, FileFacts]:
    """The files that one of `size` ranks is to read, so that all have about as many bytes."""
    loads = [0] * size
    share = {}
    for name, facts in sorted(files.items(), key=lambda item: (-item[1].size, item[0])):
        lightest = loads.index(min(loads))
        loads[lightest] += facts.size
        if lightest == rank:
            share[name] = facts
    return share


class HashedFolder:
    """Opens files below `folder` for writing, each on disk when it is closed; `files` tells of those that are.

    interrupt: called before every block, before_file before every file; what they raise ends the writing.
    """

    def __init__(
        self,
        folder: Path,
        interrupt: Callable[[], None] = lambda: None,
        before_file: Callable[[], None] = lambda: None,
    ):
        self._folder, self._interrupt, self._before_file = folder, interrupt, before_file
        self.files: dict[str, FileFacts] = {}

    @contextmanager
    def create(self, name: str) -> Iterator[Any]:
        self._before_file()
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            stream = _Hashed(file, self._interrupt)
            yield stream
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = FileFacts(stream.tell(), stream.hexdigest())


class _Hashed:
    """What torch.save and pickle ask of a file, hashing what passes."""

    def __init__(self, file: BinaryIO, interrupt: Callable[[], None]):
        self._file, self._interrupt, self._count = file, interrupt, 0
        self._hasher = xxhash.xxh3_64()

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _BLOCK_BYTES):
            self._interrupt()
            block = view[start : start + _BLOCK_BYTES]
            self._hasher.update(block)
            self._file.write(block)
        self._count += len(view)
        return len(view)

    def tell(self) -> int:
        return self._count

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._hasher.hexdigest()


def _problem(path: Path, name: str, facts: FileFacts) -> str | None:
    try:
        size = path.stat().st_size
        if size != facts.size:
            return f"{name} has {size} bytes instead of {facts.size}"
        hasher, block = xxhash.xxh3_64(), bytearray(_BLOCK_BYTES)
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(block):
                hasher.update(memoryview(block)[:count])
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    return None if hasher.hexdigest() == facts.xxh3 else f"{name} holds other bytes than were written"


def _digest(values: dict[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(values, sort_keys=True).encode())
