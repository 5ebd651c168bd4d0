"""Start of the training commands: check the configuration before torch loads, then run one rank of the world."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from nemo_simplerl.cli.start.guard import is_first_rank
from nemo_simplerl.config.load import load
from nemo_simplerl.config.overrides import CONFIG_DIR
from nemo_simplerl.config.placement import ROLES, in_words, places_of
from nemo_simplerl.config.rules.layout import placement_notes
from nemo_simplerl.config.rules.machine import ranks_per_node
from nemo_simplerl.config.schema import Config
from nemo_simplerl.data.examples import check_examples
from nemo_simplerl.data.templates import NAMES
from nemo_simplerl.trainer.guard.lock import held_outputs

CONFIG_DIR_HELP = "folder with experiments of your own: experiment=NAME takes DIR/NAME.yaml"
CHECK = "--check"  # only says whether the command line can be used, before ranks are started


def launch(command: str, argv: Sequence[str], check: Callable[[Config], None], start: Callable[[Config], int]) -> int:
    """Exit status of `start`, which --check leaves out and which holds the run directory.

    check: raises ValueError for a configuration that this command cannot use. Raises ConfigErrors for a wrong
    configuration, and ValueError where another process holds the directory.
    """
    asked = [option for option in argv if option in ("-h", "--help")]
    overrides = [text for text in argv if text not in (*asked, CHECK)]
    if asked:
        return _help(command, overrides)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = load(overrides, world_size)
    check(config)
    if CHECK in argv:
        _tell_placement(config, world_size)
        return 0
    with held_outputs(config) if is_first_rank() else nullcontext():
        return start(config)


def _tell_placement(config: Config, world_size: int) -> None:
    """Say where roles live that do not share all ranks, and what has no effect there."""
    has_critic = config.algo.has_critic
    places = places_of(config.placement, world_size, has_critic=has_critic)
    if not places.is_shared:
        roles = [role for role in ROLES if role != "critic" or has_critic]
        print(f"placement: {in_words(places, roles, ranks_per_node())}", file=sys.stderr)
    for note in placement_notes(config, places):
        print(f"note: {note}", file=sys.stderr)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that composes a configuration beside arguments of its own."""
    parser.add_argument("--config-dir", metavar="DIR", help=CONFIG_DIR_HELP)
    parser.add_argument(CHECK, action="store_true", help="only say whether the command line can be used")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides of a command with `add_config_options`, as config.load takes them."""
    return [*([] if args.config_dir is None else [f"--config-dir={args.config_dir}"]), *args.overrides]


def add_prompt_options(parser: argparse._ActionsContainer) -> None:
    """The options that say how prompts are written."""
    parser.add_argument("--template", choices=NAMES, default="qwen25-math-cot", help="(default: %(default)s)")
    parser.add_argument(
        "--examples",
        metavar="FILE",
        help="rows of question, response, answer: worked examples before every question, after which a response ends "
        "with the line or paragraph, as theirs do",
    )
    parser.add_argument("--no-trailing-newline", action="store_true", help="end prompts as the recipe's training did")


def with_prompt_options(args: argparse.Namespace, config: Config) -> Config:
    """`config` with the template and the worked examples of `add_prompt_options`, which are checked. Raises ValueError
    for examples that are none."""
    examples = config.data.examples if args.examples is None else os.path.expanduser(args.examples)
    data = dataclasses.replace(
        config.data,
        template=args.template,
        examples=examples,
        prompt_trailing_newline=not args.no_trailing_newline,
    )
    config = dataclasses.replace(config, data=data)
    check_examples(config)
    return config


def require_different_samples(args: argparse.Namespace, config: Config) -> None:
    """Raises ValueError where several samples of a problem are asked for that would all be the same."""
    remedies = {
        "--temperature 0": ("Give a --temperature above 0, such as 0.7", args.temperature == 0),
        "rollout.top_k=1": ("Give rollout.top_k=0", config.rollout.top_k == 1),
    }
    for setting, (remedy, is_set) in remedies.items():
        if args.samples > 1 and is_set:
            raise ValueError(
                f"--samples {args.samples} at {setting} are {args.samples} equal responses to each problem. {remedy}, "
                "or --samples 1."
            )


def sampling_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of trainer.offline.benchmark.EvalRequest that come from options shared by eval and distill."""
    names = ("samples", "temperature", "top_p", "max_tokens", "seed")
    return {name: getattr(args, name) for name in names}


def _help(command: str, words: Sequence[str]) -> int:
    from nemo_simplerl.cli.start.keys import overview, sections_in_words

    topics, overrides = [], []
    for before, word in zip(["", *words], words, strict=False):
        is_topic = "=" not in word and not word.startswith("-") and before != CONFIG_DIR
        (topics if is_topic else overrides).append(word)
    print(sections_in_words(topics, overrides) if topics else overview(command, overrides))
    return 0
