"""An execution as text and as one JSON object."""

from dataclasses import asdict
from typing import Any

from nemo_simplerl.dry.findings import Execution

_SHOWN = 24  # lines of traffic in the text


def execution_as_dict(execution: Execution) -> dict[str, Any]:
    """Bytes, FLOPs and counts as plain values."""
    return asdict(execution) | {
        "rows": [asdict(row) | {"difference": round(row.difference, 4)} for row in execution.rows]
    }


def execution_as_text(execution: Execution) -> str:
    """The execution as lines for a terminal."""
    done, whole = execution.depths, execution.num_layers
    is_whole = done[-1] == whole
    layers = f"all {whole} layers" if is_whole else f"{' and '.join(map(str, done))} of {whole} layers"
    extrapolation = "" if is_whole else ", what follows extrapolated to all of them"
    lines = [
        f"Executed on pretended GPUs: ranks {', '.join(map(str, execution.ranks))}; {layers}{extrapolation}; a step of "
        f"{len(execution.sample.response_tokens)} samples, {execution.sample.tokens} tokens, over all replicas; "
        f"{execution.seconds:.0f} s, {execution.host_bytes / 2**30:.1f} GiB of host memory.",
    ]
    if execution.rows:
        lines += ["", f"{'GiB on the fullest GPU':<22}{'formula':>12}{'executed':>12}{'difference':>12}"]
        lines += [
            f"{row.phase:<22}{row.formula / 2**30:>12.2f}{row.executed / 2**30:>12.2f}{row.difference:>+12.1%}"
            for row in execution.rows
        ]
    if execution.counts:
        names = ("matrix TFLOP", "attention", "launches", "guessed")
        lines += ["", f"{'on rank 0':<22}" + "".join(f"{name:>14}" for name in names)]
        for phase, counts in execution.counts.items():
            flops = (counts["flops"] / 1e12, counts["attention_flops"] / 1e12)
            cells = (*(f"{count:>14.2f}" for count in flops), f"{counts['launches']:>14}", f"{counts['guessed']:>14}")
            lines.append(f"{phase:<22}" + "".join(cells))
    if execution.traffic:
        lines += ["", *_traffic_lines(execution)]
    if execution.problems:
        lines += ["", f"Execution found {len(execution.problems)} problems:"]
        lines += [f"  - {problem}" for problem in execution.problems]
    return "\n".join(lines)


def _traffic_lines(execution: Execution) -> list[str]:
    """The collectives of rank 0 that carry most, phase by phase; bytes are those of the whole tensor."""
    most = sorted(execution.traffic, key=lambda one: -one["bytes"])[:_SHOWN]
    lines = [f"{'collectives of rank 0':<22}{'ranks':>6}{'calls':>8}{'GiB':>10}  what, and from where"]
    for one in execution.traffic:
        if one in most:
            lines.append(
                f"{one['phase']:<22}{one['group_size']:>6}{one['calls']:>8}{one['bytes'] / 2**30:>10.3f}  "
                f"{one['operation']} ({one['device']}), {one['caller']}"
            )
    if (left := len(execution.traffic) - len(most)) > 0:
        lines.append(f"... and {left} more, which carry less (--json has them)")
    return lines
