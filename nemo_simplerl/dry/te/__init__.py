"""A double of Transformer Engine: the interface that Megatron-core 0.16 uses, with its allocations, what it keeps for
the backward pass and what it demands of its arguments, and none of its kernels. `contract` holds it to the sources."""
