"""`simplerl audit RUN_DIR|FILE.jsonl`: likely mistakes of the grader and reward hacks in the responses of a run.

`simplerl audit --golds FILE`: the gold answers of a data set that the grader can compare as text only.
"""

import argparse
import json
import os

from rich.console import Console

from nemo_simplerl.audit.findings import ask_math_verify, audit, regrade_findings
from nemo_simplerl.audit.golds import WITHOUT_TREE, audit_golds, gold_tables, golds_as_dict
from nemo_simplerl.audit.math_verify import MATH_VERIFY_COMMAND, math_verify_installed
from nemo_simplerl.audit.rows import read_responses, response_files
from nemo_simplerl.audit.table import audit_as_dict, audit_tables
from nemo_simplerl.cli.start.guard import path
from nemo_simplerl.data.rows import fields_of, read_rows, value_at
from nemo_simplerl.files import atomic_write
from nemo_simplerl.reward.gold import read_gold
from nemo_simplerl.reward.serving.pool import RewardPool

_WORKERS = min(os.cpu_count() or 1, 8)
_ANSWER_FIELDS = ("answer", "gt_answer", "final_answer", "gold", "ground_truth", "solution")
_PLAIN_WIDTH = 160  # where the output is no terminal


def run(argv: list[str]) -> int:
    """Exit status: 0. Raises ValueError or OSError where there is nothing to read."""
    parser = _parser()
    args = parser.parse_args(argv)
    if (args.path is None) == (args.golds is None):
        parser.error("give a trainer.run_dir or a file of responses, or --golds FILE: one of them")
    return _audit_responses(args) if args.golds is None else _audit_golds(args)


def _audit_golds(args: argparse.Namespace) -> int:
    rows = read_rows(args.golds)
    name = args.answer or next((name for name in _ANSWER_FIELDS if value_at(rows[0], name) is not None), None)
    golds = [read_gold(value_at(row, name)).text if name else "" for row in rows]
    if not any(golds):
        raise ValueError(
            f"{args.golds} has no gold answers in {name or 'any of ' + ', '.join(_ANSWER_FIELDS)}; "
            f"say --answer FIELD, of {', '.join(fields_of(rows[0]))}"
        )
    found = audit_golds(golds)
    if args.json:
        atomic_write(args.json, json.dumps(golds_as_dict(found), indent=2) + "\n")
    console = _console()
    for table in gold_tables(found, args.limit or None):
        console.print(table)
    print(WITHOUT_TREE)
    return 0


def _audit_responses(args: argparse.Namespace) -> int:
    limit = args.limit or None
    try:
        files = response_files(args.path)
        with RewardPool(_WORKERS, timeout_s=10.0, memory_limit_mb=2048) as pool:
            found = audit(read_responses(files), pool.grade)
            asked = _second_opinion(found, args.peer_items)
            regrade_findings(found, pool.grade, limit)
    except RuntimeError as error:  # the workers cannot be started
        raise ValueError(str(error)) from error
    if not found.num_rows:
        raise ValueError(f"{args.path} holds no responses: each line is to be an object with gold and response")
    if args.json:
        atomic_write(args.json, json.dumps(audit_as_dict(found, limit, asked), indent=2) + "\n")
    console = _console()
    for table in audit_tables(found, limit):
        console.print(table)
    if found.num_unreadable:
        print(f"{found.num_unreadable} lines were no objects with gold and response.")
    if asked is None:
        print("math-verify is not installed: no second opinion (pip install math-verify).")
    else:
        print(f"math-verify was asked about {asked} of {len(found.incorrect)} different wrong answers.")
    return 0


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def _second_opinion(found, most: int) -> int | None:
    """Ask math-verify about wrong answers, `most` at most; returns how many, or None where it is not installed."""
    if not math_verify_installed():
        return None
    with RewardPool(_WORKERS, timeout_s=10.0, memory_limit_mb=2048, command=MATH_VERIFY_COMMAND) as pool:
        return ask_math_verify(found, pool.grade, most)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl audit",
        description="List likely mistakes of the grader and responses that play it, the most frequent first.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=path,
        metavar="RUN_DIR|FILE.jsonl",
        help="a trainer.run_dir, or rows with gold and response",
    )
    parser.add_argument(
        "--golds", type=path, metavar="FILE", help="instead: a file of problems, whose gold answers are looked through"
    )
    parser.add_argument("--answer", metavar="FIELD", help="the file's name for them (answer, gt_answer, ...)")
    parser.add_argument("--json", type=path, metavar="OUT", help="also write the report as JSON")
    parser.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="findings or gold answers of each kind; 0 for all"
    )
    parser.add_argument("--peer-items", type=_count, default=500, metavar="N", help="answers to show to math-verify")
    return parser


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value
