"""Sources that `simplerl convert` refuses: exit status 2, one line that says why, and nothing written."""

import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from nemo_simplerl.cli.convert import run
from support.forms import converted, repacked, tensors_of, write_tar

METADATA, DISTCP, YAML = "model_weights/.metadata", "model_weights/__0_0.distcp", "model_config.yaml"


class Canary:
    """An object whose pickle runs a command when it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@dataclass
class Maker:
    """A maker of sources that are wrong in one way, from a model in every form."""

    made: dict[str, Path]
    tmp: Path

    @property
    def canary(self) -> Canary:
        return Canary(self.tmp / "canary")

    def file(self, content: bytes) -> Path:
        (self.tmp / "src.nemo").write_bytes(content)
        return self.tmp / "src.nemo"

    def tar(self, kind: bytes = tarfile.REGTYPE, name: str = "odd") -> Path:
        """An archive with a member of that kind and name, which may point to /etc."""
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc"
        return write_tar(self.tmp / "src.nemo", {YAML: b"a: 1"}, info)

    def files(self, **content: bytes) -> Path:
        return write_tar(self.tmp / "src.nemo", {YAML: b"mcore_gpt: true"} | content)

    def archive(self, name: str, content: bytes | Callable[[bytes], bytes] | None) -> Path:
        """A source with other content in one file; None leaves the file out."""

        def change(files: dict[str, bytes]) -> None:
            old = files.pop(name)
            if content is not None:
                files[name] = content(old) if callable(content) else content

        return repacked(self.made["nemo"], self.tmp / "src.nemo", change)

    def folder(self) -> Path:
        return Path(shutil.copytree(self.made["hf"], self.tmp / "src"))

    def config(self, **settings: object) -> Path:
        """A source with other settings in config.json."""
        file = self.folder() / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return file.parent

    def weights(self, change: Callable[[bytes], bytes]) -> Path:
        """A source with other bytes in model.safetensors."""
        file = self.folder() / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))
        return file.parent

    def norm(self, **entry: object) -> Path:
        """A source whose header describes the last norm otherwise."""

        def change(content: bytes) -> bytes:
            size = struct.unpack("<Q", content[:8])[0]
            header = json.loads(content[8 : 8 + size])
            header["model.norm.weight"] |= entry
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + content[8 + size :]

        return self.weights(change)

    def float64(self) -> Path:
        folder = self.folder()
        save_file({name: tensor.double() for name, tensor in tensors_of(folder).items()}, folder / "model.safetensors")
        return folder

    def without_a_shard(self) -> Path:
        folder = converted(self.made["hf"], self.tmp / "src", shard_bytes=100_000)
        next(folder.glob("*-00002-of-*")).unlink()
        return folder

    def big_tokenizer(self) -> Path:
        file = self.folder() / "tokenizer.json"
        tokenizer = json.loads(file.read_text())
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 331})
        file.write_text(json.dumps(tokenizer))
        return file.parent

    def record(self, old: bytes) -> bytes:
        """The weights' file with a command in its first record, which keeps its length."""
        end, new = old.index(b"PK\5\6") + 22, saved(self.canary)  # a zip is read from its end, whatever is in front
        return old[: end - len(new)] + new + old[end:]

    def broken_off(self) -> Path:
        return Path(shutil.copytree(self.made["checkpoint"] / "actor", self.tmp / "src/actor")).parent

    def zarr(self) -> Path:
        array = {"shape": [8, 4], "chunks": [8, 4], "dtype": "<f4", "compressor": {"id": "blosc"}, "order": "C"}
        return self.files(**{"model_weights/model.decoder.final_layernorm.weight/.zarray": json.dumps(array).encode()})

    def empty(self) -> Path:
        (self.tmp / "src").mkdir()
        return self.tmp / "src"


