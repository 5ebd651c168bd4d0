"""`simplerl report RUN_DIR`: report.png and the before-and-after table."""

import argparse
import sys

from rich.console import Console

from nemo_simplerl.report.read import load_run, summary_so_far
from nemo_simplerl.report.table import plain_text, rich_table, rows_of


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="simplerl report",
        description="Draw a run's reward, accuracy and length as report.png; print its before and after.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="trainer.run_dir of a run, finished or not")
    args = parser.parse_args(argv)
    try:
        loaded = load_run(args.run_dir)
        # After the first look at the folder: matplotlib takes most of a second to import.
        from nemo_simplerl.report.curves import write_png

        png = write_png(args.run_dir)
    except (OSError, ValueError) as error:
        print(f"simplerl report: {error}", file=sys.stderr)
        return 2
    summary = summary_so_far(loaded)
    if loaded.summary is None:
        print(f"Not finished: step {loaded.last_step}; the latest evaluation stands for after.")
    if rows_of(summary):
        console = Console()
        if console.is_terminal:
            console.print(rich_table(summary))
        else:
            print(plain_text(summary), end="")
    else:
        print("No evaluation yet.")
    print(f"Curves: {png}")
    return 0
