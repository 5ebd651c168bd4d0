"""A sharded model written to disk: as an unpacked `.nemo`, each rank its shards, or as a Hugging Face folder."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from nemo_simplerl.files import NotSaved, reason_of
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.conversion import nemo_writer
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.formats import torch_dist
from nemo_simplerl.model.formats.archive import Extent
from nemo_simplerl.model.formats.nemo_config import nemo_config
from nemo_simplerl.model.hf_map import OUTPUT_LAYER
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.readers.huggingface import config_to_write
from nemo_simplerl.model.readers.nemo import WEIGHTS
from nemo_simplerl.model.readers.small_files import small_files, top_files
from nemo_simplerl.model.sharding.load import layer_offset
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.parallel.reductions import gather_objects, of_first_rank


@torch.no_grad()
def save_shards(
    folder: Path, gpt: GPTModel, hf: dict, small_files: Mapping[str, bytes | Extent], tokenizer: str, mesh: Mesh
) -> None:
    """Write the model below `folder` as an unpacked `.nemo`, on disk on return. Collective over the mesh; of the data
    ranks that hold the same shard one writes it.

    hf: the model's HF config. small_files: its config.json and tokenizer files, to be packed beside the weights.
    tokenizer: the folder that NeMo is to load the tokenizer from. Raises NotSaved on every rank where the disk refuses
    the shards of one.
    """
    create, written, problem = nemo_writer.folder_writer(folder), [], None
    if mesh.dp_rank == 0:
        name = torch_dist.rank_file_name(mesh.role.rank())
        try:
            with create(f"{WEIGHTS}/{name}") as stream:
                file = torch_dist.RankFile(stream, name)
                add_shards(file, gpt, hf, mesh)
            written = file.written
        except OSError as error:
            problem = f"rank {mesh.rank}: {reason_of(error)}"
    gathered = gather_objects((written, problem), mesh.role)
    if problems := [problem for _, problem in gathered if problem is not None]:
        raise NotSaved("; ".join(problems))
    if mesh.role.rank() != 0:
        return
    write_config_files(create, gpt, hf, small_files, tokenizer)
    torch_dist.write_index(lambda name: create(f"{WEIGHTS}/{name}"), [item for part, _ in gathered for item in part])


def export_to_hf(path: Path, gpt: GPTModel, hf: dict, model_folder: Path, mesh: Mesh) -> None:
    """Write the model as a Hugging Face folder. Collective over the mesh. model_folder: where its tokenizer files are.

    Raises NotSaved on every rank where it exists or cannot be written; nothing is left of it then.
    """
    partial, problem = path.with_name(f".{path.name}.shards"), None
    is_first = mesh.role.rank() == 0
    if is_first:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier(mesh.role)
    files = small_files_of_model(model_folder, gpt.is_critic)
    try:
        save_shards(partial / "actor", gpt, hf, files, str(model_folder), mesh)
        if is_first:
            convert(open_source(partial / "actor", "nemo"), Target("hf", path), progress=lambda done, total: None)
    except (OSError, ValueError) as error:  # of the first rank alone; raised below on every rank
        problem = reason_of(error) if isinstance(error, OSError) else str(error).rstrip(".")
    finally:
        if is_first:
            shutil.rmtree(partial, ignore_errors=True)
    problem = of_first_rank(problem, "checkpoint", mesh.role)
    if problem is not None:
        raise NotSaved(problem)


def small_files_of_model(model_folder: Path, is_critic: bool) -> dict[str, bytes | Extent]:
    """The files beside the weights, by name, of a model whose own such files are in `model_folder`."""
    files: dict[str, bytes | Extent] = dict(small_files(top_files(model_folder)))
    hf = config_to_write(read_hf_config(model_folder), critic=is_critic)
    return files | {"config.json": json.dumps(hf, indent=2).encode()}


def add_shards(file: torch_dist.BlockSink, gpt: GPTModel, hf: dict, mesh: Mesh) -> None:
    """Add this rank's shards of the weights to `file`. The first tensor rank adds the parameters that all tensor ranks
    hold alike.

    Call it on one of the data ranks that hold the same shards.
    """
    num_layers, offset = hf["num_hidden_layers"], layer_offset(gpt)
    for mcore_name, param in gpt.named_parameters():
        name = hf_map.full_name(mcore_name, offset)
        if gpt.is_critic and name == OUTPUT_LAYER:
            if mesh.tp_rank == 0:
                nemo_writer.add_head(file, param.detach())
            continue
        if name == OUTPUT_LAYER and hf.get("tie_word_embeddings", False):
            continue  # the last stage's copy of the embeddings
        entry, shape = hf_map.mapping(name), hf_map.param_shape(name, hf, critic=gpt.is_critic)
        if entry.tp_dim is None and mesh.tp_rank != 0:
            continue
        for offsets, block in hf_map.blocks(entry, param.detach(), mesh.tp_rank, mesh.tp_size, shape):
            nemo_writer.add_param(file, name, block, shape, num_layers, offsets)
    if mesh.role.rank() == 0:
        nemo_writer.add_extra_states(file, num_layers)


def write_config_files(
    create: nemo_writer.Create, gpt: GPTModel, hf: dict, small_files: Mapping[str, bytes | Extent], tokenizer: str
) -> None:
    """Write model_config.yaml and the small files, arguments as in `save_shards`. Call it on one rank."""
    config = nemo_config(hf, dtype=next(gpt.parameters()).dtype, tokenizer=tokenizer, critic=gpt.is_critic)
    nemo_writer.write_small_files(create, config, small_files)