# Twenty pairs of pairs of pairs.
YAML_BOMB = b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (n + 1, n + 1, n, n) for n in range(97, 117))
RANK_FILE = "mp_rank_00/model_weights.ckpt"
# What is wrong: (--from, how SRC is made, what is said)
UNUSABLE: dict[str, tuple[str, Callable[[Maker], Path], str]] = {
    "cut off in the middle": (
        "nemo",
        lambda m: m.file(m.made["nemo"].read_bytes()[:99_999]),
        r"no complete tar archive: 'model_weights/__0_0.distcp' ends beyond the 99999 bytes",
    ),
    "cut off behind a file": (
        "nemo",
        lambda m: m.file(m.made["nemo"].read_bytes()[:-1024]),
        "no complete tar archive: it is cut off before its end",
    ),
    "a damaged header": (
        "nemo",
        lambda m: m.file(m.made["nemo"].read_bytes().replace(b"__0_0.distcp\0", b"__0_1.distcp\0", 1)),
        "no complete tar archive: bad checksum",
    ),
    "a member outside": ("nemo", lambda m: m.tar(name="../odd"), "holds '../odd', which leads outside"),
    "an absolute member": ("nemo", lambda m: m.tar(name="/odd"), "holds '/odd', which leads outside"),
    "a symbolic link": ("nemo", lambda m: m.tar(tarfile.SYMTYPE), "holds 'odd', a link or special file"),
    "a hard link": ("nemo", lambda m: m.tar(tarfile.LNKTYPE), "holds 'odd', a link or special file"),
    "a device": ("nemo", lambda m: m.tar(tarfile.CHRTYPE), "holds 'odd', a link or special file"),
    "a file twice": ("nemo", lambda m: m.tar(name=f"./{YAML}"), "holds 'model_config.yaml' twice"),
    "no tar": ("nemo", lambda m: m.file(b"weights" * 999), "no complete tar archive"),
    "an empty file": ("nemo", lambda m: m.file(b""), "no complete tar archive: it is cut off before its end"),
    "a compressed tar": (
        "nemo",
        lambda m: m.file(gzip.compress(m.made["nemo"].read_bytes(), 1)),
        "is compressed with gzip; unpack it first: gunzip",
    ),
    "an empty folder": ("nemo", lambda m: m.empty(), "no unpacked .nemo: it holds no model_config.yaml"),
    "an empty Hugging Face folder": ("hf", lambda m: m.empty(), "holds no config.json"),
    "nothing": ("nemo", lambda m: m.tmp / "src", "src is neither a file nor a folder"),
    "an archive as a folder": ("hf", lambda m: m.made["nemo"], "is no folder; give a Hugging Face model folder"),
    "a folder as an archive": ("nemo", lambda m: m.made["hf"], "no unpacked .nemo"),
    "a folder as a checkpoint": ("checkpoint", lambda m: m.made["hf"], "give a run's checkpoints/step_NNNNNN"),
    "a checkpoint as a folder": ("hf", lambda m: m.made["checkpoint"], "holds no config.json"),
    "a broken-off checkpoint": (
        "checkpoint",
        lambda m: m.broken_off(),
        "no complete training checkpoint: it lacks man",
    ),
    "no index": ("nemo", lambda m: m.archive(METADATA, None), "there is no model_weights/.metadata"),
    "no weights": (
        "nemo",
        lambda m: m.archive(DISTCP, None),
        r"the file model_weights/__0_0.distcp that holds part \(0, 0\) of it is missing",
    ),
    "weights cut off": (
        "nemo",
        lambda m: m.archive(DISTCP, lambda old: old[:500_000]),
        "__0_0.distcp is cut off after 500000 bytes: part",
    ),
    "no settings": ("nemo", lambda m: m.archive(YAML, b"a: [1"), "model_config.yaml is no YAML: while parsing"),
    "settings nested deeply": ("nemo", lambda m: m.archive(YAML, b"[" * 99_999), "model_config.yaml is no YAML"),
    "settings that explode": ("nemo", lambda m: m.archive(YAML, YAML_BOMB), "is no YAML: it has aliases"),
    "other settings than the config's": (
        "nemo",
        lambda m: m.archive(YAML, lambda old: old.replace(b"hidden_size: 64", b"hidden_size: 32")),
        "hf/config.json and model_config.yaml differ: hidden_size is 64 or 32",
    ),
    "an index that runs a command": (
        "nemo",
        lambda m: m.archive(METADATA, pickle.dumps(m.canary)),
        ".metadata asks for posix.system when it is loaded, .* refused",
    ),
    "weights that run a command": (
        "nemo",
        lambda m: m.archive(DISTCP, m.record),
        "__0_0.distcp asks for posix.system when it is loaded; .* refused",
    ),
    "a rank's file that runs a command": (
        "nemo",
        lambda m: m.files(**{RANK_FILE: saved({"w": torch.ones(2), "x": m.canary})}),
        "tensor rank 0 asks for posix.system when it is loaded; .* refused",
    ),
    "a rank's file without tensors": ("nemo", lambda m: m.files(**{RANK_FILE: saved([1])}), "rank 0 hold no tensors"),
    "weights of before Megatron-core": (
        "nemo",
        lambda m: m.files(**{RANK_FILE: saved({"w": torch.ones(2)}), YAML: b"mcore_gpt: false"}),
        "mcore_gpt is not true",
    ),
    "compressed zarr": ("nemo", lambda m: m.zarr(), "is compressed zarr, which is not read"),
    "a shard that is missing": ("hf", lambda m: m.without_a_shard(), "are missing: model-00002-of"),
    "tensors cut off": ("hf", lambda m: m.weights(lambda old: old[:-1]), "safetensors is no complete safetensors file"),
    "bytes behind the tensors": ("hf", lambda m: m.weights(lambda old: old + b"123"), "is damaged: 3 bytes follow"),
    "a header of petabytes": (
        "hf",
        lambda m: m.weights(lambda old: struct.pack("<Q", 1 << 60) + old[8:]),
        "its header would have 1152921504606846976 bytes",
    ),
    "offsets outside": ("hf", lambda m: m.norm(data_offsets=[1 << 50, (1 << 50) + 256]), "lie outside a part of"),
    "overlapping tensors": ("hf", lambda m: m.norm(data_offsets=[0, 256]), "its tensors overlap or leave a hole"),
    "a negative shape": ("hf", lambda m: m.norm(shape=[-8, -8]), "a shape or an offset is no size"),
    "an unknown dtype": ("hf", lambda m: m.norm(dtype="F8_E4M3"), "tensors of dtype F8_E4M3 are not supported"),
    "another size": (
        "hf",
        lambda m: m.config(hidden_size=32),
        r"do not belong together: model.embed_tokens.weight: \[\(331, 64\)\], by config.json \[\(331, 32\)\]",
    ),
    "layers that are missing": ("hf", lambda m: m.config(num_hidden_layers=5), r"lacks model\.layers\.4\.input_layer"),
    "layers without number": ("hf", lambda m: m.config(num_hidden_layers=10**12), "is 1000000000000, more than any"),
    "an unknown family": ("hf", lambda m: m.config(model_type="gpt2"), "model_type is 'gpt2'; supported: llama"),
    "a list for a word": ("hf", lambda m: m.config(model_type=["qwen2"]), "config.json: a value is of the wrong kind"),
    "a tokenizer too large": (
        "hf",
        lambda m: m.big_tokenizer(),
        "tokenizer.json has ids up to 331, but the model's vocabulary is 331",
    ),
    "a dtype that NeMo has not": ("hf", lambda m: m.float64(), "weights are float64, which NeMo has no word for"),
}


