"""The rules between keys: pure functions of the configuration, the model's shape and the number of ranks."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from nemo_simplerl.config.build import keys_of
from nemo_simplerl.config.durations import seconds_of
from nemo_simplerl.config.errors import suggest
from nemo_simplerl.config.rules import gate, sft, trtllm, watchdog
from nemo_simplerl.config.rules.ranges import RANGES, in_words, inside
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape, decides_shape


class _NotReadable(Exception):
    """A rule asked for a key that has a problem of its own."""


class _View:
    """A section through which reported keys cannot be read, at any depth."""

    def __init__(self, section: Any, reported: frozenset[str], path: str = ""):
        self._section, self._reported, self._path = section, reported, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        if path in self._reported:
            raise _NotReadable(path)
        value = getattr(self._section, name)
        return _View(value, self._reported, path) if dataclasses.is_dataclass(value) else value


def run_rules(
    config: Config, reported: frozenset[str], rules: Iterable[Callable[[Config], Iterator[str]]]
) -> list[str]:
    """What the rules yield. A rule ends where it would read a key in `reported`."""
    view = cast(Config, _View(config, reported))
    problems: list[str] = []
    for rule in rules:
        try:
            problems.extend(rule(view))
        except _NotReadable:
            continue
    return problems


def check(
    config: Config, shape: ModelShape | None, world_size: int | None, reported: frozenset[str] = frozenset()
) -> list[str]:
    """Every broken rule, each with what was asked, what was found and what would work. Touches no file.

    Rules that need the shape or the world size are skipped where it is None, and so are those that would read
    a key in `reported`. A number out of its range is reported once and no further rule reads it.
    """
    out_of_range: dict[str, str] = {}
    for key, interval in RANGES.items():
        for problem in run_rules(config, reported, [partial(_is_in_range, key=key, interval=interval)]):
            out_of_range[key] = problem
    reported |= frozenset(out_of_range)
    if any(map(decides_shape, reported)):
        shape = None
    rules: list[Callable[[Config], Iterator[str]]] = list(_RULES)
    if shape is not None:
        rules += [partial(rule, shape=shape) for rule in _SHAPE_RULES]
    if world_size is not None:
        rules += [partial(rule, world_size=world_size) for rule in _WORLD_RULES]
    return [*out_of_range.values(), *run_rules(config, reported, rules)]


def _value(config: Config, key: str) -> Any:
    """The value at a dotted key; None in a section that is null."""
    value: Any = config
    for name in key.split("."):
        value = None if value is None else getattr(value, name)
    return value


# Rules of the configuration alone.


def _is_in_range(config: Config, key: str, interval: str) -> Iterator[str]:
    value = _value(config, key)
    if isinstance(value, int | float) and not inside(value, interval):
        yield f"{key}={value} is out of range; accepted: {in_words(interval)}."


def _updates_fill_the_rollout(config: Config, section: str) -> Iterator[str]:
    size = getattr(config, section).global_batch_size
    prompts, n = config.data.rollout_batch_size, config.rollout.n_samples_per_prompt
    if prompts * n % size:
        yield (
            f"{section}.global_batch_size={size} does not divide the samples of a step: "
            f"data.rollout_batch_size={prompts} * rollout.n_samples_per_prompt={n} = {prompts * n}. "
            f"Sizes that work near it: {_near_divisors(prompts * n, size)}."
        )


def _sequence_parallel_needs_tensor_parallel(config: Config) -> Iterator[str]:
    if config.actor.sequence_parallel and config.actor.tensor_model_parallel_size == 1:
        yield (
            "actor.sequence_parallel=true splits activations over tensor-parallel ranks, but "
            "actor.tensor_model_parallel_size=1. Set actor.sequence_parallel=false, or a tensor size above 1."
        )


def _transformer_engine_is_for_bf16(config: Config) -> Iterator[str]:
    model = config.model
    asked = {
        "transformer_engine=true": model.transformer_engine,
        "apply_rope_fusion=true": model.apply_rope_fusion,
        f"fp8={model.fp8}": model.fp8,
    }
    for setting in (name for name, value in asked.items() if value and model.precision != "bf16"):
        yield (
            f"model.{setting} is for bfloat16, and model.precision={model.precision}: Transformer Engine's products of "
            "float32 tensors are TF32, and its attention takes none in packed rows. Set model.precision=bf16, or leave "
            "it at null."
        )


def _lr_falls(config: Config, section: str) -> Iterator[str]:
    optim = getattr(config, section).optim
    if optim.min_lr > optim.lr:
        yield (
            f"{section}.optim.min_lr={optim.min_lr} is above {section}.optim.lr={optim.lr}. "
            f"The rate falls from lr to min_lr: set min_lr to {optim.lr} or less, such as {0.1 * optim.lr:g}."
        )


def _rewards_are_ordered(config: Config) -> Iterator[str]:
    reward = config.reward
    if not reward.correct > reward.incorrect >= reward.no_answer:
        yield (
            f"reward.correct={reward.correct}, reward.incorrect={reward.incorrect}, "
            f"reward.no_answer={reward.no_answer} would teach wrong answers. "
            "Needed: correct > incorrect >= no_answer, such as 1.0, -0.5, -1.0."
        )


def _reward_urls_are_urls(config: Config) -> Iterator[str]:
    if config.reward.url == []:
        yield "reward.url=[] names no server. Give reward.url=http://HOST:PORT, or reward.url=null to grade here."
    for url in [config.reward.url] if isinstance(config.reward.url, str) else config.reward.url or []:
        if problem := _url_problem(url):
            yield f"reward.url={url!r} {problem}. Give the address of a reward server, http://HOST:PORT."


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (it is checked when read)
    except ValueError as error:
        return f"is no URL ({error})"
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        return "is no http:// or https:// URL"
    if parts.username is not None or parts.password is not None:
        return "holds a password, which the run directory would keep; the token belongs in SIMPLERL_REWARD_TOKEN"
    if parts.query or parts.fragment or parts.path.rstrip("/").endswith("/grade"):
        return "goes on after the server's address"
    return None


def _masked_responses_get_no_eos(config: Config) -> Iterator[str]:
    if config.algo.truncated == "mask" and config.algo.overwrite_truncated_with_eos:
        yield (
            "algo.truncated=mask leaves cut responses out of the losses, and "
            "algo.overwrite_truncated_with_eos=true trains them as if they had ended. "
            "Set algo.overwrite_truncated_with_eos=false, or algo.truncated=penalize."
        )


def _critic_warmup_ends(config: Config) -> Iterator[str]:
    warmup, steps = config.algo.critic_warmup_steps, config.trainer.max_steps
    if steps is not None and warmup >= steps:
        yield (
            f"algo.critic_warmup_steps={warmup} leaves the actor no step of trainer.max_steps={steps}. "
            f"Set algo.critic_warmup_steps={steps - 1} or less, or trainer.max_steps={warmup + 1} or more."
        )


def _periodic_evaluation_has_data(config: Config) -> Iterator[str]:
    if config.trainer.eval_every > 0 and config.data.eval_path is None:
        yield (
            f"trainer.eval_every={config.trainer.eval_every}, but data.eval_path=null. "
            "Give data.eval_path=FILE, or trainer.eval_every=0."
        )


def _best_checkpoint_is_evaluated(config: Config) -> Iterator[str]:
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


def _max_time_is_a_time(config: Config) -> Iterator[str]:
    if config.trainer.max_time is not None:
        try:
            seconds_of(config.trainer.max_time)
        except ValueError as error:
            yield f"trainer.max_time={error}."


def _resume_allows_known_keys(config: Config) -> Iterator[str]:
    known = list(keys_of(Config))
    for key in config.trainer.resume_allow:
        if key not in known:
            yield f"trainer.resume_allow names {key!r}, which is no key and no section.{suggest(key, known)}"


def _path_is_given(config: Config, key: str) -> Iterator[str]:
    if not _value(config, key):
        yield f"{key} is empty. Give {key}=PATH."


def _data_file_has_a_known_ending(config: Config, key: str) -> Iterator[str]:
    path = _value(config, key)
    if path and not path.endswith((".json", ".jsonl")):
        yield (
            f"{key}={path!r} has another ending than .json (a list of objects) or .jsonl (one a line). "
            f"Bring the data in one of the two, and give {key}=FILE."
        )


def _created_attention_fits(config: Config) -> Iterator[str]:
    create = config.model.create
    if create is None:
        return
    hidden, heads, groups = create.hidden_size, create.num_attention_heads, create.num_query_groups
    if hidden % (2 * heads):
        yield (
            f"model.create.hidden_size={hidden} does not split into an even width for each of "
            f"model.create.num_attention_heads={heads} (rotary embeddings pair the dimensions). "
            f"Use a multiple of {2 * heads}, such as {_near_multiples(2 * heads, hidden)}."
        )
    if heads % groups:
        yield (
            f"model.create.num_query_groups={groups} does not divide "
            f"model.create.num_attention_heads={heads}. Use one of {_near_divisors(heads, groups)}."
        )


# Rules that need the model's shape.


def _tensor_parallel_splits_the_layers(config: Config, shape: ModelShape) -> Iterator[str]:
    size = config.actor.tensor_model_parallel_size
    parts = {
        "attention heads": shape.num_attention_heads,
        "query groups": shape.num_query_groups,
        "ffn_hidden_size": shape.ffn_hidden_size,
    }
    wrong = [f"{count} {name}" for name, count in parts.items() if count % size]
    if wrong:
        fits = [n for n in range(1, shape.num_query_groups + 1) if not any(count % n for count in parts.values())]
        yield (
            f"actor.tensor_model_parallel_size={size} does not divide the model's {' and '.join(wrong)}. "
            f"Sizes that work: {_listed(fits)}."
        )


def _pipeline_stages_are_equal(config: Config, shape: ModelShape) -> Iterator[str]:
    size = config.actor.pipeline_model_parallel_size
    if shape.num_layers % size:
        yield (
            f"actor.pipeline_model_parallel_size={size} does not divide the model's {shape.num_layers} "
            f"layers. Sizes that work: {_near_divisors(shape.num_layers, size)}."
        )


def _rollout_fits_the_model(config: Config, shape: ModelShape) -> Iterator[str]:
    prompt, response = config.rollout.max_prompt_tokens, config.rollout.max_response_tokens
    limit = shape.max_position_embeddings
    if prompt + response > limit:
        fits = f"a response of {limit - prompt} or less" if prompt < limit else "a shorter prompt"
        yield (
            f"rollout.max_prompt_tokens={prompt} + rollout.max_response_tokens={response} "
            f"= {prompt + response}, but the model's max_position_embeddings is {limit}. "
            f"Use {fits}, or a model with more positions."
        )


# Rules that need the number of ranks.


def _layout_fits_the_ranks(config: Config, world_size: int) -> Iterator[str]:
    if world_size % _model_parallel_size(config):
        actor, needed = config.actor, _model_parallel_size(config)
        yield (
            f"actor.tensor_model_parallel_size={actor.tensor_model_parallel_size} * "
            f"pipeline_model_parallel_size={actor.pipeline_model_parallel_size} * "
            f"context_parallel_size={actor.context_parallel_size} = {needed} ranks a replica, but the run "
            f"has {world_size}. Start {needed} ranks or a multiple (torchrun --nproc_per_node {needed} "
            f"-m nemo_simplerl ...), or choose sizes whose product divides {world_size}."
        )


def _batch_splits(config: Config, world_size: int, section: str) -> Iterator[str]:
    """With _updates_fill_the_rollout it follows that the samples of a step split over the replicas too."""
    if section == "sft" and config.sft.output is None:
        return
    sizes = getattr(config, section)
    # Packed micro-batches have as many samples as there is room for.
    size, micro = sizes.global_batch_size, 1 if sizes.micro_batch_tokens else sizes.micro_batch_size
    replicas = _replicas(config, world_size)
    if replicas and size % (micro * replicas):
        unit = micro * replicas
        yield (
            f"{section}.global_batch_size={size} is not a multiple of {section}.micro_batch_size={micro} "
            f"* {replicas} data-parallel replicas = {unit}. "
            f"Use {_near_multiples(unit, size)}, or a smaller micro-batch."
        )


def _model_parallel_size(config: Config) -> int:
    actor = config.actor
    return actor.tensor_model_parallel_size * actor.pipeline_model_parallel_size * actor.context_parallel_size


def _replicas(config: Config, world_size: int) -> int:
    """Data-parallel size; 0 where the layout does not fit, which has a rule of its own."""
    return 0 if world_size % _model_parallel_size(config) else world_size // _model_parallel_size(config)


def _near_divisors(total: int, near: int) -> str:
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    return _listed(sorted(sorted(divisors, key=lambda n: abs(n - near))[:4]))


def _near_multiples(unit: int, near: int) -> str:
    below = near // unit * unit
    return _listed([n for n in (below, below + unit) if n > 0])


def _listed(numbers: Iterable[int]) -> str:
    *most, last = [str(number) for number in numbers]
    return f"{', '.join(most)} or {last}" if most else last


_RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    *(partial(_path_is_given, key=key) for key in ("model.path", "data.train_path", "trainer.run_dir")),
    *(partial(_data_file_has_a_known_ending, key=key) for key in ("data.train_path", "data.eval_path")),
    *(partial(_updates_fill_the_rollout, section=section) for section in ("actor", "critic")),
    *(partial(_lr_falls, section=section) for section in ("actor", "critic", "sft")),
    _sequence_parallel_needs_tensor_parallel,
    _transformer_engine_is_for_bf16,
    _rewards_are_ordered,
    _reward_urls_are_urls,
    _masked_responses_get_no_eos,
    gate.gate_compares_like_with_like,
    gate.engine_logprobs_are_the_policys,
    _critic_warmup_ends,
    _periodic_evaluation_has_data,
    _best_checkpoint_is_evaluated,
    _max_time_is_a_time,
    _resume_allows_known_keys,
    sft.there_are_examples,
    sft.evaluations_have_data,
    _created_attention_fits,
    trtllm.every_token_has_its_logprob,
    trtllm.prompts_fit_one_pass,
    watchdog.limits_are_seconds_of_known_waits,
)
_SHAPE_RULES: tuple[Callable[..., Iterator[str]], ...] = (
    _tensor_parallel_splits_the_layers,
    _pipeline_stages_are_equal,
    _rollout_fits_the_model,
    sft.examples_fit_the_model,
    trtllm.engine_splits_the_heads,
)
_WORLD_RULES: tuple[Callable[..., Iterator[str]], ...] = (
    _layout_fits_the_ranks,
    *(partial(_batch_splits, section=section) for section in ("actor", "critic", "sft")),
    trtllm.engines_fill_the_ranks,
)
