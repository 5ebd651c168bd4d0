"""Scripted roles whose engine and consistency gate a test chooses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nemo_simplerl.data.problems import Problem, Prompt
from nemo_simplerl.rollout.base import RolloutEngine
from nemo_simplerl.trainer.logging.screen import messages_to
from nemo_simplerl.trainer.roles import Roles
from support.tiny import ScriptedEngine

PROMPTS = [Prompt(Problem(str(i), "", "1", None, None), "", tuple(range(3, 8 + i))) for i in range(4)]


class GuessingEngine(ScriptedEngine):
    """Says of each token that its log-probability was -5, about what a random model of 131 ids gives, and of one token
    what `last_word` says."""

    last_word = -5.0

    def _completion(self, seed, max_tokens):
        completion = super()._completion(seed, max_tokens)
        return replace(completion, logprobs=(-5.0,) * (len(completion.token_ids) - 1) + (self.last_word,))


def change_gate(roles: Roles, **changes) -> None:
    """Change keys of rollout.consistency."""
    roles.gate = replace(roles.gate, config=replace(roles.gate.config, **changes))


@contextmanager
def logged_messages() -> Iterator[list[str]]:
    """What is logged inside, as it comes."""
    messages: list[str] = []
    with messages_to(messages.append, is_first_rank=True):
        yield messages


def use_engine(roles: Roles, engine: RolloutEngine) -> None:
    """Give the roles another engine, and it the actor's weights."""
    roles.engine = engine
    roles.refit(0)
