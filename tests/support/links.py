"""Faults between trainer and engine: weights that are damaged in a refit."""

import torch


class Linked:
    """An engine that receives each bucket of a refit as `fault(bucket, number)` changes it."""

    def __init__(self, engine, fault):
        self.engine, self.fault = engine, fault

    @property
    def weight_version(self):
        return self.engine.weight_version

    def refit(self, buckets, version, *, digests=False):
        received = ([*self.fault(bucket, number)] for number, bucket in enumerate(buckets))
        return self.engine.refit(received, version, digests=digests)

    def invalidate(self, reason):
        self.engine.invalidate(reason)


def on(wanted, change):
    """A fault that replaces the tensor named `wanted` by the (name, tensor) pairs of `change(name, tensor)`."""

    def fault(bucket, number):
        for name, tensor in bucket:
            yield from change(name, tensor) if name == wanted else [(name, tensor)]

    return fault


def flipped(tensor, bit=17):
    """A copy of the tensor with one bit flipped."""
    changed = tensor.clone()
    changed.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    return changed
