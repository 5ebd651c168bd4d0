"""Models on disk in every form, for the tests of conversion."""

import io
import json
import math
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from megatron.core.models.gpt import GPTModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_simplerl.data.generated import arithmetic
from nemo_simplerl.data.rows import read_rows
from nemo_simplerl.data.tokenizer import build_tokenizer
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.hf_map import VALUE_HEAD
from nemo_simplerl.model.readers.huggingface import config_to_write
from nemo_simplerl.model.sharding.export import hf_buckets
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh
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
# What sets further models of these families apart.
VARIANTS = {name: (name, False) for name in ("mistral_window", "mistral_heads", "deepseek_math")}

_NOT_COMPANIONS = ("model.safetensors.index.json", "additional_chat_templates/notes.txt")


@cache
def questions(folder: Path) -> tuple[str, ...]:
    """The questions of 200 arithmetic problems, whose files are written below `folder`."""
    paths = [folder / f"{name}.jsonl" for name in ("train", "eval", "sft")]
    arithmetic.write_task(*paths, seed=3, task=arithmetic.Task(num_train=200, num_eval=1, num_sft=1))
    return tuple(str(row["question"]) for row in read_rows(paths[0]))


def save_model(folder: Path, name: str = "qwen2_untied", *, vocab_size: int = 331, num_groups: int = 2) -> Path:
    """Write a random model of FAMILIES or VARIANTS and a tokenizer of 300 tokens to `folder`, and return it."""
    family, tied = (FAMILIES | VARIANTS)[name]
    save_hf_model(folder, family, tied=tied, vocab_size=vocab_size, num_groups=num_groups)
    build_tokenizer(["How many apples are left? Add 17 to 25, then subtract 8."] * 3, 300, folder)
    return folder


def with_companions(folder: Path) -> Path:
    """The model folder with every further file that goes along, of contents that no code of ours would write."""
    texts = {
        "generation_config.json": '{"eos_token_id":[0,2],  "temperature":0.7}',
        "chat_template.jinja": "{% for turn in messages %}{{ turn.content }}{% endfor %}",
        "additional_chat_templates/rag.jinja": "rag",
        "added_tokens.json": "{}",
        "special_tokens_map.json": '{"eos_token":  "<|endoftext|>"}',
        "merges.txt": "#version: 0.2",
        "vocab.json": "{}",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def companions(folder: Path) -> dict[str, bytes]:
    """What a model folder holds beside config.json, weights and code, by name."""
    kept = (".json", ".jinja", ".txt", ".model")
    files = [file for file in folder.rglob("*") if file.suffix in kept and file.is_file()]
    named = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return {name: content for name, content in named.items() if name not in ("config.json", *_NOT_COMPANIONS)}


def save_critic(folder: Path, name: str = "qwen2_tied") -> Path:
    """Write a critic of FAMILIES with a random value head to `folder` as transformers would, and return it."""
    save_model(folder, name)
    hf = config_to_write(json.loads((folder / "config.json").read_text()), critic=True)
    (folder / "config.json").write_text(json.dumps(hf))
    tensors = {key: tensor for key, tensor in tensors_of(folder).items() if key != "lm_head.weight"}
    save_file(tensors | {VALUE_HEAD: torch.randn(1, 64) / 8}, folder / "model.safetensors", {"format": "pt"})
    return folder


def converted(source: Path, target: Path, kind: str = "hf", *, critic: bool = False, **changes) -> Path:
    """Convert the model at `source`, of any form, to `target`. Returns `target`."""
    convert(open_source(source, critic=critic), Target(kind, target, **changes), lambda done, total: None)
    return target


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face folder by name, read by the safetensors library."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def exported(gpt: GPTModel, hf: dict, mesh: Mesh) -> dict[str, Tensor]:
    """Every weight of a sharded model, full-sized under its Hugging Face name. Collective."""
    return {name: tensor.clone() for bucket in hf_buckets(gpt, hf, mesh, 2**28) for name, tensor in bucket}


def num_parameters(hf: dict, *, critic: bool = False) -> int:
    """Number of weights of a whole model: tied embeddings count once, a critic's value head is left out."""
    return sum(math.prod(hf_map.param_shape(name, hf)) for name in hf_map.model_params(hf, critic=critic))


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both hold the same names with the same dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


def members(archive: Path) -> dict[str, bytes]:
    """Content of a tar's files by name."""
    with tarfile.open(archive) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def write_tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo) -> Path:
    """Write a tar of the `extra` members, which hold no bytes, and then of the files."""
    with tarfile.open(path, "w:") as tar:
        for member in extra:
            tar.addfile(member)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def repacked(archive: Path, target: Path, change: Callable[[dict[str, bytes]], object]) -> Path:
    """Write the archive to `target` after `change` has edited the dict of its files."""
    files = members(archive)
    change(files)
    return write_tar(target, files)
