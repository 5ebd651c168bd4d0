"""Rules of `trainer`, and of the paths that every run needs."""

from collections.abc import Iterator

from nemo_simplerl.config.build import keys_of
from nemo_simplerl.config.errors import suggest
from nemo_simplerl.config.rules.runner import value_at
from nemo_simplerl.config.schema import Config
from nemo_simplerl.durations import seconds_of


def path_is_given(config: Config, key: str) -> Iterator[str]:
    if not value_at(config, key):
        yield f"{key} is empty. Give {key}=PATH."


def data_file_has_a_known_ending(config: Config, key: str) -> Iterator[str]:
    path = value_at(config, key)
    if path and not path.lower().endswith((".json", ".jsonl", ".csv", ".parquet")):
        yield (
            f"{key}={path!r} has another ending than .json (a list of objects), .jsonl (one a line), .csv or .parquet. "
            f"Bring the data in one of them, and give {key}=FILE."
        )


def periodic_evaluation_has_data(config: Config) -> Iterator[str]:
    if config.trainer.eval_every > 0 and config.data.eval_path is None:
        yield (
            f"trainer.eval_every={config.trainer.eval_every}, but data.eval_path=null. "
            "Give data.eval_path=FILE, or trainer.eval_every=0."
        )


def best_checkpoint_is_evaluated(config: Config) -> Iterator[str]:
    trainer = config.trainer
    if trainer.keep_best is not None and trainer.eval_every == 0:
        yield (
            f"trainer.keep_best={trainer.keep_best} compares the checkpoints of steps that are evaluated, and with "
            "trainer.eval_every=0 only the last is. Give trainer.eval_every=N, or trainer.keep_best=null."
        )
    if trainer.keep_best == "eval/sampled_accuracy" and trainer.eval_samples == 0:
        yield (
            "trainer.keep_best=eval/sampled_accuracy, but trainer.eval_samples=0 samples nothing. "
            "Set trainer.eval_samples=1 or more, or trainer.keep_best=eval/accuracy."
        )


def max_time_is_a_time(config: Config) -> Iterator[str]:
    if config.trainer.max_time is not None:
        try:
            seconds_of(config.trainer.max_time)
        except ValueError as error:
            yield f"trainer.max_time={error}."


def resume_allows_known_keys(config: Config) -> Iterator[str]:
    known = list(keys_of(Config))
    for key in config.trainer.resume_allow:
        if key not in known:
            yield f"trainer.resume_allow names {key!r}, which is no key and no section.{suggest(key, known)}"
