"""Writes the tables of the pages of docs/ that hold measurements from the lines of JSON that all.sh has collected.

usage: python scripts/bench/page.py FIGURES.jsonl [PAGE ...]     (default: those of docs/ that have such tables)

A table stands between `<!-- NAME -->` and `<!-- end -->`. One whose figures are not in the file is left as it is.
"""

import json
import re
import statistics
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = tuple(DOCS / name for name in ("benchmarks.md", "algorithms.md", "placement.md"))


class NotMeasured(KeyError):
    """There is no line of this name among the figures."""


class Lines(dict[str, dict]):
    """What each bench printed, by the name that all.sh measured it under."""

    def __missing__(self, name: str) -> dict:
        raise NotMeasured(name)


def main(figures: str, *pages: Path) -> None:
    lines = Lines({name_of(line): line for line in map(json.loads, Path(figures).read_text().splitlines())})
    for page in pages or PAGES:
        page.write_text(filled(page.read_text(), lines))


def name_of(line: dict) -> str:
    """The name that all.sh gave a line, or that of a line of algorithms.py itself."""
    return line["as"] if "as" in line else f"{line['bench']} {line['recipe']} {line['seed']}"


def filled(text: str, lines: Lines) -> str:
    def table(found: re.Match) -> str:
        try:
            return f"<!-- {found[1]} -->\n{TABLES[found[1]](lines)}\n<!-- end -->"
        except NotMeasured as missing:
            print(f"{found[1]}: no line {missing} among the figures; its table is left as it is", file=sys.stderr)
            return found[0]

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", table, text, flags=re.S)


