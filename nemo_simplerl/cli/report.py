"""`simplerl report RUN_DIR...`: writes report.html and report.png, and prints the before-and-after table."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nemo_simplerl.cli.start.guard import path
from nemo_simplerl.report.read import RunData, load_run, summary_so_far
from nemo_simplerl.report.table import plain_text, rich_table, rows_of


def run(argv: list[str]) -> int:
    """Exit status: 0. Raises ValueError or OSError for folders that cannot be read."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.follow and args.out:
        parser.error("--follow writes no file: leave out --out")
    runs = [load_run(run_dir) for run_dir in args.run_dirs]
    if args.follow:
        return _follow(args.run_dirs, args.eval, args.port)
    # After the first look at the folders: matplotlib takes most of a second to import.
    from nemo_simplerl.report.curves import write_png
    from nemo_simplerl.report.page import write_page

    drawings = [write_png(run_dir) for run_dir in args.run_dirs]
    page = write_page(args.run_dirs, args.out or args.run_dirs[0] / "report.html", args.eval)
    for loaded in runs:
        _print_table(loaded, is_named=len(runs) > 1)
    print(f"Curves: {', '.join(map(str, drawings))}")
    print(f"Page: {page}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl report",
        description="Write report.html, one file with a run's figures and samples, and report.png; print its before "
        "and after. Several runs are drawn into one page, which lies in the first.",
    )
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", type=path, help="trainer.run_dir of a run, finished or not"
    )
    parser.add_argument(
        "--eval",
        metavar="DIR",
        action="append",
        default=[],
        type=path,
        help="folder of a `simplerl eval` beside those in RUN_DIR/eval_*/; may be repeated",
    )
    parser.add_argument("--out", metavar="FILE", type=path, help="where to write the page instead")
    parser.add_argument(
        "--follow", action="store_true", help="serve the page to this machine while the run goes on, until Ctrl-C"
    )
    parser.add_argument("--port", type=_port, default=0, help="of --follow; 0, the default, takes a free one")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port: give 0 to 65535")
    return int(text)


def _follow(run_dirs: Sequence[Path], eval_dirs: Sequence[Path], port: int) -> int:
    from nemo_simplerl.report.follow import Follower
    from nemo_simplerl.report.page import build_page

    watched = [run_dir / name for run_dir in run_dirs for name in ("metrics.jsonl", "summary.json")]
    follower = Follower(watched, lambda version: build_page(run_dirs, eval_dirs, follow=version), port)
    print(f"{follower.url} shows the run as it goes on. Ctrl-C ends.", flush=True)
    follower.watch(lambda text: print(f"simplerl report: {text}", file=sys.stderr))
    return 0


def _print_table(run: RunData, *, is_named: bool) -> None:
    if is_named:
        print(f"{run.path}:")
    summary = summary_so_far(run)
    if run.summary is None:
        print(f"Not finished: step {run.last_step}; the latest evaluation stands for after.")
    if not rows_of(summary):
        print("No evaluation yet.")
        return
    console = Console()
    if console.is_terminal:
        console.print(rich_table(summary))
    else:
        print(plain_text(summary), end="")
