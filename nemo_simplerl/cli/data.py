"""`simplerl data`: surveys a file of problems and writes those that are kept for training."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from nemo_simplerl.cli.start.guard import path
from nemo_simplerl.config.rules.machine import why_not_writable
from nemo_simplerl.data.overlap import KINDS
from nemo_simplerl.data.templates import NAMES
from nemo_simplerl.files import atomic_write

_FIELDS = ("id", "question", "answer", "level", "subject")
# What --check-golds lists in the report: ids of the problems with such a gold answer.
_CHECKS = ("unreachable_golds", "prose_golds", "text_golds")


def run(argv: list[str]) -> int:
    """Exit status: 0; 2 for input that cannot be used."""
    args = _parser().parse_args(argv)
    try:
        return _prepare(args)
    except ValueError as error:
        print(f"simplerl data: {error}", file=sys.stderr)
        return 2


def _prepare(args: argparse.Namespace) -> int:
    from nemo_simplerl.data.problems import problems_of, question_as_written
    from nemo_simplerl.data.rows import write_rows
    from nemo_simplerl.data.survey import SIMPLERL_SHA256, Rules, survey
    from nemo_simplerl.eval.benchmarks import BENCHMARKS, load_benchmark

    if args.out is not None and args.out.exists():
        raise ValueError(f"{args.out} exists; choose another name or remove it.")
    for file in filter(None, (args.out, args.report)):
        if reason := why_not_writable(file.parent):
            raise ValueError(f"{file}: the folder above it {reason}")
    problems, golds = problems_of(args.source, {field: getattr(args, field) for field in _FIELDS})
    held_out = {}
    if args.held_out is not None:
        held_out = {name: load_benchmark(name, args.held_out) for name in BENCHMARKS}
    rules = Rules(args.drop_overlap, args.drop_duplicates, args.max_prompt_tokens)
    found = survey(problems, held_out, rules, _counter(args))
    digest = hashlib.sha256(args.source.read_bytes()).hexdigest()
    report = {"source": str(args.source), "sha256": digest} | found.report
    report |= _checked(found.kept) if args.check_golds else dict.fromkeys(_CHECKS)
    for line in [*_in_words(report, digest == SIMPLERL_SHA256), *golds.notes()]:
        print(line)
    if args.out is not None:
        rows = [{field: getattr(problem, field) for field in _FIELDS} for problem in found.kept]
        asked = [{"question": question_as_written(problem)} for problem in found.kept]
        write_rows(args.out, [row | question for row, question in zip(rows, asked, strict=True)])
        print(f"{len(rows)} problems: {args.out}")
    if args.report is not None:
        atomic_write(args.report, json.dumps(report, indent=2) + "\n")
    return 0


def _counter(args: argparse.Namespace):
    """A function that counts the tokens of prompts; None without a tokenizer."""
    if args.tokenizer is None:
        if args.max_prompt_tokens is not None:
            raise ValueError("--max-prompt-tokens needs --tokenizer FOLDER to count by.")
        return None
    from nemo_simplerl.data.examples import read_examples
    from nemo_simplerl.data.templates import encode_prompts, renderer
    from nemo_simplerl.data.tokenizer import load_tokenizer

    tokenizer, examples = load_tokenizer(args.tokenizer), read_examples(args.examples)
    prompt_of = renderer(args.template, tokenizer, trailing_newline=True, examples=examples)

    def num_tokens(problems) -> list[int]:
        texts = [prompt_of(problem.chat or problem.question) for problem in problems]
        return [len(ids) for ids in encode_prompts(tokenizer, texts)]

    return num_tokens


def _checked(problems: Sequence) -> dict[str, list[str]]:
    """Ids of the problems whose gold answer needs a look, by the names of _CHECKS."""
    from nemo_simplerl.reward.gold import check_golds

    check = check_golds([problem.answer for problem in problems])
    places = (check.unreachable, check.prose, check.text_alone)
    return {name: [problems[place].id for place in found] for name, found in zip(_CHECKS, places, strict=True)}


def _in_words(report: dict[str, Any], is_simplerl: bool) -> list[str]:
    """The lines that the command prints of its report."""
    known = ": the SimpleRL training set" if is_simplerl else ""
    lines = [f"{report['source']}: {report['problems']} problems, sha256 {report['sha256'][:12]}...{known}"]
    for name in ("levels", "subjects"):
        lines.append(f"{name}: " + ", ".join(f"{key} {count}" for key, count in report[name].items()))
    for name, unit in (("question_chars", "characters a question"), ("prompt_tokens", "tokens a prompt")):
        if report[name]:
            lines.append(f"{unit}: " + ", ".join(f"{key} {value}" for key, value in report[name].items()))
    for name, what in (("duplicates", "duplicates"), ("overlaps", "overlaps with the benchmarks")):
        counts = ", ".join(f"{kind} {report[name][kind]['count']}" for kind in KINDS)
        lines.append(f"{what}: {counts}")
        for kind in KINDS:
            for pair in report[name][kind]["first"][:3]:
                where = f" of {pair['in']}" if "in" in pair else ""
                question = " ".join(pair["question"].split())[:80]
                lines.append(f"  {kind}: {pair['id']} and {pair['other']}{where}: {question}")
    if (ids := report["unreachable_golds"]) is not None:
        lines.append(
            f"golds that the grader does not accept of itself: {len(ids) or 'none'} {', '.join(ids[:5])}".rstrip()
        )
    reasons = [f"{drop['id']}: {drop['reason']}" for drop in report["dropped"]]
    lines.append(f"dropped: {len(reasons)}")
    lines += [f"  {reason}" for reason in reasons[:10]] + (["  ..."] if len(reasons) > 10 else [])
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl data",
        description="Look through a file of problems (.json, .jsonl, .csv, .parquet): counts, lengths, duplicates, "
        "overlap with the benchmarks. With --out, write what is kept as JSON lines for data.train_path.",
    )
    parser.add_argument("source", type=path)
    parser.add_argument("--out", type=path, help="JSON lines of id, question, answer, level, subject")
    parser.add_argument("--report", type=path, help="everything found, as JSON")
    for field in _FIELDS:
        parser.add_argument(f"--{field}", default=field, metavar="FIELD", help=f"the file's name for it ({field})")
    parser.add_argument("--held-out", type=path, metavar="DIR", help="folder of the eight benchmarks, to compare with")
    parser.add_argument("--drop-overlap", choices=KINDS, help="leave out overlaps as sure as this, or surer")
    parser.add_argument("--drop-duplicates", choices=KINDS, help="the same of duplicates: the first one stays")
    parser.add_argument("--tokenizer", type=path, metavar="FOLDER", help="counts the tokens of prompts")
    parser.add_argument("--template", choices=NAMES, default="qwen25-math-cot", help="that they are rendered by")
    parser.add_argument("--examples", metavar="FILE", help="worked examples before every question, as in data.examples")
    parser.add_argument("--max-prompt-tokens", type=int, help="leave out longer prompts")
    parser.add_argument("--check-golds", action="store_true", help="give the grader each gold answer in a box")
    return parser