def rows(*cells: tuple) -> str:
    head, *body = cells
    lines = [head, ("---",) * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def wrapped(prose: str) -> str:
    return textwrap.fill(prose, 120, break_on_hyphens=False)


def machine(lines: Lines) -> str:
    it = lines["machine"]
    packages = ", ".join(f"{name} {it[name]}" for name in ("python", "torch", "megatron-core", "transformers"))
    return wrapped(f"Measured on {it['day']} with {it['cores']} cores of {it['cpu']}; {packages}.")


def step(lines: Lines) -> str:
    found = [("work", "ours, s", "TRL's PPO, s", "TRL / ours", "share of the limit reached", "of training's", "runs")]
    for work in ("S varied", "S fixed", "M fixed", "M varied"):
        runs = [line for name, line in lines.items() if name.startswith(f"step {work} ")]
        if not runs:
            raise NotMeasured(f"step {work} 1")
        found.append(
            (
                work,
                *(_phases(runs, side) for side in ("ours", "trl")),
                *(_spread(runs, *key) for key in (("trl", "step"), ("roofline", "step"), ("roofline", "training"))),
                len(runs),
            )
        )
    versions = next(line for name, line in lines.items() if name.startswith("step "))["versions"]
    told = "; ".join(
        f"{side}: " + ", ".join(f"{name} {value}" for name, value in packages.items())
        for side, packages in versions.items()
    )
    return f"{rows(*found)}\n\n" + wrapped(f"{told}.")


def _phases(runs: list[dict], side: str) -> str:
    """Medians over the runs of a step's seconds and, in brackets, of its phases."""
    whole, *parts = (
        statistics.median(run[side][phase] for run in runs) for phase in ("step", "generation", "passes", "updates")
    )
    return f"{whole:.1f} ({' / '.join(f'{part:.1f}' for part in parts)})"


def _spread(runs: list[dict], side: str, part: str) -> str:
    """The median of the runs' medians, and the least and most of them."""
    medians = [run[f"against_{side}"][part]["median"] for run in runs]
    return f"{statistics.median(medians):.2f} ({min(medians):.2f} to {max(medians):.2f})"


def logprob(lines: Lines) -> str:
    it = lines["logprob"]
    extra, off, seconds = it["extra_mb"], it["largest_difference"], it["seconds"]
    worst = {way: max(off[f"{way}_from_float64"].values()) for way in ("tiled", "dense")}
    return rows(
        ("way", "MB beyond inputs and gradients", "the same at four times the tokens", "seconds", "off from float64"),
        (
            "tiles",
            extra["tiled"]["forward_backward"],
            extra["tiled_4x"]["forward_backward"],
            f"{seconds['tiled']:.1f}",
            f"{worst['tiled']:.1e}",
        ),
        ("dense", extra["dense"]["forward_backward"], "", f"{seconds['dense']:.1f}", f"{worst['dense']:.1e}"),
    )


def scaling(lines: Lines) -> str:
    it = lines["scaling"]
    costs = ("train_us", "rollout_us")
    found = [("from", "to", "training, us a token", "most / least", "rollout, us a token", "most / least")]
    for axis, spread in it["spread"].items():
        of_axis = it[axis]
        ends = [f"{of_axis[place][axis]} {axis}" for place in (0, -1)]
        values = ([str(round(row[cost])) for row in of_axis] for cost in costs)
        pairs = zip(values, (spread[cost] for cost in costs), strict=True)
        found.append((*ends, *(cell for texts, most in pairs for cell in (", ".join(texts), f"{most:.2f}"))))
    return rows(*found)


def packing(lines: Lines) -> str:
    it = lines["packing"]
    totals = {kind: sum(phases.values()) for kind, phases in it["seconds"].items()}
    head = ("rows", "seconds", "over packed")
    return rows(head, *((kind, f"{total:.1f}", f"{total / totals['packed']:.2f}") for kind, total in totals.items()))


def rollout(lines: Lines) -> str:
    found = [("parameters", "hf engine, samples/s", "tokens/s", "padded `generate`, samples/s", "ratio", "wasted")]
    for it in (lines["rollout"][name] for name in ("quickstart", "larger")):
        theirs = it["transformers_samples_per_second"]
        speeds = (it["samples_per_second"], it["tokens_per_second"], theirs, it["ratio"])
        found.append((f"{it['parameters'] / 1e6:.1f}M", *speeds, f"{it['wasted_share']:.1%}"))
    return rows(*found)


def engines(lines: Lines) -> str:
    found = [("parameters", "precision", "hf engine, tokens/s", "vLLM, tokens/s", "hf / vLLM")]
    for name, it in lines["engines"].items():
        if isinstance(it, dict):
            speeds = (f"{it[engine]:,}" for engine in ("hf", "vllm"))
            found.append((f"{it['parameters'] / 1e6:.1f}M", name.split()[1], *speeds, it["ratio"]))
    return rows(*found)


def convert(lines: Lines) -> str:
    it = lines["convert"]
    ways = (("HF to `.nemo`", "to_nemo"), ("`.nemo` to HF", "to_hf"))
    head = (f"{it['gigabytes']} GB", "seconds", "over `cp`")
    converted = ((name, it[f"{way}_s"], it[f"{way}_over_cp"]) for name, way in ways)
    return rows(head, ("`cp` and `sync`", it["cp_s"], 1), *converted)


def refit(lines: Lines) -> str:
    layouts = {
        "refit": ("one rank", "the same rank"),
        "refit TP2": ("two, TP 2", "both"),
        "refit across": ("one", "another"),
        "refit across TP2": ("two, TP 2", "a third"),
    }
    found = [("actor on", "engine on", "verified, GB/s", "of the limit", "digests' share", "MB beside the models")]
    for name, places in layouts.items():
        it = lines[name]
        speeds = (f"{it['bytes_per_second'] / 1e9:.2g}", f"{it['ratio']:.2f}", f"{it['digest_share']:.0%}")
        found.append((*places, *speeds, round(it["peak_bytes"] / 1e6)))
    return rows(*found)


def placement(lines: Lines) -> str:
    names = {
        "shared": "shared: all phases, one after the other",
        "apart": "apart: rollout, log-probabilities, reference, actor update",
        "ahead": "apart, one step ahead: the same without rollout",
    }
    found = [("ranks and the longest chain of phases", "s a step", "s of the chain", "over it")]
    for key, name in names.items():
        it = lines["placement"][key]
        found.append((name, it["step_seconds"], it["chain"], f"{it['over_chain']:.2f}"))
    return rows(*found)


def data_plane(lines: Lines) -> str:
    it = lines["data_plane"]
    cost = it["ns_per_token"]
    return wrapped(
        f"{it['ranks']} ranks, {it['response_tokens'] / 1e6:.1f} million response tokens: {max(it['peak_gb']):.2f} GB "
        f"of host memory on the fullest rank ({max(it['base_gb']):.2f} GB before anything was sampled), "
        f"{it['bytes_per_token']:g} bytes sent a response token, where {it['minimum_per_token']:g} have to be, and "
        f"{cost['exchange']:.1f} + {cost['collate']:.1f} ns a token of a rank to exchange and to pad."
    )


def checkpoint(lines: Lines) -> str:
    it, seconds = lines["checkpoint"], lines["checkpoint"]["seconds"]
    return wrapped(
        f"{it['bytes'] / 1e6:.0f} MB: training stands still for {seconds['behind_blocking']:.3f} s where saving goes "
        f"on behind it, for {seconds['waited_blocking']:.2f} s where it waits; `torch.save` and fsync of the same "
        f"tensors take {seconds['torch_save']:.2f} s."
    )


def kills(lines: Lines) -> str:
    runs = [(1, lines["kills"]), (2, lines["kills of two ranks"])]
    head = ("ranks", "kills", "files that differ from an undisturbed run's", "seconds")
    return rows(head, *((ranks, it["kills"], len(it["different"]), it["seconds"]) for ranks, it in runs))


def grader(lines: Lines) -> str:
    it = lines["grader"]
    names = {
        "nemo_simplerl": "nemo_simplerl",
        "math_verify": "math-verify on the last box",
        "normalize_and_compare": "normalised strings, with plain fractions",
    }
    keys = ("false_positives", "false_negatives", "cases_per_s", "p99_ms")
    found = [(f"{it['cases']} cases", "accuracy", "false positives", "false negatives", "cases/s", "p99, ms")]
    for key, name in names.items():
        if it[key] is not None:
            found.append((name, f"{it[key]['accuracy_percent']} %", *(it[key][figure] for figure in keys)))
    return rows(*found)


def quickstart(lines: Lines) -> str:
    found = [("run", "greedy accuracy", "sampled accuracy", "answers in a box", "seconds")]
    for name, suffix in (("quickstart", ""), ("quickstart TP2", ", two processes, TP 2")):
        for run in lines[name]["runs"]:
            names = ("eval/accuracy", "eval/sampled_accuracy", "eval/format_rate")
            ends = (_ends(run[figure]) for figure in names)
            found.append((f"seed {run['seed']}{suffix}", *ends, round(run["seconds"])))
    return rows(*found)


def algorithms(lines: Lines) -> str:
    runs = [line for name, line in lines.items() if name.startswith("algorithms ")]
    if not runs:
        raise NotMeasured("algorithms default 1")
    seeds = sorted({run["seed"] for run in runs})
    of_recipe = {name: [run for run in runs if run["recipe"] == name] for name in {run["recipe"]: None for run in runs}}
    steps = {name: statistics.median(run["step_seconds"] for run in found) for name, found in of_recipe.items()}
    head = [f"seed {seed}, greedy" for seed in seeds]
    found = [("recipe", *head, "sampled, at the end", "s a step", "of PPO's", "s a run", "peak memory, MB")]
    for name, of_name in of_recipe.items():
        by_seed = {run["seed"]: run for run in of_name}
        greedy = [_ends(by_seed[seed]["eval/accuracy"]) if seed in by_seed else "" for seed in seeds]
        sampled = " / ".join(str(run["eval/sampled_accuracy"][1]) for run in of_name)
        whole = round(statistics.median(run["seconds"] for run in of_name))
        ratio = f"{steps[name] / steps['default']:.2f}" if "default" in steps else ""
        peak = f"{max(run['peak_mb'] for run in of_name):,}"
        found.append((f"`{name}`", *greedy, f"{sampled} %", f"{steps[name]:.2f}", ratio, whole, peak))
    return rows(*found)


def _ends(shares: list[float]) -> str:
    return " -> ".join(f"{share} %" for share in shares)


TABLES: dict[str, Callable[[Lines], str]] = {
    table.__name__: table
    for table in (
        *(machine, step, logprob, scaling, packing, rollout, engines),
        *(convert, refit, placement, data_plane, checkpoint, kills, grader, quickstart, algorithms),
    )
}

if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
