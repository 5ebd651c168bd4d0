"""What the training commands share: check the configuration before torch loads, then run one rank of the world."""

import os
import sys
from collections.abc import Callable, Sequence

from nemo_simplerl.config.load import ConfigErrors, load
from nemo_simplerl.config.schema import Config


def launch(command: str, argv: Sequence[str], start: Callable[[Config], None]) -> int:
    """Exit status: 0 done, 2 a wrong configuration or input, told on the first rank alone."""
    speaks = os.environ.get("RANK", "0") == "0"
    if {"-h", "--help"} & set(argv):
        print(f"usage: simplerl {command} [experiment=NAME] [section.key=value ...]")
        return 0
    try:
        start(load(argv, world_size=int(os.environ.get("WORLD_SIZE", "1"))))
    except ConfigErrors as errors:
        if speaks:
            print("\n".join(f"config: {problem}" for problem in errors.problems), file=sys.stderr)
        return 2
    except ValueError as error:
        if os.environ.get("SIMPLERL_DEBUG"):
            raise
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
