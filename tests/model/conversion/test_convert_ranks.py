"""Checkpoints that several ranks wrote, by our code and by Megatron's own, turned into one model again."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from nemo_simplerl.model.conversion.nemo_writer import folder_writer, write_small_files
from nemo_simplerl.model.conversion.shards import save_shards, small_files_of_model
from nemo_simplerl.model.formats.nemo_config import nemo_config
from nemo_simplerl.model.hf_map import VALUE_HEAD
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from support.forms import FAMILIES, converted, exported, same_bits, save_model, tensors_of
from support.ranks import run_ranks
from support.tiny import layout


def _mesh(tp: int, pp: int):
    return build_mesh(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=60
    )


def _save_shards(starts: dict[str, str], models: dict[str, str], out: str, tp: int, pp: int) -> dict:
    """Save an actor and a critic of each model as a checkpoint, both loaded from `starts`. Returns the value heads."""
    mesh, heads = _mesh(tp, pp), {}
    for name, start in starts.items():
        source = open_source(start)
        for role, seed in (("actor", None), ("critic", 5)):
            gpt = build_gpt_model(
                source.hf, layout(tp, pp), mesh, dtype=torch.float32, transformer_engine=False, critic_seed=seed
            )
            load_weights(gpt, source, mesh)
            files = small_files_of_model(Path(models[name]), gpt.is_critic)
            save_shards(Path(out) / name / role, gpt, source.hf, files, models[name], mesh)
        heads[name] = {key: param.detach() for key, param in gpt.named_parameters() if key == "output_layer.weight"}
    return heads


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (4, 1)])
def test_what_ranks_of_any_layout_saved_becomes_the_model_they_started_from(tmp_path, tp, pp):
    # 331 is no multiple of 2 or 4, so the last tensor rank pads its vocabulary.
    models = {name: save_model(tmp_path / "hf" / name, name, num_groups=4) for name in FAMILIES}
    starts = {name: str(converted(folder, tmp_path / "start" / name, "checkpoint")) for name, folder in models.items()}
    folders = {name: str(folder) for name, folder in models.items()}
    heads = run_ranks(_save_shards, tp * pp, starts, folders, str(tmp_path / "saved"), tp, pp)
    for name, original in models.items():
        step, expected = tmp_path / "saved" / name, tensors_of(original)
        (step / "manifest.json").write_text("{}")
        assert same_bits(tensors_of(converted(step, tmp_path / name / "actor")), expected)
        archive = converted(step, tmp_path / name / "actor.nemo", "nemo")
        assert same_bits(tensors_of(converted(archive, tmp_path / name / "again")), expected)
        critic = tensors_of(converted(step, tmp_path / name / "critic", critic=True))
        assert torch.equal(critic.pop(VALUE_HEAD), heads[-1][name]["output_layer.weight"])  # of the last stage
        expected.pop("lm_head.weight", None)
        assert same_bits(critic, expected)


def _save_with_megatron(models: dict[str, str], out: str, tp: int, pp: int, prefix: str) -> None:
    from megatron.core import dist_checkpointing, parallel_state

    # Megatron's writer starts a process of its own, which the daemon that this one is may not.
    multiprocessing.current_process()._config["daemon"] = False
    mesh = _mesh(tp, pp)
    parallel_state.destroy_global_memory_buffer()
    parallel_state.initialize_model_parallel(tp, pp)  # Megatron's writer asks its globals
    for name, folder in models.items():
        source = open_source(folder)
        gpt = build_gpt_model(source.hf, layout(tp, pp), mesh, dtype=torch.float32, transformer_engine=False)
        load_weights(gpt, source, mesh)
        target = Path(out) / name / "model_weights"
        target.mkdir(parents=True, exist_ok=True)
        dist_checkpointing.save(gpt.sharded_state_dict(prefix=prefix), str(target))
        if mesh.rank == 0:
            config = nemo_config(source.hf, dtype=torch.float32, tokenizer=None, critic=False)
            write_small_files(folder_writer(target.parent), config, {})


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp", "prefix"), [(1, 1, "model."), (2, 2, "model.module.")])
def test_a_checkpoint_that_megatron_wrote_is_read(tmp_path, tp, pp, prefix):
    names = ("qwen2_tied", "qwen3_untied", "llama3_rope")
    models = {name: save_model(tmp_path / "hf" / name, name) for name in names}
    run_ranks(
        _save_with_megatron, tp * pp, {k: str(v) for k, v in models.items()}, str(tmp_path / "saved"), tp, pp, prefix
    )
    for name, original in models.items():
        source = open_source(tmp_path / "saved" / name)
        assert source.hf["model_type"] == FAMILIES[name][0].removesuffix("3_rope")
        assert same_bits(tensors_of(converted(source.path, tmp_path / "back" / name)), tensors_of(original))


def _exported(folder: str) -> dict[str, torch.Tensor]:
    """The exported weights of a model of two tensor ranks that was loaded from `folder`."""
    mesh, source = _mesh(2, 1), open_source(folder)
    gpt = build_gpt_model(source.hf, layout(2), mesh, dtype=torch.float32, transformer_engine=False)
    load_weights(gpt, source, mesh)
    return exported(gpt, source.hf, mesh)


@pytest.mark.slow
def test_every_rank_loads_its_part_of_an_archive(tmp_path):
    original = save_model(tmp_path / "hf")
    archive = converted(original, tmp_path / "m.nemo", "nemo")
    for tensors in run_ranks(_exported, 2, str(archive)):
        assert same_bits(tensors, tensors_of(original))
