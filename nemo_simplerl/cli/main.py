"""The `simplerl` command. A subcommand's module is imported when it is chosen, so help and typos answer at once."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

from nemo_simplerl.streams import patient_streams

# Name -> (module with `run(argv) -> exit status`, one line of help).
COMMANDS = {
    "train": ("nemo_simplerl.cli.train", "PPO, from a base model or a warm start"),
    "sft": ("nemo_simplerl.cli.sft", "the supervised warm start on its own"),
    "data": ("nemo_simplerl.cli.data", "a file of problems, looked through and made ready for training"),
    "distill": ("nemo_simplerl.cli.distill", "examples for the warm start, from a stronger model"),
    "convert": (
        "nemo_simplerl.cli.convert",
        "one form of model into another: Hugging Face, NeMo, Megatron, checkpoints",
    ),
    "eval": ("nemo_simplerl.cli.eval", "accuracy on the recipe's benchmarks, beside the reported figures"),
    "plan": ("nemo_simplerl.cli.plan", "whether a run fits a cluster, and what to change where it does not"),
    "report": ("nemo_simplerl.cli.report", "curves and the before-and-after table of a run directory"),
    "audit": ("nemo_simplerl.cli.audit", "likely mistakes of the grader and reward hacks in a run's responses"),
    "doctor": ("nemo_simplerl.cli.doctor", "versions and GPU of this machine, and whether the engines fit"),
    "reward-server": ("nemo_simplerl.cli.reward_server", "the grader over HTTP, for training on other machines"),
}

_LONG = ("train", "sft", "eval", "distill")  # they go on for long after the `head` of `| head` has ended


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 for success, 2 for a command line or input that cannot be used, 130 when interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    is_long = bool(args) and args[0] in _LONG
    with patient_streams(_tell_unread if is_long else lambda: None) as output:
        status = _run(args)
        output.flush()
        if output.refusal and not is_long:  # what it printed is all that it does
            print(f"error: standard output cannot be written: {output.refusal.strerror}", file=sys.stderr)
            return os.EX_IOERR
        return status


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        print(f"nemo_simplerl {version()}")
        return 0
    name, *rest = args
    if name not in COMMANDS:
        print(unknown_command(name), file=sys.stderr)
        return 2
    module, _ = COMMANDS[name]
    from nemo_simplerl.cli.start.guard import guarded

    try:
        return guarded(lambda: import_module(module).run(rest))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _tell_unread() -> None:
    print("simplerl: nobody reads standard output any more; going on without it", file=sys.stderr)


def usage() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: simplerl COMMAND [ARGUMENT...]       (the same as python -m nemo_simplerl COMMAND)",
            "",
            *(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()),
            "",
            "simplerl COMMAND --help tells more. Settings of conf/ are overridden on the command line:",
            "  simplerl train experiment=quickstart trainer.max_steps=3",
            "  torchrun --nproc_per_node 4 -m nemo_simplerl train experiment=quickstart",
        ]
    )


def unknown_command(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"the commands are {', '.join(COMMANDS)}"
    return f"simplerl: there is no command {name!r}; {hint}"


def version() -> str:
    try:
        return metadata.version("nemo_simplerl")
    except metadata.PackageNotFoundError:
        return "(not installed)"
