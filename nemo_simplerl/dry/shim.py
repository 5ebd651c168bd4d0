"""The C++ piece that lets a torch without CUDA handle fake CUDA tensors: compiled on first use, loaded in the child."""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
# Builds whose private interfaces (CUDAHooksInterface, FakeTensor, storages) the dry run was run with.
TESTED_TORCH = ("2.13",)
TESTED_MEGATRON = ("0.16",)


class Unavailable(Exception):
    """Why no dry run can be made here, in words for the user."""


def require_tested() -> None:
    """Raises Unavailable where torch or Megatron-core are not of a version, or a build, that this was tested with."""
    version, megatron = _version("torch"), _version("megatron-core")
    if not version.startswith(tuple(f"{tested}." for tested in TESTED_TORCH)):
        raise Unavailable(f"torch is {version}; the dry run was tested with {', '.join(TESTED_TORCH)}")
    if not version.endswith("+cpu"):
        raise Unavailable(f"torch is {version}, a build with CUDA; the dry run pretends a GPU to a CPU build alone")
    if not megatron.startswith(tuple(f"{tested}." for tested in TESTED_MEGATRON)):
        raise Unavailable(f"megatron-core is {megatron}; the dry run was tested with {', '.join(TESTED_MEGATRON)}")


def built() -> Path:
    """The compiled library in the user's cache; compiles it, some seconds, where it is not there yet.

    Raises Unavailable without a C++ compiler, and where it fails.
    """
    text = SOURCE.read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simplerl"
    library = cache / f"dry_{hashlib.sha256(text + _version('torch').encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise Unavailable("there is no C++ compiler (CXX, g++ or clang++); install one, such as g++")
    torch = _torch_folder()
    partial = library.with_suffix(f".{os.getpid()}")
    includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(partial)]
    try:
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(f"its library cannot be compiled: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(f"{compiler} does not compile {SOURCE.name}: {lines[0]}")
    os.replace(partial, library)
    return library


def load(library: Path) -> None:
    """Load `library` between torch's own libraries and torch, which must not be imported yet."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None, "require_tested() comes first"
    return Path(spec.origin).parent


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
