"""Links between sender and engine that damage what they carry."""

import torch


class Linked:
    """An engine at the end of a link that `fault`, a function of one bucket's tensors and their number, may break."""

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
    """A fault of the tensor named `wanted`, which becomes the pairs that `change` makes of it."""

    def fault(bucket, number):
        for name, tensor in bucket:
            yield from change(name, tensor) if name == wanted else [(name, tensor)]

    return fault


def flipped(tensor, bit=17):
    changed = tensor.clone()
    changed.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8
    return changed
