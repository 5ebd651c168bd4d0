"""`simplerl plan EXPERIMENT`: whether a run fits a cluster, how long a step takes, and what would fit or be faster."""

import argparse
import json
import re
import sys

from nemo_simplerl.cli.start.launch import CONFIG_DIR_HELP, overrides_of
from nemo_simplerl.config.errors import suggest
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.dry.execute import execute
from nemo_simplerl.dry.findings import Execution
from nemo_simplerl.dry.report import execution_as_dict, execution_as_text
from nemo_simplerl.dry.shim import Unavailable
from nemo_simplerl.plan.gpus import CPU, NAMES, gpu
from nemo_simplerl.plan.known import KNOWN_MODELS
from nemo_simplerl.plan.layout import Cluster
from nemo_simplerl.plan.plan import make_plan
from nemo_simplerl.plan.report import Plan, plan_as_dict, plan_as_text


def run(argv: list[str]) -> int:
    """Prints the plan. Exit status: 0, 1 where the run is not possible, 2 for a wrong command line."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    if args.files and args.shape:
        parser.error("--shape is for a model that is not on this disk, and --files refuses such a run")
    is_override = re.match(r"[\w.]+=", args.experiment)
    args.overrides.insert(0, args.experiment if is_override else f"experiment={args.experiment}")
    ranks = args.gpus_per_node or (1 if args.gpu == CPU else 8)
    cluster = Cluster(nodes=args.nodes, gpus_per_node=ranks, gpu=gpu(args.gpu, ranks))
    plan = make_plan(overrides_of(args), cluster, args.shape, args.suggest, args.files)
    executes = args.execute or args.full
    if not args.json:
        print(plan_as_text(plan), flush=True)
    execution, reason = _executed(args, plan) if executes else (None, None)
    if args.json:
        found = plan_as_dict(plan)
        if executes:
            found["execution"] = None if execution is None else execution_as_dict(execution)
            found["not_executed"] = reason
        print(json.dumps(found, indent=2))
    elif execution is not None:
        print("", execution_as_text(execution), sep="\n")
    elif reason is not None:
        print(f"\nNot executed: {reason}. What stands above is the formula's alone.")
    return 0 if plan.can_run and not (execution and execution.problems) else 1


def _executed(args: argparse.Namespace, plan: Plan) -> tuple[Execution | None, str | None]:
    """The plan's step on pretended GPUs, or why it was not executed."""
    if plan.layout is None:
        return None, "the problems above leave no layout to execute"
    _tell("executing a step on pretended GPUs, which takes minutes for a large model ...")
    try:
        return execute(overrides_of(args), plan.layout, full=args.full, tell=_tell), None
    except Unavailable as missing:
        return None, str(missing)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simplerl plan",
        description="Check a run's settings and its memory against a cluster and estimate the time of a step.",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name of conf/experiment, or a path to one's own")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", help="settings, as training takes them")
    parser.add_argument("--nodes", type=_count, default=1, metavar="N", help="machines (default 1)")
    parser.add_argument("--gpus-per-node", type=_count, metavar="G", help="ranks on each (default 8; 1 with --gpu cpu)")
    parser.add_argument("--gpu", choices=NAMES, default="h100-80g", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument(
        "--shape", type=_shape, metavar="MODEL", help=f"in place of model.path: {', '.join(KNOWN_MODELS)}"
    )
    parser.add_argument(
        "--files", action="store_true", help="refuse a run whose model or data is not on this disk, as submit.sh does"
    )
    parser.add_argument("--config-dir", metavar="DIR", help=CONFIG_DIR_HELP)
    parser.add_argument("--suggest", action="store_true", help="rank the layouts that fit by the time of a step")
    parser.add_argument(
        "--execute", action="store_true", help="run a step on pretended GPUs in a child process, beside the formula"
    )
    parser.add_argument("--full", action="store_true", help="the same with all layers; many minutes for a large model")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    return parser


def _shape(text: str) -> ModelShape:
    """The shape of a well-known model, by its name on the Hub with or without its owner."""
    name = text.split("/")[-1]
    if name not in KNOWN_MODELS:
        raise argparse.ArgumentTypeError(f"{text!r} is not among the models of --help.{suggest(name, KNOWN_MODELS)}")
    return KNOWN_MODELS[name]


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value
