"""Rules of the warm start. They yield nothing where sft.output is null."""

from collections.abc import Iterator

from nemo_simplerl.config.rules.model import limiting_key
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape


def there_are_examples(config: Config) -> Iterator[str]:
    if config.sft.output is not None and config.data.sft_path is None:
        yield (
            f"sft.output={config.sft.output!r} asks for a warm start, but data.sft_path=null. "
            "Give data.sft_path=FILE (.jsonl of question or prompt, and response), or "
            "sft.output=null to start from model.path."
        )


def evaluations_have_data(config: Config) -> Iterator[str]:
    data, every = config.data, config.sft.eval_every
    if config.sft.output is not None and every > 0 and data.sft_eval_path is None and data.eval_path is None:
        yield (
            f"sft.eval_every={every}, but data.sft_eval_path=null and data.eval_path=null. Give "
            "data.sft_eval_path=FILE (held-out demonstrations, for the loss), data.eval_path=FILE (problems, for the "
            "accuracy), or sft.eval_every=0."
        )


def examples_fit_the_model(config: Config, shape: ModelShape) -> Iterator[str]:
    limit = shape.longest_sequence
    if config.sft.output is not None and config.sft.max_tokens > limit:
        yield (
            f"sft.max_tokens={config.sft.max_tokens} is above the model's {limiting_key(shape)}, {limit}. "
            f"Set sft.max_tokens={limit} or less; sft.overlong=drop leaves longer samples out."
        )
