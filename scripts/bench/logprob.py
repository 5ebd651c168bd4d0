"""Log-probability and entropy from tiles of logits, beside the dense way. Prints one JSON line.

usage: python scripts/bench/logprob.py [--tokens N] [--vocab N] [--hidden N] [--repeats N] [--threads N]
                                       [--tile TOKENS COLUMNS]

`tiled` is parallel.vocab's linear_logprob_entropy; `dense` makes all logits, their log-softmax and its entropy. Both in
float32, on the same hidden states, weight and gradients of the two outputs; the logits have a standard deviation of 3.
`tiled_4x` is `tiled` with four times the tokens.

`extra_mb` (of 10**6 bytes) counts every tensor of a pass, temporaries within operators too: `forward` without
gradients, `forward_backward` with both outputs' gradients taken to hidden states and weight. It is the most that is
alive at once beyond the inputs; of forward_backward the two gradients themselves are left out too. (The dense way makes
them last, so they are taken off a peak that holds one of them at most: its figure is too low, if anything.)
`growth_per_token` is what `tiled_4x` takes above `tiled`, in bytes of each further token; a row of hidden states has
4 x hidden bytes. Below the tokens of a tile (512 on a CPU) tiles grow with them. On a GPU the peaks are those of
torch's allocator.

`largest_difference`, over the first 96 tokens at most: of each way from the dense one in float64, and of `tiled` from
`dense`; in nats of log-probability and entropy, and of each gradient as a share of its largest entry. `seconds` are
medians of passes forward and backward; the ways take turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nemo_simplerl.parallel.vocab import linear_logprob_entropy

LOGIT_STD = 3.0
COMPARED = 96  # tokens
# hidden [N, H], weight [V, H], targets [N], gradients of the two outputs [2, N]
Given = tuple[Tensor, Tensor, Tensor, Tensor]
Way = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tile = tuple(args.tile) if args.tile else None

    def tiled(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprob_entropy(
            hidden_NH, weight_VH, targets_N, group=None, vocab_size=weight_VH.shape[0], tile=tile
        )

    given = random_inputs(args.tokens, args.vocab, args.hidden, device)
    more = random_inputs(4 * args.tokens, args.vocab, args.hidden, device)
    extra = {
        name: extra_bytes(way, inputs)
        for name, way, inputs in (("tiled", tiled, given), ("tiled_4x", tiled, more), ("dense", dense, given))
    }
    del more
    growth = {name: (extra["tiled_4x"][name] - extra["tiled"][name]) / (3 * args.tokens) for name in extra["tiled"]}
    seconds: dict[str, list[float]] = {"tiled": [], "dense": []}
    for _ in range(args.repeats):
        for name, way in (("tiled", tiled), ("dense", dense)):
            seconds[name].append(seconds_of(lambda way=way: gradients(way, given), device))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        json.dumps(
            {
                "bench": "logprob",
                "device": str(device),
                "threads": torch.get_num_threads(),
                **{name: getattr(args, name) for name in ("tokens", "vocab", "hidden")},
                "tile": tile,
                "extra_mb": {
                    way: {name: round(size / 1e6, 2) for name, size in of.items()} for way, of in extra.items()
                },
                "growth_per_token": {name: round(size, 1) for name, size in growth.items()},
                "largest_difference": largest_differences(tiled, given),
                "seconds": {name: round(value, 4) for name, value in medians.items()},
                "dense_over_tiled": round(medians["dense"] / medians["tiled"], 3),
                "all_seconds": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
            }
        )
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--vocab", type=int, default=152064)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--tile", type=int, nargs=2, metavar=("TOKENS", "COLUMNS"), help="default: the function's own")
    return parser.parse_args()


def random_inputs(tokens: int, vocab: int, hidden: int, device: torch.device) -> Given:
    generator = torch.Generator(device).manual_seed(0)
    return (
        torch.randn(tokens, hidden, device=device, generator=generator).requires_grad_(),
        (torch.randn(vocab, hidden, device=device, generator=generator) * LOGIT_STD / hidden**0.5).requires_grad_(),
        torch.randint(vocab, (tokens,), device=device, generator=generator),
        torch.randn(2, tokens, device=device, generator=generator),
    )


def dense(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    logp_NV = (hidden_NH @ weight_VH.T).log_softmax(dim=-1)
    return logp_NV.gather(1, targets_N[:, None])[:, 0], -(logp_NV.exp() * logp_NV).sum(dim=-1)


def gradients(way: Way, given: Given) -> tuple[Tensor, ...]:
    hidden_NH, weight_VH, targets_N, grads_2N = given
    return torch.autograd.grad(way(hidden_NH, weight_VH, targets_N), (hidden_NH, weight_VH), tuple(grads_2N))


def extra_bytes(way: Way, given: Given) -> dict[str, int]:
    hidden_NH, weight_VH, targets_N, _ = given
    device = hidden_NH.device

    def forward() -> None:
        with torch.no_grad():
            way(hidden_NH, weight_VH, targets_N)

    both = peak_bytes(lambda: gradients(way, given), device)
    return {
        "forward": peak_bytes(forward, device),
        "forward_backward": both - hidden_NH.nbytes - weight_VH.nbytes,
    }


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of the tensors that `work` made and that were alive at once."""
    if device.type == "cuda":
        work()  # the first product allocates its library's workspace, which stays
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())))


def largest_differences(tiled: Way, given: Given) -> dict[str, dict[str, float]]:
    hidden_NH, weight_VH, targets_N, grads_2N = given
    hidden_NH = hidden_NH.detach()[:COMPARED].requires_grad_()
    few = hidden_NH, weight_VH, targets_N[:COMPARED], grads_2N[:, :COMPARED]
    fine = *(tensor.detach().double().requires_grad_() for tensor in few[:2]), few[2], few[3].double()
    ours, theirs, exact = everything(tiled, few), everything(dense, few), everything(dense, fine)
    return {
        "tiled_from_float64": differences(ours, exact),
        "dense_from_float64": differences(theirs, exact),
        "tiled_from_dense": differences(ours, theirs),
    }


def everything(way: Way, given: Given) -> tuple[Tensor, ...]:
    """Log-probability, entropy, gradients of hidden states and weight."""
    with torch.no_grad():
        outputs = way(*given[:3])
    return *outputs, *gradients(way, given)


def differences(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> dict[str, float]:
    largest = [float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)]
    largest[2:] = [value / float(of.abs().max()) for value, of in zip(largest[2:], expected[2:], strict=True)]
    names = ("logprob", "entropy", "hidden_gradient", "weight_gradient")
    return {name: float(f"{value:.2e}") for name, value in zip(names, largest, strict=True)}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
