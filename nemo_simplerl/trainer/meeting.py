"""What the first rank of each role tells the others when all ranks meet at the end of a step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nemo_simplerl.config.phases import PHASES_OF

Message = tuple[int, str]  # level and text


@dataclass(frozen=True)
class Told:
    """stopped: why updates were left out, where some were. seconds: of the phases since the last step was logged."""

    stopped: str | None
    metrics: dict[str, float]
    seconds: Mapping[str, float]
    messages: list[Message]
    new_tokens: int = 0  # sampled since then


def joined_reports(metrics: Mapping[str, float], others: Mapping[str, Told]) -> dict[str, float]:
    """Rank 0's metrics of the step, with what roles that live elsewhere know alone, by role."""
    joined = dict(metrics)
    for role, told in others.items():
        own = {key: value for key, value in told.metrics.items() if key.startswith(f"{role}/")}
        joined |= own | joined
        joined |= {f"time/{phase}": told.seconds[phase] for phase in PHASES_OF[role] if phase in told.seconds}
    return joined


def new_messages(shown: Sequence[Message], others: Iterable[Told]) -> list[Message]:
    """The messages of other ranks that this one has not logged itself, in order, each once."""
    found = dict.fromkeys(message for told in others for message in told.messages)
    return [message for message in found if message not in shown]
