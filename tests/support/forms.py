"""Models on disk in every form, for the tests of conversion."""

import io
import json
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_simplerl.data import arithmetic
from nemo_simplerl.data.rows import read_rows
from nemo_simplerl.data.tokenizer import build_tokenizer
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.hf_map import VALUE_HEAD
from nemo_simplerl.model.source import hf_config_of, open_source
from support.tiny import save_hf_model

SHARED = Path(__file__).resolve().parents[3] / "shared"
# Name: family of save_hf_model, whether embeddings are tied.
FAMILIES = {
    "qwen2_tied": ("qwen2", True),
    "qwen2_untied": ("qwen2", False),
    "qwen3_tied": ("qwen3", True),
    "qwen3_untied": ("qwen3", False),
    "llama": ("llama", False),
    "llama3_rope": ("llama3_rope", False),
}


@cache
def questions(folder: Path) -> tuple[str, ...]:
    """200 arithmetic problems, written below `folder`."""
    paths = [folder / f"{name}.jsonl" for name in ("train", "eval", "sft")]
    arithmetic.write_task(*paths, seed=3, task=arithmetic.Task(num_train=200, num_eval=1, num_sft=1))
    return tuple(str(row["question"]) for row in read_rows(paths[0]))


def save_model(folder: Path, name: str = "qwen2_untied", *, vocab_size: int = 331, num_groups: int = 2) -> Path:
    """A random model of FAMILIES with a tokenizer of 300 tokens beside it."""
    family, tied = FAMILIES[name]
    save_hf_model(folder, family, tied=tied, vocab_size=vocab_size, num_groups=num_groups)
    build_tokenizer(["How many apples are left? Add 17 to 25, then subtract 8."] * 3, 300, folder)
    return folder


def save_critic(folder: Path, name: str = "qwen2_tied") -> Path:
    """A critic of FAMILIES with a random value head, as transformers would save it."""
    save_model(folder, name)
    hf = hf_config_of(json.loads((folder / "config.json").read_text()), True)
    (folder / "config.json").write_text(json.dumps(hf))
    tensors = {key: tensor for key, tensor in tensors_of(folder).items() if key != "lm_head.weight"}
    save_file(tensors | {VALUE_HEAD: torch.randn(1, 64) / 8}, folder / "model.safetensors", {"format": "pt"})
    return folder


def converted(source: Path, target: Path, kind: str = "hf", *, critic: bool = False, **changes) -> Path:
    """`source`, whatever it is, written as `target`."""
    convert(open_source(source, critic=critic), Target(kind, target, **changes), lambda done, total: None)
    return target


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Of a Hugging Face folder, read by the library."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def write_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    """A tar of the files and of members that hold nothing."""
    with tarfile.open(path, "w:") as tar:
        for member in extra:
            tar.addfile(member)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def repacked(archive: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """The archive with its files, by name, changed in place."""
    files = members(archive)
    change(files)
    return write_tar(target, files)
