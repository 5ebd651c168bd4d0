"""Logits of the Megatron model against Hugging Face's, for every family and layout; export returns the same bits."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemo_simplerl.model.network import head
from nemo_simplerl.model.network.pipeline import TokenBatch, forward_only
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from support.forms import exported
from support.ranks import run_ranks
from support.tiny import layout, save_hf_model

FAMILIES = {
    "qwen2_tied": ("qwen2", True),
    "qwen2_untied": ("qwen2", False),
    "qwen3_tied": ("qwen3", True),
    "qwen3_untied": ("qwen3", False),
    "llama": ("llama", False),
    "llama3_rope": ("llama3_rope", False),
    "mistral_window": ("mistral_window", False),  # longer than any sequence here
    "mistral_heads": ("mistral_heads", False),
    "deepseek_math": ("deepseek_math", False),
}
# The first is longer than the 32 tokens from which llama3_rope is stretched.
MICRO_BATCHES = [(3, 41), (2, 9)]


def _tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 131, (rows, length), generator=torch.Generator().manual_seed(1))


def _megatron_logits(folders: list[str], tp: int, pp: int, sequence_parallel: bool):
    """Logits [B, S, V] of two micro-batches of different length, and the exported tensors, per folder."""
    mesh = build_mesh(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, context_parallel_size=1, timeout_s=60
    )
    answers = []
    for folder in folders:
        source = open_source(folder)
        hf = source.hf
        plan = layout(tp, pp, sequence_parallel=sequence_parallel)
        gpt = build_gpt_model(hf, plan, mesh, dtype=torch.float32, transformer_engine=False)
        load_weights(gpt, source, mesh)

        def logits_of(hidden_SBH, micro_batch, gpt=gpt, vocab_size=hf["vocab_size"]):
            output_SBV = head.output(gpt, hidden_SBH)
            shards = [torch.empty_like(output_SBV) for _ in range(mesh.tp_size)]
            torch.distributed.all_gather(shards, output_SBV.contiguous(), group=mesh.tensor)
            rows, length = micro_batch.tokens_BS.shape
            return torch.cat(shards, -1)[:length, :, :vocab_size].transpose(0, 1).contiguous()

        batches = [TokenBatch(_tokens(*shape)) for shape in MICRO_BATCHES]
        logits = forward_only(gpt, batches, logits_of, mesh)
        answers.append((logits, exported(gpt, hf, mesh)))
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
        originals = load_file(f"{folder}/model.safetensors")
        for answers in per_rank:
            logits, tensors = answers[index]
            for batch, shape in zip(logits, MICRO_BATCHES, strict=True):
                with torch.no_grad():
                    torch.testing.assert_close(batch, reference(_tokens(*shape)).logits, atol=1e-5, rtol=0)
            assert tensors.keys() == originals.keys()
            assert all(torch.equal(tensors[name], originals[name]) for name in originals)
