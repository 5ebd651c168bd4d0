"""Where a model's weights come from: one function opens every form of model files.

Tensors are read from disk when they are asked for, by their canonical Megatron names and full-sized.
"""

from pathlib import Path

import torch
import xxhash

from nemo_simplerl.model.hf_map import OUTPUT_LAYER, VALUE_HEAD
from nemo_simplerl.model.readers import checkpoint, gguf, huggingface, megatron_folders, nemo
from nemo_simplerl.model.readers.base import Reader, Source

# A new form of model files is a module of readers/ and a line here.
READERS: dict[str, Reader] = {
    "nemo": nemo.READER,
    "hf": huggingface.READER,
    "checkpoint": checkpoint.READER,
    "gguf": gguf.READER,
    "nemo2": megatron_folders.reader("nemo2", "a NeMo 2 folder (context/, weights/)"),
    "bridge": megatron_folders.reader("bridge", "a Megatron-Bridge checkpoint (run_config.yaml)"),
    "megatron": megatron_folders.reader("megatron", "a Megatron-LM checkpoint (iter_N or release, torch_dist)"),
}
_INSIDE = {"nemo", "hf"}  # an unpacked .nemo may hold a config.json beside its own


def open_source(
    path: str | Path, kind: str | None = None, *, critic: bool = False, tokenizer: Path | None = None
) -> Source:
    """The model at `path`: of a checkpoint its actor, or with `critic` its critic. kind None: see `kind_of`.

    critic: the model must have a value head. tokenizer: a folder whose config.json says how many rows of a `.nemo`'s
    embeddings are tokens, where the archive itself does not.
    Raises one ValueError that lists every missing, unknown or misshapen tensor.
    """
    path = Path(path)
    source = READERS[kind or kind_of(path)].open(path, critic, tokenizer)
    if critic and not source.is_critic:
        heads = f"{VALUE_HEAD}, {nemo.VALUE_HEAD}, or {OUTPUT_LAYER} of one row"
        raise ValueError(f"{source.path} is no critic: it holds no value head ({heads}).")
    return source


def kind_of(path: str | Path) -> str:
    """The form, a key of READERS, of the model at `path`, told by what is there and not by its name.

    Raises ValueError where no reader recognises it, or where it could be two forms.
    """
    found = [kind for kind, reader in READERS.items() if reader.recognises(Path(path))]
    if len(found) == 1 or set(found) == _INSIDE:
        return found[0]
    if found:
        both = " and ".join(READERS[kind].description for kind in found)
        raise ValueError(f"{path} could be {both}; move what does not belong to the model out of that folder.")
    if inner := sorted(Path(path).glob("*.gguf")):
        raise ValueError(f"{path} is a folder of GGUF files; give one: {', '.join(map(str, inner[:5]))}.")
    forms = ", nor ".join(reader.description for reader in READERS.values())
    raise ValueError(f"{path} is no model: neither {forms}.")


def weights_fingerprint(source: Source) -> str:
    """A hash of the first layer's attention weights: some megabytes that any training changes."""
    hasher = xxhash.xxh3_64()
    for name in sorted(source.specs):
        if name.startswith("decoder.layers.0.self_attention.") and len(source.specs[name].shape) > 1:
            hasher.update(source.read(name).contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()
