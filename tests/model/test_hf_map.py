"""The tensors that a folder must hold and may hold, and the errors about others."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_simplerl.files import NotSaved
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.conversion import shards
from nemo_simplerl.model.conversion.shards import export_to_hf
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from support.forms import exported
from support.ranks import run_ranks
from support.tiny import layout, save_hf_model

HF = {
    "model_type": "qwen3",
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "tie_word_embeddings": False,
}


def loaded(folder, critic_seed: int | None = None, pp: int = 1):
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=60
    )
    source = open_source(folder)
    gpt = build_gpt_model(
        source.hf, layout(1, pp), mesh, dtype=torch.float32, transformer_engine=False, critic_seed=critic_seed
    )
    load_weights(gpt, source, mesh)
    return gpt, source.hf, mesh


def rewrite(folder, **changes):
    """The folder's tensors with some added, replaced or (None) removed."""
    file = folder / "model.safetensors"
    tensors = load_file(file) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def test_a_folder_with_just_the_expected_tensors_passes():
    hf_map.check_names(hf_map.expected_names(HF), HF, "folder")
    assert hf_map.unknown_names(hf_map.expected_names(HF), HF) == []


def test_missing_and_unknown_tensors_are_listed_in_one_error():
    names = set(hf_map.expected_names(HF)) - {
        *(f"model.layers.{layer}.self_attn.q_norm.weight" for layer in range(3)),
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    }
    names |= {"odd.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.2.self_attn.q_proj.bias"}
    with pytest.raises(ValueError) as error:
        hf_map.check_names(names, HF, "folder")
    assert str(error.value) == (
        "folder lacks model.layers.0,1,2.self_attn.q_norm.weight, model.layers.1.mlp.up_proj.weight, model.norm.weight "
        "and has unknown model.layers.0,2.self_attn.q_proj.bias, odd.weight; "
        "weights and config.json (qwen3, 3 layers) do not belong together."
    )


def test_layers_beyond_the_config_are_unknown():
    names = hf_map.expected_names(HF)
    with pytest.raises(ValueError, match=r"has unknown model\.layers\.2\.input_layernorm\.weight"):
        hf_map.check_names(names, HF | {"num_hidden_layers": 2}, "folder")


def test_stored_rotary_frequencies_are_tolerated():
    extra = ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]
    hf_map.check_names(hf_map.expected_names(HF) + extra, HF, "folder")


def test_only_a_critic_may_hold_a_value_head_and_do_without_an_output_layer():
    actor, tied = hf_map.expected_names(HF), HF | {"tie_word_embeddings": True}
    critic = [name for name in actor if name != "lm_head.weight"] + [hf_map.VALUE_HEAD]
    hf_map.check_names(actor, HF, "folder", critic=True)
    hf_map.check_names(critic, HF, "folder", critic=True)
    with pytest.raises(ValueError, match=r"lacks lm_head\.weight and has unknown score\.weight"):
        hf_map.check_names(critic, HF, "folder")
    with pytest.raises(ValueError, match=r"folder has unknown score\.weight"):
        hf_map.check_names(critic, tied, "folder")
    hf_map.check_names(actor, tied, "folder")


def test_loading_names_every_tensor_that_does_not_fit(tmp_path):
    folder = save_hf_model(tmp_path / "model", "qwen3")
    rewrite(
        folder,
        **{"model.norm.weight": None, "model.layers.0.self_attn.k_norm.weight": None, "odd.weight": torch.ones(2)},
    )
    with pytest.raises(ValueError, match=r"lacks model\.layers\.0\.self_attn\.k_norm\.weight, model\.norm.*odd"):
        loaded(folder)


def test_tied_embeddings_may_be_stored_twice_where_both_are_equal(tmp_path):
    folder = save_hf_model(tmp_path / "model", "qwen3", tied=True)
    embeddings = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, **{"lm_head.weight": embeddings.clone()})
    gpt, hf, mesh = loaded(folder)
    assert "lm_head.weight" not in exported(gpt, hf, mesh)
    embeddings[130, 63] += 1e-6
    rewrite(folder, **{"lm_head.weight": embeddings})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        loaded(folder)


def _refuse(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _critic_round_trip(base: str, out: str) -> bool:
    """A critic made from an actor's folder, exported, and loaded again with another fresh value head beneath. Before
    that the disk of the second rank refuses its shards."""
    gpt, hf, mesh = loaded(base, critic_seed=1, pp=2)
    with pytest.MonkeyPatch.context() as patch:
        if mesh.rank == 1:
            patch.setattr(shards, "add_shards", _refuse)
        with pytest.raises(NotSaved, match="^rank 1: No space left on device$"):
            export_to_hf(Path(out), gpt, hf, Path(base), mesh)
    assert mesh.rank == 1 or not list(Path(out).parent.glob("*critic*")), "a part of it keeps the disk full"
    export_to_hf(Path(out), gpt, hf, Path(base), mesh)
    again, _, _ = loaded(out, critic_seed=2, pp=2)
    mine, theirs = dict(gpt.named_parameters()), dict(again.named_parameters())
    assert gpt.is_critic and mine.keys() == theirs.keys()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_critic_is_exported_and_loaded_bit_for_bit_on_every_pipeline_stage(tmp_path):
    base = str(save_hf_model(tmp_path / "model", "qwen3"))
    assert run_ranks(_critic_round_trip, 2, base, str(tmp_path / "critic")) == [True, True]
    names = load_file(tmp_path / "critic" / "model.safetensors").keys()
    assert hf_map.VALUE_HEAD in names and "lm_head.weight" not in names
