"""`simplerl eval`: measures a model on the recipe's benchmarks, beside the figures that its authors reported."""

import argparse
from pathlib import Path

from nemo_simplerl.cli.launch import guarded, is_first_rank, sampling_options
from nemo_simplerl.data.templates import NAMES
from nemo_simplerl.eval.benchmarks import BENCHMARKS


def run(argv: list[str]) -> int:
    """Exit status: 0; 2 for input that cannot be used."""
    args = _parser().parse_intermixed_args(argv)
    return guarded(lambda: _evaluate(args))


def _evaluate(args: argparse.Namespace) -> int:
    from nemo_simplerl.config.load import compose

    # Values that have no default and that no evaluation reads.
    config = compose(["model.path=none", "data.train_path=none.jsonl", *args.overrides])
    from nemo_simplerl.trainer.offline.benchmark import EvalRequest, eval_config, run_benchmarks

    request = EvalRequest(
        model=args.model,
        benchmarks=tuple(args.benchmarks.split(",")),
        data=args.data,
        output=args.out,
        **sampling_options(args),
        limit=args.limit,
        compare=args.compare,
    )
    run_benchmarks(request, eval_config(config, request))
    if is_first_rank():
        print((args.out / "results.md").read_text(), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl eval",
        description="Answer math benchmarks with a model and grade the answers. Stopped and started again, it goes on.",
        epilog="Settings of conf/ that concern the engine follow as KEY=VALUE: rollout.engine=trtllm "
        "model.precision=fp32. Under torchrun the ranks share the work.",
    )
    parser.add_argument("model", type=Path, help="a Hugging Face folder, a .nemo, or a run's checkpoints/step_N")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the engine and the grader")
    parser.add_argument("--data", type=Path, required=True, help="folder of the benchmarks: NAME.jsonl each")
    parser.add_argument("--out", type=Path, required=True, help="folder for responses and results")
    parser.add_argument(
        "--benchmarks", default=",".join(BENCHMARKS), help="comma-separated (default: %(default)s)", metavar="NAMES"
    )
    parser.add_argument("--template", choices=NAMES, default="qwen25-math-cot")
    parser.add_argument("--no-trailing-newline", action="store_true", help="end prompts as the recipe's training did")
    parser.add_argument("--samples", type=int, default=1, help="of each problem; several want a --temperature")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=3000, help="of a response (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first problems of each benchmark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="put the SimpleRL authors' figures beside the results")
    return parser
