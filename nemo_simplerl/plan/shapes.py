"""Widths of a model, and the number of parameters that a rank holds.

Legend: L layers, h hidden size, a query heads, g key/value groups, d head size, f MLP width, V vocabulary,
t tensor-parallel size.
"""

from nemo_simplerl.config.shape import ModelShape


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
