"""The config classes of NeMo 2 that describe models of our families, with their defaults.

`io.json` holds the arguments that were given and no others, so a folder may say `Qwen25Config7B` and no size at all.
From nemo-toolkit 2.7.3: nemo/collections/llm/gpt/model/{base,llama,qwen2,qwen3,mistral}.py. What has experts is left
out.
"""

from typing import Any

# GPTConfig, and of Megatron-core's TransformerConfig what decides a model.
_GPT = {
    "normalization": "LayerNorm",
    "activation_func": "gelu",
    "gated_linear_unit": False,
    "add_bias_linear": True,
    "add_qkv_bias": False,
    "qk_layernorm": False,
    "layernorm_epsilon": 1e-5,
    "position_embedding_type": "learned_absolute",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "seq_length": 1024,
    "share_embeddings_and_output_weights": True,
    "init_method_std": 0.02,
}
_OURS = {
    "normalization": "RMSNorm",
    "activation_func": "silu",
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "share_embeddings_and_output_weights": False,
}
_QWEN2 = {"add_qkv_bias": True, "layernorm_epsilon": 1e-6, "rotary_base": 1000000.0, "vocab_size": 151936}
_QWEN3 = {"add_qkv_bias": False, "qk_layernorm": True, "kv_channels": 128, "num_query_groups": 8}
_LLAMA31 = {"scale_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "old_context_len": 8192}
_TIED = {"share_embeddings_and_output_weights": True}


def _sizes(layers: int, hidden: int, ffn: int, heads: int, groups: int | None = None) -> dict[str, int]:
    sizes = {"num_layers": layers, "hidden_size": hidden, "ffn_hidden_size": ffn, "num_attention_heads": heads}
    return sizes if groups is None else sizes | {"num_query_groups": groups}


_LONG, _500K = {"seq_length": 131072}, {"rotary_base": 500_000}
_MISTRAL_NEMO = {"window_size": None, "rotary_base": 1000000.0, "kv_channels": 128, "seq_length": 4096}
# Class: the class it extends, and what it changes.
_CLASSES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "GPTConfig": (None, _GPT),
    "LlamaConfig": ("GPTConfig", _OURS | {"seq_length": 4096}),
    "Llama2Config7B": ("LlamaConfig", _sizes(32, 4096, 11008, 32, 32)),
    "Llama2Config13B": ("LlamaConfig", _sizes(40, 5120, 13824, 40, 40)),
    "Llama2Config70B": ("LlamaConfig", _sizes(80, 8192, 28672, 64, 8)),
    "Llama3Config": ("LlamaConfig", {"num_query_groups": 8, "init_method_std": 0.01}),
    "Llama3Config8B": ("Llama3Config", _sizes(32, 4096, 14336, 32) | _500K | {"seq_length": 8192}),
    "Llama3Config70B": (
        "Llama3Config",
        _sizes(80, 8192, 28672, 64) | _500K | {"seq_length": 8192, "init_method_std": 0.008944},
    ),
    "Llama31Config": ("Llama3Config", _LLAMA31 | {"init_method_std": 0.02}),
    "Llama31Config8B": ("Llama31Config", _sizes(32, 4096, 14336, 32) | _500K | _LONG),
    "Llama31Config70B": ("Llama31Config", _sizes(80, 8192, 28672, 64) | _500K | _LONG),
    "Llama31Config405B": ("Llama31Config", _sizes(126, 16384, 53248, 128) | _500K | _LONG),
    "Llama32Config1B": (
        "Llama31Config",
        _sizes(16, 2048, 8192, 32, 8) | _500K | _LONG | _TIED | {"scale_factor": 32.0},
    ),
    "Llama32Config3B": (
        "Llama31Config",
        _sizes(28, 3072, 8192, 24, 8) | _500K | _LONG | _TIED | {"scale_factor": 32.0},
    ),
    "CodeLlamaConfig7B": ("Llama2Config7B", {"rotary_base": 1000000, "seq_length": 16384}),
    "CodeLlamaConfig13B": ("Llama2Config13B", {"rotary_base": 1000000, "seq_length": 16384}),
    "CodeLlamaConfig34B": (
        "LlamaConfig",
        _sizes(48, 8192, 22016, 64, 8) | {"rotary_base": 1000000, "seq_length": 16384},
    ),
    "CodeLlamaConfig70B": ("Llama2Config70B", {}),
    "Qwen2Config": ("GPTConfig", _OURS | _QWEN2 | {"seq_length": 4096}),
    "Qwen2Config500M": ("Qwen2Config", _sizes(24, 896, 4864, 14, 2)),
    "Qwen25Config500M": ("Qwen2Config500M", {"seq_length": 32768}),
    "Qwen2Config1P5B": ("Qwen2Config", _sizes(28, 1536, 8960, 12, 2)),
    "Qwen25Config1P5B": ("Qwen2Config1P5B", _LONG),
    "Qwen25Config3B": ("Qwen2Config", _sizes(36, 2048, 11008, 16, 2) | _TIED),
    "Qwen2Config7B": ("Qwen2Config", _sizes(28, 3584, 18944, 28, 4) | {"vocab_size": 152064}),
    "Qwen25Config7B": ("Qwen2Config7B", _LONG),
    "Qwen25Config14B": (
        "Qwen2Config",
        _sizes(48, 5120, 13824, 40, 8) | _LONG | {"vocab_size": 152064, "layernorm_epsilon": 1e-5},
    ),
    "Qwen25Config32B": (
        "Qwen2Config",
        _sizes(64, 5120, 27648, 40, 8) | _LONG | {"vocab_size": 152064, "layernorm_epsilon": 1e-5},
    ),
    "Qwen2Config72B": (
        "Qwen2Config",
        _sizes(80, 8192, 29568, 64, 8) | {"vocab_size": 152064, "layernorm_epsilon": 1e-5},
    ),
    "Qwen25Config72B": ("Qwen2Config72B", _LONG),
    "Qwen3Config": ("Qwen2Config", _QWEN3),
    "Qwen3Config600M": ("Qwen3Config", _sizes(28, 1024, 3072, 16) | _TIED),
    "Qwen3Config1P7B": ("Qwen3Config", _sizes(28, 2048, 6144, 16) | _TIED),
    "Qwen3Config4B": ("Qwen3Config", _sizes(36, 2560, 9728, 32) | _TIED),
    "Qwen3Config8B": ("Qwen3Config", _sizes(36, 4096, 12288, 32)),
    "Qwen3Config14B": ("Qwen3Config", _sizes(40, 5120, 17408, 40)),
    "Qwen3Config32B": ("Qwen3Config", _sizes(64, 5120, 25600, 64)),
    "MistralConfig7B": (
        "GPTConfig",
        _OURS | _sizes(32, 4096, 14336, 32, 8) | {"seq_length": 32768, "window_size": [4096, 0]},
    ),
    "MistralNeMoConfig12B": ("MistralConfig7B", _MISTRAL_NEMO | _sizes(40, 5120, 14336, 32)),
    "MistralNeMoConfig123B": ("MistralConfig7B", _MISTRAL_NEMO | _sizes(88, 12288, 28672, 96)),
    "MistralSmall3Config24B": (
        "MistralConfig7B",
        _MISTRAL_NEMO | _sizes(40, 5120, 32768, 32) | {"seq_length": 32768, "rotary_base": 100000000.0},
    ),
}


def defaults_of(class_name: str) -> dict[str, Any]:
    """The settings of a config class where no argument was given; empty for a class that is not in the table."""
    base, changes = _CLASSES.get(class_name, (None, {}))
    return (defaults_of(base) if base else {}) | changes
