"""`simplerl sft`: runs the warm start alone."""

import os
import time
from functools import partial

from nemo_simplerl.cli.start.launch import launch
from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.examples import check_examples


def run(argv: list[str]) -> int:
    """Exit status of `simplerl sft OVERRIDES`; 75 (EX_TEMPFAIL) where it was stopped: started again, it goes on.

    Raises ValueError for a wrong configuration or input.
    """
    return launch("sft", argv, _check, partial(_start, time.monotonic()))


def _check(config: Config) -> None:
    if config.sft.output is None or config.data.sft_path is None:
        raise ConfigErrors(
            ["simplerl sft needs data.sft_path (the examples) and sft.output (the folder for the model)."]
        )
    check_examples(config)


def _start(started: float, config: Config) -> int:
    # torch loads here, once the configuration is right and no other run is in the way
    from nemo_simplerl.trainer.start import start_warm_start

    return 0 if start_warm_start(config, started) else os.EX_TEMPFAIL
