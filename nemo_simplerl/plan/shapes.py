"""Sizes of well-known models, and the number of parameters that a rank holds.

Legend: L layers, h hidden size, a query heads, g key/value groups, d head size, f MLP width, V vocabulary,
t tensor-parallel size.
"""

from nemo_simplerl.config.shape import ModelShape

# name: L, h, a, g, f, V, positions, tied, d (None: h / a), from the published config.json.
_SIZES: dict[str, tuple[int, int, int, int, int, int, int, bool, int | None]] = {
    "Qwen2.5-0.5B": (24, 896, 14, 2, 4864, 151936, 32768, True, None),
    "Qwen2.5-1.5B": (28, 1536, 12, 2, 8960, 151936, 131072, True, None),
    "Qwen2.5-3B": (36, 2048, 16, 2, 11008, 151936, 32768, True, None),
    "Qwen2.5-7B": (28, 3584, 28, 4, 18944, 152064, 131072, False, None),
    "Qwen2.5-14B": (48, 5120, 40, 8, 13824, 152064, 131072, False, None),
    "Qwen2.5-32B": (64, 5120, 40, 8, 27648, 152064, 131072, False, None),
    "Qwen2.5-72B": (80, 8192, 64, 8, 29568, 152064, 131072, False, None),
    "Qwen2.5-Math-1.5B": (28, 1536, 12, 2, 8960, 151936, 4096, True, None),
    "Qwen2.5-Math-7B": (28, 3584, 28, 4, 18944, 152064, 4096, False, None),
    "Qwen3-0.6B": (28, 1024, 16, 8, 3072, 151936, 40960, True, 128),
    "Qwen3-1.7B": (28, 2048, 16, 8, 6144, 151936, 40960, True, 128),
    "Qwen3-4B": (36, 2560, 32, 8, 9728, 151936, 40960, True, 128),
    "Qwen3-8B": (36, 4096, 32, 8, 12288, 151936, 40960, False, 128),
    "Qwen3-14B": (40, 5120, 40, 8, 17408, 151936, 40960, False, 128),
    "Qwen3-32B": (64, 5120, 64, 8, 25600, 151936, 40960, False, 128),
    "Llama-3.2-1B": (16, 2048, 32, 8, 8192, 128256, 131072, True, 64),
    "Llama-3.2-3B": (28, 3072, 24, 8, 8192, 128256, 131072, True, 128),
    "Llama-3.1-8B": (32, 4096, 32, 8, 14336, 128256, 131072, False, None),
    "Llama-3.1-70B": (80, 8192, 64, 8, 28672, 128256, 131072, False, None),
}
_FAMILY_OF_PREFIX = {"Qwen2.5": "qwen2", "Qwen3": "qwen3", "Llama": "llama"}
PRESETS = {
    name: ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=ffn,
        vocab_size=vocab,
        max_position_embeddings=positions,
        tied=tied,
        head_dim=head_dim,
        model_type=_FAMILY_OF_PREFIX[name.split("-")[0]],
    )
    for name, (layers, hidden, heads, groups, ffn, vocab, positions, tied, head_dim) in _SIZES.items()
}


def head_dim(shape: ModelShape) -> int:
    return shape.head_dim or shape.hidden_size // shape.num_attention_heads


def attention_width(shape: ModelShape) -> int:
    """Width of the queries of one token, and of the attention's output: a d."""
    return shape.num_attention_heads * head_dim(shape)


def qkv_width(shape: ModelShape) -> int:
    """Width of one token's query, key and value together: (a + 2 g) d."""
    return (shape.num_attention_heads + 2 * shape.num_query_groups) * head_dim(shape)


def vocab_rows(shape: ModelShape, tensor_size: int) -> int:
    """Rows of the embedding on one tensor rank; the last are padding."""
    return -(-shape.vocab_size // tensor_size)


def layer_parameters(shape: ModelShape, tensor_size: int) -> int:
    """Parameters of one layer on one tensor rank: norms are replicated, all else is split."""
    hidden, qkv = shape.hidden_size, qkv_width(shape)
    split = qkv * hidden + hidden * attention_width(shape) + 3 * shape.ffn_hidden_size * hidden
    replicated = 2 * hidden
    if shape.family.qkv_bias:
        split += qkv
    if shape.family.qk_norm:
        replicated += 2 * head_dim(shape)
    return split // tensor_size + replicated


def rank_parameters(
    shape: ModelShape, tensor_size: int = 1, pipeline_size: int = 1, stage: int = 0, *, critic: bool = False
) -> int:
    """Parameters on one rank of a pipeline stage. The last of several stages holds a copy of tied embeddings."""
    is_first, is_last = stage == 0, stage == pipeline_size - 1
    table = vocab_rows(shape, tensor_size) * shape.hidden_size
    count = shape.num_layers // pipeline_size * layer_parameters(shape, tensor_size)
    count += table if is_first else 0
    if is_last:
        count += shape.hidden_size  # the final norm
        if critic:
            count += shape.hidden_size  # the value head
        elif not shape.tied or not is_first:
            count += table
    return count


def largest_tensor(shape: ModelShape) -> int:
    """Elements of the largest full parameter."""
    return shape.hidden_size * max(shape.vocab_size, 2 * shape.ffn_hidden_size)
