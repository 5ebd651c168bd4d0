"""`simplerl eval`: measures a model on the recipe's benchmarks, beside reported figures, and on one's own files."""

import argparse

from nemo_simplerl.cli.start.guard import Parser, is_first_rank, path
from nemo_simplerl.cli.start.launch import (
    add_config_options,
    add_prompt_options,
    overrides_of,
    require_different_samples,
    sampling_options,
    with_prompt_options,
)
from nemo_simplerl.config.rules.machine import why_not_writable
from nemo_simplerl.eval.benchmarks import BENCHMARKS, load_all

_FIELDS = ("question", "answer", "id")


def run(argv: list[str]) -> int:
    """Exit status: 0. Raises ValueError for input that cannot be used."""
    args = _parser().parse_intermixed_args(argv)
    from nemo_simplerl.config.load import compose

    # Values that have no default and that no evaluation reads.
    config = compose(["model.path=none", "data.train_path=none.jsonl", *overrides_of(args)])
    require_different_samples(args, config)
    config = with_prompt_options(args, config)
    names = None if args.benchmarks is None else args.benchmarks.split(",")
    problems, notes = load_all(args.data, names, {field: getattr(args, field) for field in _FIELDS}, args.limit)
    if reason := why_not_writable(args.out):
        raise ValueError(f"--out {args.out} {reason}")
    if args.check:
        return 0
    if is_first_rank():
        print(*notes, sep="\n", end="\n" if notes else "")
    # torch loads here, once the command line is right
    from nemo_simplerl.trainer.offline.benchmark import EvalRequest, eval_config, run_benchmarks

    request = EvalRequest(
        model=args.model, output=args.out, **sampling_options(args), limit=args.limit, compare=args.compare
    )
    run_benchmarks(request, eval_config(config, request), problems)
    if is_first_rank():
        print((args.out / "results.md").read_text(), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="simplerl eval",
        description="Answer math problems with a model and grade the answers. Stopped and started again, it goes on.",
        epilog="Settings of conf/ that concern the engine follow as KEY=VALUE: rollout.engine=vllm "
        "model.precision=fp32. Under torchrun the ranks share the work.",
    )
    parser.add_argument("model", type=path, help="a Hugging Face folder, a .nemo, or a run's checkpoints/step_N")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the engine and the grader")
    parser.add_argument(
        "--data",
        type=path,
        required=True,
        action="append",
        metavar="PATH",
        help="folder of the benchmarks (NAME.jsonl each), or a file of problems (.json, .jsonl, .csv, .parquet); "
        "repeat it for several files, or for both",
    )
    parser.add_argument("--out", type=path, required=True, help="folder for responses and results")
    parser.add_argument(
        "--benchmarks", metavar="NAMES", help=f"of the folder, comma-separated (default: {','.join(BENCHMARKS)})"
    )
    for field in _FIELDS:
        parser.add_argument(f"--{field}", default=field, metavar="FIELD", help=f"its name in the files ({field})")
    add_prompt_options(parser)
    parser.add_argument("--samples", type=_count, default=1, help="of each problem; several want a --temperature")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=_count, default=3000, help="of a response (default: %(default)s)")
    parser.add_argument("--limit", type=_count, help="only the first problems of each benchmark and file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="put the SimpleRL authors' figures beside the results")
    add_config_options(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)
