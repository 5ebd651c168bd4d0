"""`simplerl doctor`: examines what is installed, the machine, and the calls of TensorRT-LLM and vLLM that we make."""

import argparse
import json
from dataclasses import asdict

from nemo_simplerl.doctor.examine import REQUIRABLE, Report, examine_machine


def run(argv: list[str]) -> int:
    """Prints the report. Exit status: 1 where a run would not work or something required is missing; else 0."""
    parser = argparse.ArgumentParser(
        prog="simplerl doctor",
        description="Versions, GPUs, space, limits and names of this machine, and the installed TensorRT-LLM and vLLM "
        "read against the calls that their engines make. Ends with 1 where a run would not work.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.add_argument(
        "--require",
        choices=tuple(REQUIRABLE),
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"end with 1 where one of these is missing: {', '.join(REQUIRABLE)}",
    )
    args = parser.parse_args(argv)
    report = examine_machine(args.require)
    print(json.dumps({"ok": report.is_well, **asdict(report)}, indent=2) if args.json else doctor_as_text(report))
    return 0 if report.is_well else 1


def doctor_as_text(report: Report) -> str:
    """The report as lines for a person."""
    return "\n".join(
        [
            *(f"{name:<20}{text}" for name, text in report.rows.items()),
            report.engine,
            *(f"note: {note}" for note in report.notes),
            *(f"problem: {problem}" for problem in report.problems),
        ]
    )
