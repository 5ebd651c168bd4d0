"""`simplerl sft`: runs the warm start alone."""

from nemo_simplerl.cli.launch import launch
from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.schema import Config


def run(argv: list[str]) -> int:
    """Exit status of `simplerl sft OVERRIDES`."""
    return launch("sft", argv, _start)


def _start(config: Config) -> int:
    if config.sft.output is None or config.data.sft_path is None:
        raise ConfigErrors(
            ["simplerl sft needs data.sft_path (the examples) and sft.output (the folder for the model)."]
        )
    # torch loads here, once the configuration is right
    from nemo_simplerl.trainer.start import start_warm_start

    start_warm_start(config)
    return 0
