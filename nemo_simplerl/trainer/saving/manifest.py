"""A checkpoint's `manifest.json`: its facts, and size and xxh3 of every other file. It is written last."""

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from nemo_simplerl.files import atomic_write
from nemo_simplerl.trainer.saving.position import TrainingPosition

MANIFEST = "manifest.json"
_DIGEST = "xxh3"  # of the other keys
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class FileFacts:
    """Size in bytes and xxh3 digest of a file."""

    size: int
    xxh3: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts of a checkpoint, as manifest.json holds them.

    A field that older checkpoints lack has a default. `checkpoint.manifest_of` fills in what the roles' ranks know.
    """

    step: int  # steps done
    updates_in_step: int = 0  # updates of both roles made in the step after them
    prompts_passed: int | None = None  # by those steps, over all episodes; None: a full batch by each
    weight_version: int
    updates: dict[str, int]  # by role: updates of its optimizer, those left out included
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)  # by role: updates left out
    layout: dict[str, int]  # parallel sizes of the actor, and of each role that `layouts` does not name
    layouts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # by role; with its first rank
    evaluation: dict[str, float]  # metrics of the step's evaluation, where it had one
    versions: dict[str, str]
    config_xxh3: str
    files: dict[str, FileFacts]

    def layout_of(self, role: str) -> dict[str, int]:
        """The parallel sizes that the role was saved in, and from which rank on."""
        return self.layouts.get(role, self.layout)

    @property
    def position(self) -> TrainingPosition:
        """The training position that the checkpoint was saved at."""
        return TrainingPosition(self.step, self.updates_in_step)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that decide a run's numbers.

    A package that runs without being installed, such as this one from a checkout on PYTHONPATH, has none to tell.
    """
    found = {"python": platform.python_version()}
    for name in ("nemo_simplerl", "torch", "megatron-core", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def changed_versions(saved: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """A sentence on what a run is continued with in other versions than it was saved with; None where all are the same.

    Packages that either side does not know are left out: older checkpoints name fewer.
    """
    changed = [name for name in here if saved.get(name, here[name]) != here[name]]
    if not changed:
        return None
    before, now = (", ".join(f"{name} {versions[name]}" for name in changed) for versions in (saved, here))
    return f"saved with {before}; continued with {now}: from here on numbers may differ in rounding"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json with a digest of its own values."""
    values = dataclasses.asdict(manifest)
    atomic_write(folder / MANIFEST, json.dumps({_DIGEST: _digest(values)} | values, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises ValueError that says what is wrong with it."""
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
    """The values of a manifest, unchecked. Raises ValueError where there is none, or one that is no JSON object."""
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
    """The files that are missing or differ from their facts, in words. Reads all of them."""
    return [problem for name, facts in files.items() if (problem := _problem(folder / name, name, facts))]


def share_of(files: Mapping[str, FileFacts], rank: int, size: int) -> dict[str, FileFacts]:
    """The files that rank `rank` of `size` reads, chosen so that all ranks read about as many bytes."""
    loads = [0] * size
    share = {}
    for name, facts in sorted(files.items(), key=lambda item: (-item[1].size, item[0])):
        lightest = loads.index(min(loads))
        loads[lightest] += facts.size
        if lightest == rank:
            share[name] = facts
    return share


class HashedFolder:
    """Writes files below `folder` and hashes them; `files` has the facts of those that are complete and on disk.

    interrupt: called before every block. before_file: called before every file. What they raise ends the writing.
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
        """Open the file `name` for writing; it is synced to disk at the end of the context."""
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
    """The part of a file that torch.save and pickle use; hashes what is written."""

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
