"""Kernel options: the fields of Megatron's config that they set, and rows padded to the sizes that FP8 accepts."""

import functools
from dataclasses import dataclass, replace

import pytest
import torch

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.rules import machine
from nemo_simplerl.model.network import head, provider
from nemo_simplerl.model.network.pipeline import TokenBatch, forward_only
from nemo_simplerl.model.network.provider import build_gpt_model, kernel_options, transformer_config
from nemo_simplerl.model.sharding.load import load_weights
from nemo_simplerl.model.source import open_source
from nemo_simplerl.parallel.mesh import build_mesh
from support.ranks import run_ranks
from support.tiny import layout, save_hf_model


def test_rope_is_fused_with_transformer_engine_unless_it_is_said_otherwise():
    model = compose(["experiment=quickstart"]).model
    chosen = {
        asked: [
            kernel_options(replace(model, apply_rope_fusion=asked), transformer_engine=there)["apply_rope_fusion"]
            for there in (False, True)
        ]
        for asked in (None, False, True)
    }
    assert chosen == {None: [False, True], False: [False, False], True: [True, True]}


def test_a_gpu_without_a_c_compiler_trains_unfused_and_says_so_once(monkeypatch, caplog):
    hf = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 16}
    hf |= {"model_type": "qwen2", "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "max_position_embeddings": 16}

    def fused():
        config = transformer_config(hf, layout(), dtype=torch.bfloat16, on_gpu=True)
        return config.bias_activation_fusion, config.bias_dropout_fusion

    found = []
    for compiler in ("/usr/bin/gcc", None):
        monkeypatch.setattr(machine, "c_compiler", lambda compiler=compiler: compiler)
        monkeypatch.setattr(provider, "_can_fuse", functools.cache(provider._can_fuse.__wrapped__))
        found.append([fused(), fused()])
    assert found == [[(True, True)] * 2, [(False, False)] * 2]
    assert caplog.text.count("are not fused (torch.compile)") == caplog.text.count("apt install gcc python3-dev") == 1
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert machine.why_not_compile() == "TORCHDYNAMO_DISABLE=1 is set: unset it"


@dataclass
class PackedRow:
    """A micro-batch of one packed row: sequences end to end."""

    tokens_BS: torch.Tensor
    lengths_B: torch.Tensor
    is_packed: bool = True


def _answers(folder: str, tp: int, kernels: dict) -> tuple[list[int], list[torch.Tensor]]:
    """Widths of the rows that the model was given, and for each micro-batch a sum of logits at every token."""
    mesh = build_mesh(
        tensor_model_parallel_size=tp, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60
    )
    source = open_source(folder)
    plan = layout(tp, sequence_parallel=tp > 1)
    gpt = build_gpt_model(source.hf, plan, mesh, dtype=torch.float32, transformer_engine=False, kernels=kernels)
    load_weights(gpt, source, mesh)
    widths = []
    gpt.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[1]))

    def sums(hidden_SBH, micro):
        output_SBV = head.output(gpt, hidden_SBH).float()
        return output_SBV[: micro.tokens_BS.shape[1], :, :60].sum(-1).T.contiguous()

    tokens_BS = torch.arange(74).view(2, 37)
    row = PackedRow(torch.arange(74).view(1, 74), torch.tensor([40, 3, 31]))
    return widths, forward_only(gpt, [TokenBatch(tokens_BS), row], sums, mesh)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize(("recipe", "unit"), [("tensorwise", 16), ("mxfp8", 32)])
def test_rows_are_padded_to_what_fp8_takes_and_answer_the_same(tmp_path, tp, recipe, unit):
    folder = str(save_hf_model(tmp_path / "model"))
    plain = run_ranks(_answers, tp, folder, tp, {})
    aligned = run_ranks(_answers, tp, folder, tp, {"fp8": "hybrid", "fp8_recipe": recipe})
    for (_, expected), (widths, found) in zip(plain, aligned, strict=True):
        assert all(width % (unit * tp) == 0 for width in widths) and widths[0] >= 37 and widths[1] >= 74
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
