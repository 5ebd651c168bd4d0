"""Reading of files that users bring: text in the encodings of the world, and digests of data and models on disk."""

import codecs
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import xxhash

_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_PACKED = {  # files of other kinds by their first bytes, with what to do
    b"\x1f\x8b": "packed by gzip: run gunzip on it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: run unzstd on it",
    b"\xfd7zXZ": "packed by xz: run unxz on it",
    b"PK\x03\x04": "a zip archive, as a workbook (.xlsx) is: unpack it, or save the table as CSV",
    b"PAR1": "a parquet file: let its name end in .parquet",
}

# Training changes nearly every number of a model, so a few numbers of most matrices tell two models apart. Blocks this
# close meet every matrix of 4 MiB, and of 15 GB only 15 MB are read: 0.2 s on a local disk, and 16 s for all of it.
_BLOCK, _STRIDE = 1 << 12, 1 << 22
_READ_WHOLE = 1 << 24
_WEIGHTS = (
    *(".safetensors", ".nemo", ".distcp", ".bin", ".pt", ".pth", ".ckpt"),
    *(".gguf", ".onnx", ".h5", ".msgpack"),
)
_NO_CONTENT = (".md", ".lock", ".tmp", ".partial")
# The folders within a model's folder that some form of model has. Others hold copies in other formats, or what was made
# of the model since: an evaluation of it does not make it another one.
_MODEL_FOLDERS = (
    *("actor", "critic", "model_weights", "hf", "context", "weights", "additional_chat_templates"),
    *("tokenizer", "iter_*", "release", "mp_rank_*", "tp_rank_*"),
)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark. The mark is no part of it.

    Raises ValueError where the file cannot be read, is packed or a pointer of git-lfs, or is in another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    refuse_pointer(content, path)
    if packed := next((what for start, what in _PACKED.items() if content.startswith(start)), None):
        raise ValueError(f"{path} is no text but {packed}")
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    body = content[len(mark) :]
    if encoding == "utf-8" and b"\0" in body:
        raise ValueError(
            f"{path}: line {_line(body, body.index(0))} holds a NUL byte: it is no text, or UTF-16 without a byte "
            "order mark; save it as UTF-8"
        )
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise ValueError(f"{path} begins as {encoding} and is none ({error}); save it as UTF-8") from error
        raise ValueError(
            f"{path}: line {_line(body, error.start)} is not UTF-8 (byte 0x{body[error.start]:02x}); Latin-1 and "
            f"Windows text is converted by: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8{path.suffix}, Chinese by "
            "-f GB18030"
        ) from error


def refuse_pointer(head: bytes, where: object) -> None:
    """Raise ValueError where a file that begins with `head` is a pointer of git-lfs and not the file itself."""
    if head.startswith(_POINTER):
        raise ValueError(
            f"{where} is a pointer of git-lfs, a few lines of text in place of the file: run `git lfs pull` in its "
            "folder, or fetch it again with `hf download`"
        )


def content_digest(path: Path) -> str:
    """Digest of the names, sizes and contents of a file or of a model's files in a folder, hidden ones and notes aside.

    Of files above 16 MiB in a folder, and of weights, it takes 4 KiB of every 4 MiB, and the last 4 KiB. A file of data
    given by itself, in which one row may have changed, is read whole. Raises OSError.
    """
    hasher = xxhash.xxh3_128()
    for name, file in _files(path):
        size = file.stat().st_size
        hasher.update(f"{name} {size} ".encode(errors="surrogateescape"))
        with open(file, "rb") as stream:
            for start, count in _portions(size, sampled=bool(name) or file.suffix in _WEIGHTS):
                stream.seek(start)
                hasher.update(stream.read(count))
    return hasher.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """The file itself, under no name, or a model's files in a folder, under their names there."""
    if path.is_file():
        yield "", path
        return
    inner = [folder for folder in path.iterdir() if any(fnmatchcase(folder.name, name) for name in _MODEL_FOLDERS)]
    for file in sorted([*path.iterdir(), *(file for folder in inner for file in folder.rglob("*"))]):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts) and file.suffix not in _NO_CONTENT:
            yield str(name), file


def _portions(size: int, *, sampled: bool) -> Iterator[tuple[int, int]]:
    """Offsets and lengths of what is read of a file."""
    if size <= _READ_WHOLE or not sampled:
        yield from ((start, min(_STRIDE, size - start)) for start in range(0, size, _STRIDE))
        return
    for start in range(0, size, _STRIDE):
        yield start, _BLOCK
    yield size - _BLOCK, _BLOCK


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1
