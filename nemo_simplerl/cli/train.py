"""simplerl train: PPO, after the warm start where one is configured."""

from nemo_simplerl.cli.launch import launch
from nemo_simplerl.config.schema import Config


def run(argv: list[str]) -> int:
    """Exit status of `simplerl train OVERRIDES`."""
    return launch("train", argv, _start)


def _start(config: Config) -> None:
    from nemo_simplerl.trainer.start import (
        start_training,
    )  # torch loads here, once the configuration is right

    start_training(config)
