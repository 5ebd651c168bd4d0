"""Chats, the form in which verl and TRL write prompts and examples: a list of {"role": ..., "content": ...}."""

from typing import Any, NamedTuple, TypeAlias


class Turn(NamedTuple):
    """What one side of a chat says."""

    role: str  # "system", "user", "assistant", or another that the chat template knows
    content: str


Chat: TypeAlias = tuple[Turn, ...]


def is_chat(value: Any) -> bool:
    """Whether a row's value has the form of a chat."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)


def read_chat(value: list[dict[str, Any]]) -> Chat:
    """The chat in a row's value that `is_chat`. Raises ValueError where a turn holds something else than text."""
    return tuple(Turn(str(turn["role"]), _text(turn.get("content"))) for turn in value)


def question_of(chat: Chat) -> str:
    """The question of a chat that asks one, a system turn aside. Raises ValueError where other turns go before it."""
    asked = [turn for turn in chat if turn.role != "system"]
    if len(asked) != 1 or asked[0].role != "user":
        roles = ", ".join(turn.role for turn in chat)
        raise ValueError(f"a chat of several turns ({roles}) is written by data.template=chat alone")
    return asked[0].content


def has_system_turn(chat: Chat) -> bool:
    """Whether the chat gives the model general instructions."""
    return any(turn.role == "system" for turn in chat)


def asks_for_a_box(chat: Chat) -> bool:
    r"""Whether a turn speaks of `\boxed`, where the reward looks for the answer."""
    return any("boxed" in turn.content for turn in chat)


def _text(content: Any) -> str:
    """A turn's content, which some data sets write as a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ValueError("a turn of its chat holds something else than text")
