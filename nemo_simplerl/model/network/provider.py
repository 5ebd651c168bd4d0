"""A Megatron-core GPTModel from a Hugging Face config.json."""

import functools
import json
import logging
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_simplerl.config.families import check_hf_config, family_of
from nemo_simplerl.config.rules.machine import ATTENTION_SWITCHES, attention_chosen, why_not_compile
from nemo_simplerl.config.schema import ActorConfig, ModelConfig
from nemo_simplerl.model.hf_map import heads_of, mapping
from nemo_simplerl.model.network.local_layers import RmsNorm, SdpaAttention
from nemo_simplerl.model.network.rope import rope_frequencies
from nemo_simplerl.model.network.value_head import ValueHead
from nemo_simplerl.parallel.mesh import Mesh
from nemo_simplerl.user_files import read_text

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}  # by model.precision


def read_hf_config(path: str | Path) -> dict:
    """config.json of a Hugging Face folder, in the form of transformers 4.

    Raises ValueError for one that families.check_hf_config refuses.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} holds no config.json; give a Hugging Face model folder.")
    return check_hf_config(json.loads(read_text(file)), file)


def use_transformer_engine(wanted: bool | None, dtype: torch.dtype) -> bool:
    """Whether to build Transformer Engine layers. Raises ValueError where they are asked for and cannot run.

    wanted None is no for float32: their products would be TF32, and in it they cannot attend to packed rows.
    """
    if wanted is False or not torch.cuda.is_available() or (wanted is None and dtype != torch.bfloat16):
        if wanted:
            raise ValueError("model.transformer_engine=true needs a GPU, and none is visible; set it to null or false.")
        return False
    try:
        import transformer_engine.pytorch  # noqa: F401
    except ImportError as error:
        if wanted:
            raise ValueError(f"model.transformer_engine=true, but it does not import: {error}") from error
        return False
    return True


def attention_backend(environ: MutableMapping[str, str]) -> AttnBackend:
    """The attention that NVTE_FLASH_ATTN=0 and its like leave to Transformer Engine, for Megatron to be told.

    Megatron enters these variables itself and stops at a value that it does not expect, whatever its layers are: they
    are taken out of `environ`. Local layers ask none of them; that Transformer Engine's are left something is a rule in
    rules/machine.py.
    """
    chosen = attention_chosen(environ)
    for name in ATTENTION_SWITCHES:
        environ.pop(name, None)
    return AttnBackend[chosen or "auto"]


def kernel_options(model: ModelConfig, *, transformer_engine: bool) -> dict[str, Any]:
    """Fields of TransformerConfig that `model` chooses: fused kernels and FP8."""
    rope = model.apply_rope_fusion
    return {
        "apply_rope_fusion": transformer_engine if rope is None else rope,
        "gradient_accumulation_fusion": model.gradient_accumulation_fusion,
        "fp8": model.fp8,
        "fp8_recipe": model.fp8_recipe,
    }


def transformer_config(
    hf: dict,
    layout: ActorConfig,
    *,
    dtype: torch.dtype,
    on_gpu: bool,
    transformer_engine: bool = False,
    deterministic: bool = False,
    kernels: Mapping[str, Any] | None = None,
    attention: AttnBackend = AttnBackend.auto,
) -> TransformerConfig:
    """Megatron's config for an HF config and a parallel layout. Fusions that need CUDA kernels follow `on_gpu`.

    kernels: see `kernel_options`; None fuses and quantises nothing.
    """
    heads, family = heads_of(hf), family_of(hf)
    fuses = on_gpu and _can_fuse()
    return TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=heads.num_heads,
        num_query_groups=heads.num_groups,
        kv_channels=heads.head_dim,
        qk_layernorm=family.qk_norm,
        layernorm_epsilon=hf["rms_norm_eps"],
        normalization="RMSNorm",
        add_bias_linear=False,
        add_qkv_bias=family.qkv_bias,
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        context_parallel_size=layout.context_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        recompute_granularity=layout.recompute_granularity,
        recompute_method="uniform" if layout.recompute_granularity == "full" else None,
        recompute_num_layers=1 if layout.recompute_granularity == "full" else None,
        # Every weight is loaded right after construction.
        perform_initialization=False,
        use_cpu_initialization=not on_gpu,
        # Micro-batches are trimmed to their own longest sequence, so pipeline stages exchange shapes.
        variable_seq_lengths=layout.pipeline_model_parallel_size > 1,
        moe_token_dispatcher_type="alltoall",  # unused without experts; the default refuses exchanged shapes
        batch_p2p_comm=on_gpu,
        batch_p2p_sync=on_gpu,
        # The loss arrives as a sum already divided by the global count: neither micro-batches nor DP divide again.
        calculate_per_token_loss=True,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        bias_activation_fusion=fuses,
        bias_dropout_fusion=fuses,
        deterministic_mode=deterministic and on_gpu,
        attention_backend=attention,
        transformer_impl="transformer_engine" if transformer_engine else "local",
        **(kernels or {}),
    )


@functools.cache  # so that it is said once
def _can_fuse() -> bool:
    reason = why_not_compile()
    if reason is not None:
        log.warning(
            "elementwise kernels, SwiGLU's and the output layer's among them, are not fused (torch.compile): steps are "
            f"slower, and activations take more memory than with them. {reason}."
        )
    return reason is None


def padded_vocab_size(vocab_size: int, tensor_parallel_size: int) -> int:
    """The vocabulary rounded up so that every tensor rank holds as many rows. Padding rows are zero, never sampled."""
    return -(-vocab_size // tensor_parallel_size) * tensor_parallel_size


class _Trunk(GPTModel):
    """A GPTModel that leaves the output layer to `head`: all logits at once would be the largest tensor of a step."""

    def _postprocess(self, hidden_states, **_):
        return hidden_states


def build_gpt_model(
    hf: dict,
    layout: ActorConfig,
    mesh: Mesh,
    *,
    dtype: torch.dtype,
    transformer_engine: bool,
    critic_seed: int | None = None,
    deterministic: bool = False,
    kernels: Mapping[str, Any] | None = None,
) -> GPTModel:
    """The layers of this rank's pipeline stage, uninitialised. With `critic_seed` the last stage has a ValueHead.

    Every pipeline stage returns hidden states in Megatron's layout, [S, B, H]; `head` computes log-probabilities or
    values from those of the last stage.
    """
    config = transformer_config(
        hf,
        layout,
        dtype=dtype,
        on_gpu=mesh.device.type == "cuda",
        transformer_engine=transformer_engine,
        deterministic=deterministic,
        kernels=kernels,
        attention=attention_backend(os.environ),
    )
    is_critic = critic_seed is not None
    gpt = _Trunk(
        config=config,
        transformer_layer_spec=_layer_spec(config, mesh.pp_rank),
        vocab_size=padded_vocab_size(hf["vocab_size"], mesh.tp_size),
        max_sequence_length=hf["max_position_embeddings"],
        pre_process=mesh.is_first_stage,
        post_process=mesh.is_last_stage,
        parallel_output=True,
        share_embeddings_and_output_weights=hf.get("tie_word_embeddings", False) and not is_critic,
        position_embedding_type="rope",
        pg_collection=mesh.collection,
    )
    gpt.is_critic = is_critic  # only the last stage has the layer that would show it
    gpt.rotary_pos_emb.inv_freq = rope_frequencies(hf).to(mesh.device)
    if is_critic and mesh.is_last_stage:
        gpt.output_layer = ValueHead(
            hf["hidden_size"],
            sequence_parallel=layout.sequence_parallel,
            tensor_group=mesh.tensor,
            generator=torch.Generator().manual_seed(critic_seed),
            device=mesh.device,
        )
    _mark_sharded_weights(gpt)
    return gpt.to(mesh.device)


def _mark_sharded_weights(gpt: GPTModel) -> None:
    """Mark the weights that are sharded over tensor ranks: the gradient norm counts the others once.

    Megatron's layers mark them only as a part of their initialisation, which is skipped here.
    """
    for name, param in gpt.named_parameters():
        tp_dim = mapping(name, critic=gpt.is_critic).tp_dim
        if tp_dim is not None and not getattr(param, "tensor_model_parallel", False):
            set_tensor_model_parallel_attributes(param, is_parallel=True, dim=tp_dim, stride=1)


def _layer_spec(config: TransformerConfig, pp_rank: int):
    if config.transformer_impl == "transformer_engine":
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = RmsNorm
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = SdpaAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    num_layers = get_num_layers_to_build(config, pp_rank=pp_rank)
    return TransformerBlockSubmodules(layer_specs=[spec] * num_layers, layer_norm=RmsNorm)