def assert_refused(arguments: list, target: Path, capsys, match: str) -> None:
    before = sorted(target.parent.rglob("*"))
    assert run([*map(str, arguments), str(target)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert re.search(f"^simplerl convert: .*{match}", told.err), told.err
    assert sorted(target.parent.rglob("*")) == before  # not even a partial file


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_source_that_cannot_be_used_is_told_in_one_line_and_leaves_nothing(made, tmp_path, capsys, what):
    kind, make, match = UNUSABLE[what]
    source = make(Maker(made, tmp_path))
    assert_refused(["--from", kind, "--to", "nemo" if kind == "hf" else "hf", source], tmp_path / "out", capsys, match)
    assert not (tmp_path / "canary").exists()


def test_code_in_what_is_not_read_does_not_run(made, tmp_path):
    maker = Maker(made, tmp_path)
    source = maker.archive("model_weights/common.pt", saved(maker.canary))
    assert run(["--from", "nemo", "--to", "hf", str(source), str(tmp_path / "out")]) == 0
    assert not (tmp_path / "canary").exists()
    torch.load(io.BytesIO(saved(maker.canary)), weights_only=False)  # which is what it would look like
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--shard-gb", "nan"], "--shard-gb must be positive, got nan"),
        (["--shard-gb", "0"], "--shard-gb must be positive, got 0"),
        (["--shard-gb", "-4"], "--shard-gb must be positive, got -4"),
        (["--shard-gb", "inf"], "--shard-gb must be positive, got inf"),
        (["--critic"], "m.nemo is no critic: it holds no value head"),
        (["--tokenizer", "/nowhere"], "/nowhere is no folder"),
        (["--tokenizer", "/"], "/ holds no tokenizer.json"),
    ],
)
def test_arguments_that_make_no_sense_are_told_in_one_line(made, tmp_path, capsys, arguments, match):
    assert_refused(["--from", "nemo", "--to", "hf", *arguments, made["nemo"]], tmp_path / "out", capsys, match)


def test_a_critic_is_converted_as_one_or_not_at_all(made, tmp_path, capsys):
    arguments = ["--from", "hf", "--to", "nemo", made["critic"]]
    assert_refused(arguments, tmp_path / "out", capsys, "is a critic: it holds a value head; add --critic")
    arguments = ["--from", "checkpoint", "--to", "hf", "--critic", made["checkpoint"]]
    assert_refused(arguments, tmp_path / "out", capsys, "holds no critic, an actor alone")


def test_a_target_that_cannot_be_written_is_told_before_anything_is(made, tmp_path, capsys, monkeypatch):
    arguments = ["--from", "hf", "--to", "nemo", made["hf"]]
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "file", "link"):
        assert_refused(arguments, tmp_path / name, capsys, f"{name} exists; choose another name or remove it")
    assert_refused(arguments, tmp_path / "file/out", capsys, "file is not a folder that may be written to")
    inside = Path(shutil.copytree(made["hf"], tmp_path / "src"))
    assert_refused([*arguments[:-1], inside], inside / "m.nemo", capsys, "lies inside .*src, which is read")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert_refused(arguments, tmp_path / "out", capsys, "out needs 0.03 GB, and .* has 0.00 GB free")


@pytest.mark.parametrize("kind", ["hf", "nemo", "checkpoint"])
@pytest.mark.parametrize("room", [1_000, 150_000, 300_000])
def test_a_disk_that_fills_up_on_the_way_is_told_in_one_line(made, tmp_path, capsys, kind, room):
    before = "nemo" if kind == "hf" else "hf"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # of a file: the system's own error, at any byte
    try:
        arguments = ["--from", before, "--to", kind, made[before]]
        assert_refused(arguments, tmp_path / "out", capsys, "out could not be written: File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
