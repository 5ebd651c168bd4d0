"""Start of the training commands: check the configuration before torch loads, then run one rank of the world."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import load
from nemo_simplerl.config.schema import Config
from nemo_simplerl.files import NotSaved
from nemo_simplerl.trainer.guard.lock import held_outputs


def launch(command: str, argv: Sequence[str], start: Callable[[Config], int]) -> int:
    """Exit status of `start`, or 2 for a wrong configuration or input, which the first rank alone prints.

    SIMPLERL_DEBUG=1 shows the traceback of a wrong input instead.
    """
    if {"-h", "--help"} & set(argv):
        print(f"usage: simplerl {command} [experiment=NAME] [section.key=value ...]")
        return 0
    return guarded(lambda: start(load(argv, world_size=int(os.environ.get("WORLD_SIZE", "1")))))


def guarded(start: Callable[[], int]) -> int:
    """Exit status of `start()`, or 2 for a wrong configuration or input, which the first rank alone prints."""
    # Megatron tells at import, on every rank, which optional packages are absent.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    try:
        return start()
    except ConfigErrors as errors:
        _tell("\n".join(f"config: {problem}" for problem in errors.problems))
        return 2
    except ValueError as error:
        if os.environ.get("SIMPLERL_DEBUG"):
            raise
        _tell(f"error: {error}")
        return 2


def holding_outputs(config: Config, start: Callable[[], int]) -> int:
    """The exit status of `start()`, during which the first rank holds the run directory; 74 (EX_IOERR) where a last
    checkpoint or an export could not be written.

    Raises ValueError where another process holds the directory.
    """
    with held_outputs(config) if is_first_rank() else nullcontext():
        try:
            return start()
        except NotSaved as error:
            if is_first_rank():
                print(f"error: {error}", file=sys.stderr)
            return os.EX_IOERR


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of trainer.offline.benchmark.EvalRequest that come from options shared by eval and distill."""
    names = ("template", "samples", "temperature", "top_p", "max_tokens", "seed")
    return {name: getattr(args, name) for name in names} | {"prompt_trailing_newline": not args.no_trailing_newline}


def is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell(text: str) -> None:
    if is_first_rank():
        print(text, file=sys.stderr)
