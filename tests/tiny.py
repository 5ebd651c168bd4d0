"""Small models and layouts that many tests share."""

from pathlib import Path

import torch
from nemo_simplerl.config.schema import ActorConfig, OptimConfig

OPTIM = OptimConfig(
    lr=1e-3,
    min_lr=1e-4,
    lr_decay_style="constant",
    lr_warmup_fraction=0.0,
    weight_decay=0.0,
    adam_beta1=0.9,
    adam_beta2=0.95,
    adam_eps=1e-8,
    clip_grad=1.0,
)


def layout(tp: int = 1, pp: int = 1, **changes) -> ActorConfig:
    values = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": 1,
        "sequence_parallel": False,
        "use_distributed_optimizer": False,
        "recompute_granularity": None,
        "micro_batch_size": 4,
        "forward_micro_batch_size": 4,
        "global_batch_size": 8,
        "optim": OPTIM,
    }
    return ActorConfig(**(values | changes))


def save_hf_model(folder: Path, family: str = "qwen2", *, tied: bool = False, vocab_size: int = 131, seed: int = 0) -> Path:
    """A random fp32 model of 4 layers in Hugging Face form, biases and norms random too."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    config_class = {"qwen2": Qwen2Config, "llama": LlamaConfig}[family]
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_theta=10000.0,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    for name, param in model.named_parameters():
        if param.ndim == 1:
            param.data += torch.randn_like(param) * 0.1
        else:
            param.data = torch.randn_like(param) * 0.08 if "embed" in name else torch.randn_like(param) / 8
    model.save_pretrained(folder)
    return folder
