"""Rules of `model`: its kernels, the sizes of a created one, and the positions that a rollout needs."""

from collections.abc import Iterator

from nemo_simplerl.config.rules.numbers import near_divisors, near_multiples
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape


def transformer_engine_is_for_bf16(config: Config) -> Iterator[str]:
    model = config.model
    asked = {
        "transformer_engine=true": model.transformer_engine,
        "apply_rope_fusion=true": model.apply_rope_fusion,
        f"fp8={model.fp8}": model.fp8,
    }
    for setting in (name for name, value in asked.items() if value and model.precision != "bf16"):
        yield (
            f"model.{setting} is for bfloat16, and model.precision={model.precision}: Transformer Engine's products of "
            "float32 tensors are TF32, and its attention takes none in packed rows. Set model.precision=bf16, or leave "
            "it at null."
        )


def created_attention_fits(config: Config) -> Iterator[str]:
    create = config.model.create
    if create is None:
        return
    hidden, heads, groups = create.hidden_size, create.num_attention_heads, create.num_query_groups
    if hidden % (2 * heads):
        yield (
            f"model.create.hidden_size={hidden} does not split into an even width for each of "
            f"model.create.num_attention_heads={heads} (rotary embeddings pair the dimensions). "
            f"Use a multiple of {2 * heads}, such as {near_multiples(2 * heads, hidden)}."
        )
    if heads % groups:
        yield (
            f"model.create.num_query_groups={groups} does not divide "
            f"model.create.num_attention_heads={heads}. Use one of {near_divisors(heads, groups)}."
        )


def rollout_fits_the_model(config: Config, shape: ModelShape, whose: str = "model") -> Iterator[str]:
    prompt, response = config.rollout.max_prompt_tokens, config.rollout.max_response_tokens
    limit = shape.longest_sequence
    if prompt + response > limit:
        fits = f"a response of {limit - prompt} or less" if prompt < limit else "a shorter prompt"
        yield (
            f"rollout.max_prompt_tokens={prompt} + rollout.max_response_tokens={response} "
            f"= {prompt + response}, but the {whose}'s {limiting_key(shape)} is {limit}. "
            f"Use {fits}, or a {whose} with more positions."
        )


def limiting_key(shape: ModelShape) -> str:
    """The key of config.json that bounds the length of a sequence."""
    return "sliding_window" if shape.longest_sequence < shape.max_position_embeddings else "max_position_embeddings"
