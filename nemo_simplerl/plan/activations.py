"""Activation memory of one rank in bytes, term by term.

After Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198). Its
equations 1 to 4 give a layer's saved activations as s b h (34 + 5 a s / h), cut by tensor (eq. 2) and sequence
parallelism (eq. 4); 5 adds the pipeline's micro-batches, 6 drops the attention term. The 34 belongs to LayerNorm, GELU,
full heads and dropout. Here the model has RMSNorm, a SiLU-gated MLP, grouped queries and no dropout, and attention
never stores its scores, so every term is counted anew; how t, SP, PP and recomputation divide them is the paper's.

Legend: N tokens of a micro-batch (s b), h hidden size, a query heads, g key/value groups, d head size, f MLP width,
V vocabulary, t tensor-parallel size, w bytes of an activation.
"""

from dataclasses import dataclass

from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan.layout import Layout, Sizes
from nemo_simplerl.plan.shapes import attention_width, head_dim, qkv_width, vocab_rows

_GPU_TILE, _CPU_TILE = 2**28, 512 * 1024 * 4  # bytes of the logits that exist at once: parallel/vocab.py


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Micro-batches of `tokens` tokens through a model of `shape`."""

    shape: ModelShape
    tokens: int
    tensor: int
    sequence_parallel: bool
    width: int  # w
    fused: bool

    @property
    def hidden(self) -> int:
        """N h w: hidden states of all tokens on a tensor rank, divided by t under sequence parallelism."""
        return self.whole_hidden // (self.tensor if self.sequence_parallel else 1)

    @property
    def whole_hidden(self) -> int:
        return self.tokens * self.shape.hidden_size * self.width

    @property
    def mlp(self) -> int:
        """N f w / t: the MLP's inner width once."""
        return self.tokens * self.shape.ffn_hidden_size * self.width // self.tensor

    @property
    def gathered(self) -> int:
        """The whole sequence before a linear layer, and its gradient: under sequence parallelism alone."""
        return 2 * self.whole_hidden if self.sequence_parallel and self.tensor > 1 else 0

    def logit_tiles(self, *, update: bool) -> int:
        """A tile of the logits in float32. Fused, an update has its gradient beside it, and a pass without gradients
        nothing; unfused, another tile of its exponentials."""
        tile = min(self.tokens * vocab_rows(self.shape, self.tensor) * 4, _GPU_TILE if self.fused else _CPU_TILE)
        if not self.fused:
            return 2 * tile
        return tile + (tile * self.width // 4 if update else 0)

    @property
    def head_gradients(self) -> int:
        """Float32 sums of the gradients of the responses' hidden states, and of the output layer: 4 h (N + V / t)."""
        return 4 * self.shape.hidden_size * (self.tokens + vocab_rows(self.shape, self.tensor))

    @property
    def table(self) -> int:
        """A gradient of the embedding or the output layer, before it is added to the float32 buffer."""
        return vocab_rows(self.shape, self.tensor) * self.shape.hidden_size * self.width


def saved_norm(of: Pass) -> int:
    """Bytes that an RMSNorm keeps: its input and its output, which is the next linear layer's input: 2 N h w. The local
    one keeps input and normed input in float32 beside the output: N h (8 + w)."""
    return of.hidden * 2 if of.fused else of.hidden * (8 + of.width) // of.width


def saved_layer(of: Pass, recompute: str | None) -> int:
    """Bytes that one layer keeps for its backward pass: two norms, attention and MLP."""
    shape, per_rank = of.shape, of.tokens * of.width // of.tensor
    # Rotated queries (a d) and keys (g d), the fused projection that the values are a view of ((a + 2 g) d), and the
    # output (a d).
    attention = per_rank * (2 * attention_width(shape) + shape.num_query_groups * head_dim(shape) + qkv_width(shape))
    if shape.family.qk_norm:  # the norms' inputs; the local norm's float32 copies too
        heads = (shape.num_attention_heads + shape.num_query_groups) * head_dim(shape)
        attention += heads * of.tokens // of.tensor * (of.width if of.fused else 8)
    if recompute != "selective":
        attention += 4 * of.tokens * shape.num_attention_heads // of.tensor  # log-sum-exp of each query, float32
    # Gate and up projection (2 f) and their product (f); unfused, SiLU of the gate and a copy of the up projection too.
    mlp = of.mlp * (3 if of.fused else 5)
    return 2 * saved_norm(of) + attention + mlp


def backward_work(of: Pass) -> int:
    """Most bytes that the backward pass of a layer holds beside what was saved: the gradients of the residual stream
    and of the branch (2 h), and in the MLP those of its product and of gate and up projection (3 f, while the saved
    product is gone), or before them the gathered gradient (h of the whole sequence) and that of the product (f)."""
    return 2 * of.hidden + max(2 * of.mlp, of.mlp + of.gathered // 2)


def update_activations(layout: Layout, sizes: Sizes, stage: int, *, critic: bool) -> int:
    """Peak of one update's passes on a rank of a pipeline stage, bytes.

    1F1B keeps the activations of pipeline - stage micro-batches (eq. 5). Full recomputation keeps each layer's input,
    N h w, and one layer's activations and its output, computed again, at a time.
    """
    of = pass_of(layout, sizes.micro, critic=critic)
    in_flight = min(layout.pipeline - stage, layout.micro_batches(sizes))
    num_layers = of.shape.num_layers // layout.pipeline
    layer = saved_layer(of, layout.recompute)
    if layout.recompute == "full":
        held, work = in_flight * num_layers * of.hidden, layer + backward_work(of)
    else:
        held, work = in_flight * num_layers * layer, backward_work(of)
    held += rotary_angles(layout)
    if stage < layout.pipeline - 1:
        return held + work + 2 * of.hidden  # the output that is sent to the next stage, and its gradient
    if critic:
        return held + max(work, saved_norm(of))
    if of.shape.tied and stage == 0:
        work += of.table  # waits for the embedding's part of the same gradient
    cast = 0 if of.width == 4 else of.table
    return held + max(
        work, saved_norm(of) + of.whole_hidden + of.head_gradients + max(of.logit_tiles(update=True), cast)
    )


def forward_activations(layout: Layout, micro: int, stage: int, *, critic: bool) -> int:
    """Peak of a pass without gradients: residual stream and norm (2 h) and the MLP's inner tensors of one layer, or
    tiles of the logits. The first stage holds the embeddings too, in two orders of their axes (2 h). The gathered
    sequence is there while gate and up projection (2 f) are made, not later."""
    of = pass_of(layout, micro, critic=critic)
    inner = max(of.mlp * (3 if of.fused else 5), of.mlp * 2 + of.gathered // 2)
    work = (4 if stage == 0 else 2) * of.hidden + inner
    if stage == layout.pipeline - 1 and not critic:
        work = max(work, 2 * of.whole_hidden + of.logit_tiles(update=False))
    return work + rotary_angles(layout)


def rotary_angles(layout: Layout) -> int:
    """Float32 angles of the longest sequence, which Megatron keeps in each of the two models."""
    return 2 * layout.max_tokens * head_dim(layout.shape) * 4


def pass_of(layout: Layout, micro: int, *, critic: bool) -> Pass:
    return Pass(
        shape=layout.shape_of(critic=critic),
        tokens=micro * layout.max_tokens,
        tensor=layout.tensor,
        sequence_parallel=layout.sequence_parallel,
        width=layout.param_bytes,
        fused=layout.fused,
    )
