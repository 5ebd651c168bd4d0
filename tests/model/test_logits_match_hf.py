"""The Megatron model against Hugging Face's, for every family and layout; the weights out again, bit for bit."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_simplerl.model.export import hf_stream
from nemo_simplerl.model.hf_io import HfWeights, load_weights, save_folder
from nemo_simplerl.model.provider import build_gpt_model, read_hf_config
from nemo_simplerl.model.schedule import forward_only
from nemo_simplerl.parallel.mesh import build_mesh
from ranks import run_ranks
from tiny import layout, save_hf_model

FAMILIES = {"qwen2_tied": ("qwen2", True), "qwen2_untied": ("qwen2", False), "llama": ("llama", False)}


def _tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 131, (rows, length), generator=torch.Generator().manual_seed(1))


def _megatron_logits(folders: list[str], tp: int, pp: int, sequence_parallel: bool):
    """Logits [B, S, V] of two micro-batches of different length, and the exported tensors, per folder."""
    mesh = build_mesh(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=60
    )
    answers = []
    for folder in folders:
        hf = read_hf_config(folder)
        plan = layout(tp, pp, sequence_parallel=sequence_parallel)
        gpt = build_gpt_model(hf, plan, mesh, dtype=torch.float32, transformer_engine=False)
        load_weights(gpt, hf, folder, mesh)

        def head(output_SBV, micro_batch, vocab_size=hf["vocab_size"]):
            shards = [torch.empty_like(output_SBV) for _ in range(mesh.tp_size)]
            torch.distributed.all_gather(shards, output_SBV.contiguous(), group=mesh.tensor)
            rows, length = micro_batch.tokens_BS.shape
            return torch.cat(shards, -1)[:length, :, :vocab_size].transpose(0, 1).contiguous()

        batches = [SimpleNamespace(tokens_BS=_tokens(3, 17)), SimpleNamespace(tokens_BS=_tokens(2, 9))]
        logits = forward_only(gpt, batches, head, mesh)
        exported = {name: tensor.clone() for name, tensor in hf_stream(gpt, hf, mesh)}
        answers.append((logits, exported))
    return answers


@pytest.mark.parametrize(
    ("tp", "pp", "sequence_parallel"),
    [(1, 1, False), (2, 1, False), (2, 1, True), (1, 2, False), (2, 2, False)],
)
def test_logits_equal_hugging_face_and_export_is_bit_identical(tmp_path, tp, pp, sequence_parallel):
    folders = [str(save_hf_model(tmp_path / name, family, tied=tied)) for name, (family, tied) in FAMILIES.items()]
    per_rank = run_ranks(_megatron_logits, tp * pp, folders, tp, pp, sequence_parallel)
    for index, folder in enumerate(folders):
        reference = AutoModelForCausalLM.from_pretrained(folder).eval()
        originals = {name: HfWeights(folder).get(name) for name in HfWeights(folder)._where}
        for answers in per_rank:
            logits, exported = answers[index]
            for batch, tokens in zip(logits, (_tokens(3, 17), _tokens(2, 9)), strict=True):
                with torch.no_grad():
                    torch.testing.assert_close(batch, reference(tokens).logits, atol=1e-4, rtol=0)
            assert exported.keys() == originals.keys()
            assert all(torch.equal(exported[name], originals[name]) for name in originals)


def test_weights_of_another_model_are_refused(tmp_path):
    folder = save_hf_model(tmp_path / "model")
    hf = read_hf_config(folder) | {"intermediate_size": 128}
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60
    )
    gpt = build_gpt_model(hf, layout(), mesh, dtype=torch.float32, transformer_engine=False)
    with pytest.raises(ValueError, match="the weights belong to another model"):
        load_weights(gpt, hf, folder, mesh)


def test_a_saved_folder_in_many_shards_loads_in_transformers(tmp_path):
    folder = save_hf_model(tmp_path / "model", tied=True)
    weights = HfWeights(folder)
    stream = ((name, weights.get(name)) for name in weights._where)
    save_folder(tmp_path / "out", stream, read_hf_config(folder), None, shard_gb=5e-5)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    a, b = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "out"))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match="not empty"):
        save_folder(tmp_path / "out", iter([]), {}, None)
