"""The rules between keys: pure functions of the configuration, the model's shape and the number of ranks.

A rule is a function in one of the modules beside this one and an entry in a table below.
"""

from collections.abc import Iterator
from functools import partial

from nemo_simplerl.config.engines import ENGINES
from nemo_simplerl.config.rules import algo, gate, layout, model, reward, sft, trainer, watchdog
from nemo_simplerl.config.rules.numbers import inside, interval_in_words
from nemo_simplerl.config.rules.ranges import RANGES
from nemo_simplerl.config.rules.runner import Rule, run_rules, value_at
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import ModelShape, decides_shape


def check(
    config: Config,
    shape: ModelShape | None,
    world_size: int | None,
    reported: frozenset[str] = frozenset(),
    critic_shape: ModelShape | None = None,
    ranks_per_node: int | None = None,
) -> list[str]:
    """Every broken rule, each with what was asked, what was found and what would work. Touches no file.

    Rules that need the shape, the world size or the ranks of a node are skipped where it is None, and so are those that
    would read a key in `reported`. A number out of its range is reported once and no further rule reads it.
    critic_shape: where the critic is another model than the actor.
    """
    out_of_range: dict[str, str] = {}
    for key, interval in RANGES.items():
        for problem in run_rules(config, reported, [partial(_is_in_range, key=key, interval=interval)]):
            out_of_range[key] = problem
    reported |= frozenset(out_of_range)
    if any(map(decides_shape, reported)):
        shape = None
    rules = list(_RULES)
    if shape is not None:
        rules += [partial(rule, shape=shape) for rule in _SHAPE_RULES]
    if critic_shape is not None:
        rules += [partial(rule, shape=critic_shape, whose="critic") for rule in _CRITIC_RULES]
    if world_size is not None:
        rules += [partial(rule, world_size=world_size) for rule in _WORLD_RULES]
        if ranks_per_node is not None:
            facts = {"world_size": world_size, "ranks_per_node": ranks_per_node}
            rules += [partial(rule, **facts) for rule in _NODE_RULES]
    return [*out_of_range.values(), *run_rules(config, reported, rules)]


def _is_in_range(config: Config, key: str, interval: str) -> Iterator[str]:
    value = value_at(config, key)
    if isinstance(value, int | float) and not inside(value, interval):
        yield f"{key}={value} is out of range; accepted: {interval_in_words(interval)}."


def _of_critic(config: Config, rule: Rule, **facts: object) -> Iterator[str]:
    """What a rule of the critic's settings yields; nothing where none is trained."""
    if config.algo.has_critic:
        yield from rule(config, section="critic", **facts)


def _of_engine(config: Config, name: str, rule: Rule, **facts: object) -> Iterator[str]:
    """What a rule of one engine yields; nothing where another engine is chosen."""
    if config.rollout.engine == name:
        yield from rule(config, **facts)


_RULES: tuple[Rule, ...] = (
    *(partial(trainer.path_is_given, key=key) for key in ("model.path", "data.train_path", "trainer.run_dir")),
    *(
        partial(trainer.data_file_has_a_known_ending, key=f"data.{name}_path")
        for name in ("train", "eval", "sft", "sft_eval")
    ),
    partial(layout.updates_fill_the_rollout, section="actor"),
    *(partial(algo.lr_falls, section=section) for section in ("actor", "sft")),
    *(partial(algo.something_is_learnt, section=section) for section in ("actor", "sft")),
    *(
        partial(_of_critic, rule=rule)
        for rule in (layout.updates_fill_the_rollout, algo.lr_falls, algo.something_is_learnt)
    ),
    algo.group_has_others,
    algo.nothing_is_asked_of_no_critic,
    algo.estimator_reads_its_settings,
    layout.sequence_parallel_needs_tensor_parallel,
    model.transformer_engine_is_for_bf16,
    reward.rewards_are_ordered,
    reward.overlong_responses_lose_something,
    reward.reward_urls_are_urls,
    algo.clipped_rewards_differ,
    algo.masked_responses_get_no_eos,
    algo.mixed_groups_can_be_found,
    algo.clip_bounds_are_in_order,
    algo.surrogate_reads_its_settings,
    algo.kl_in_the_loss_teaches,
    gate.gate_compares_like_with_like,
    gate.engine_logprobs_are_the_policys,
    gate.older_samples_are_corrected,
    algo.critic_warmup_ends,
    algo.length_alpha_leaves_a_lambda,
    algo.warmup_lambda_has_steps,
    trainer.periodic_evaluation_has_data,
    trainer.best_checkpoint_is_evaluated,
    trainer.max_time_is_a_time,
    trainer.resume_allows_known_keys,
    sft.there_are_examples,
    sft.evaluations_have_data,
    model.created_attention_fits,
    *(partial(_of_engine, name=name, rule=rule) for name, engine in ENGINES.items() for rule in engine.rules),
    watchdog.limits_are_seconds_of_known_waits,
)
_SHAPE_RULES: tuple[Rule, ...] = (
    layout.tensor_parallel_splits_the_layers,
    layout.pipeline_stages_are_equal,
    layout.critics_sizes_split_the_actors_model,
    model.rollout_fits_the_model,
    sft.examples_fit_the_model,
    *(partial(_of_engine, name=name, rule=rule) for name, engine in ENGINES.items() for rule in engine.shape_rules),
)
# A critic that is another model than the actor's is cut by its own sizes, and reads the same tokens.
_CRITIC_RULES: tuple[Rule, ...] = (
    partial(layout.tensor_parallel_splits_the_layers, section="critic"),
    partial(layout.pipeline_stages_are_equal, section="critic"),
    model.rollout_fits_the_model,
)
_WORLD_RULES: tuple[Rule, ...] = (
    layout.roles_have_ranks,
    partial(layout.layout_fits_the_ranks, section="actor"),
    partial(_of_critic, rule=layout.layout_fits_the_ranks),
    *(partial(layout.batch_splits, section=section) for section in ("actor", "sft")),
    partial(_of_critic, rule=layout.batch_splits),
    *(partial(_of_engine, name=name, rule=rule) for name, engine in ENGINES.items() for rule in engine.world_rules),
)
_NODE_RULES: tuple[Rule, ...] = tuple(
    partial(_of_engine, name=name, rule=rule) for name, engine in ENGINES.items() for rule in engine.node_rules
)
