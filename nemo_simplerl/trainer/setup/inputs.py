"""What a run reads: its tokenizer, its files of problems as prompts, and a record of what all its inputs held."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch.distributed as dist

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.rules.runner import value_at
from nemo_simplerl.config.schema import Config, DataConfig
from nemo_simplerl.data.examples import examples_of
from nemo_simplerl.data.problems import Prompt, load_problems, render_prompts
from nemo_simplerl.data.tokenizer import check_vocab, load_tokenizer
from nemo_simplerl.files import Unessential, atomic_write
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.parallel.reductions import of_first_rank
from nemo_simplerl.trainer.saving.checkpoint import positions_on_disk
from nemo_simplerl.user_files import content_digest
from nemo_simplerl.user_functions import user_function

RECORD = "inputs.json"  # digests of the contents of files and models, by the key that names them
_INPUTS = (
    *("data.train_path", "data.eval_path", "data.examples"),
    *("model.path", "model.tokenizer", "critic.path", "sft.output"),
)
_FUNCTION = "reward.function"


def tokenizer_of(folder: Path):
    """The tokenizer in a model's folder. Raises ValueError where it has ids beyond the model's vocabulary."""
    tokenizer = load_tokenizer(folder)
    check_vocab(tokenizer, read_hf_config(folder)["vocab_size"])
    return tokenizer


def build_prompts(
    data: DataConfig,
    tokenizer,
    path: str | None,
    *,
    max_tokens: int,
    limit: int | None = None,
    is_graded: bool = True,
) -> tuple[list[Prompt], list[str]]:
    """Prompts of at most `max_tokens` tokens from a file of problems.

    Returns the first `limit` prompts, none without a path, and notices of what was kept, dropped and cut. is_graded: as
    in `load_problems`.
    """
    if path is None:
        return [], []
    problems, golds = load_problems(
        path, data.question_field, data.answer_field, without_gold=data.rows_without_gold, is_graded=is_graded
    )
    prompts, report = render_prompts(
        problems,
        tokenizer,
        data.template,
        trailing_newline=data.prompt_trailing_newline,
        max_prompt_tokens=max_tokens,
        overlong=data.overlong_prompts,
        examples=examples_of(data),
    )
    parts = [f"{report.num_kept} prompts, the longest of {report.longest} tokens (limit {max_tokens})"]
    return prompts[:limit], [f"{path}: " + ", ".join(parts + golds.notes() + report.notes())]


def inputs_held(config: Config) -> dict[str, str]:
    """Digests of what the inputs hold now, by key, for `record_inputs` once they are read. On rank 0; empty elsewhere.
    Collective. Raises ConfigErrors where one is unreadable."""
    held: dict[str, str] = {}

    def digested() -> tuple[list[str], list[str]]:
        held.update(_digests(config))
        return [], []

    _agreed(config, digested)
    return held


def record_inputs(config: Config, held: Mapping[str, str]) -> None:
    """Write down what the inputs of a run that begins hold: `held` of those that were read since, which may be others
    by now. Collective. Raises ConfigErrors where one is unreadable."""
    _agreed(config, lambda: _recorded(config, held))


def check_inputs(config: Config, checkpoints: Path) -> list[str]:
    """Compare the inputs of a run that goes on from one of `checkpoints` with what they held when it began. Collective.

    Returns messages on inputs that trainer.resume_allow lets differ. Raises ConfigErrors, on every rank, for others:
    a run would go on with other prompts or from other weights, under the same names. Where there is no checkpoint, the
    run begins, and its inputs are written down.
    """
    return _agreed(config, lambda: compare_inputs(config) if positions_on_disk(checkpoints) else _recorded(config))


def compare_inputs(config: Config) -> tuple[list[str], list[str]]:
    """Refusals and messages; where there is none of the former, the record becomes what the inputs hold now."""
    file = Path(config.trainer.run_dir) / RECORD
    try:
        now, before = _digests(config), _read_record(file)
    except (OSError, ValueError) as error:
        return [_unreadable(file, error)], []
    if before is None:
        _write_record(file, now)
        return [], [f"{file} is not there, as in runs of older versions: what the inputs hold is recorded from here on"]
    changed = [key for key in now if before.get(key, now[key]) != now[key]]
    allowed = [key for key in changed if {key, key.partition(".")[0]} & set(config.trainer.resume_allow)]
    problems = [
        f"{key}={value_at(config, key)}: its contents have changed since the run in {file.parent} began. Bring back "
        f"what they were, choose another trainer.run_dir, or go on with the new ones: trainer.resume_allow=[{key}]."
        for key in changed
        if key not in allowed
    ]
    if not problems and before | now != before:
        _write_record(file, before | now)
    return problems, [f"{key}: its contents have changed, which trainer.resume_allow lets through" for key in allowed]


def _digests(config: Config) -> dict[str, str]:
    """Digests of the inputs that are there; of the warm start's examples only until it is done."""
    output = config.sft.output
    is_warm = output is None or (Path(output) / "config.json").is_file()
    paths = {key: value_at(config, key) for key in (*_INPUTS, *([] if is_warm else ["data.sft_path"]))}
    if function := value_at(config, _FUNCTION):
        paths[_FUNCTION] = user_function(function).file
    named = {key: Path(path) for key, path in paths.items() if isinstance(path, str | Path) and path}
    return {key: content_digest(path) for key, path in named.items() if path.exists()}


def _agreed(config: Config, work: Callable[[], tuple[list[str], list[str]]]) -> list[str]:
    """The messages of `work`, done on rank 0 alone. Collective. Raises ConfigErrors on every rank for its refusals, and
    for what it cannot read: alone, rank 0 would leave the others waiting."""
    found: tuple[list[str], list[str]] = [], []
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            found = work()
        except (OSError, ValueError) as error:
            found = [_unreadable(Path(config.trainer.run_dir) / RECORD, error)], []
    problems, notes = of_first_rank(found, "checkpoint")
    if problems:
        raise ConfigErrors(problems)
    return notes


def _unreadable(file: Path, error: Exception) -> str:
    return f"the run's inputs cannot be compared with {file}: {error}. Mend or remove what cannot be read."


def _recorded(config: Config, held: Mapping[str, str] = MappingProxyType({})) -> tuple[list[str], list[str]]:
    _write_record(Path(config.trainer.run_dir) / RECORD, {**_digests(config), **held})
    return [], []


def _read_record(file: Path) -> dict[str, str] | None:
    record = json.loads(file.read_text()) if file.is_file() else None
    if record is not None and not isinstance(record, dict):
        raise ValueError(f"{file} is no JSON object")
    return record


def _write_record(file: Path, digests: dict[str, str]) -> None:
    """Write the record. A run does without it: a full disk is told, and the run goes on."""
    with Unessential().write(RECORD, file.parent):
        atomic_write(file, json.dumps(digests, indent=2) + "\n")
