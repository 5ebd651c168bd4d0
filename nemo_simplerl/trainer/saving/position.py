"""How far a run has come: steps done, and updates made of the step after them."""

import re
from dataclasses import dataclass

_NAME = re.compile(r"step_(\d{6,})(?:_update_(\d{4,}))?")


@dataclass(frozen=True, order=True)
class TrainingPosition:
    """Ordered by time. `updates` counts those of all models in step `steps` + 1; 0 is between two steps."""

    steps: int
    updates: int = 0

    @property
    def steps_begun(self) -> int:
        return self.steps + (self.updates > 0)

    @property
    def name(self) -> str:
        """The name of its checkpoint: step_000002 after two steps, step_000003_update_0012 twelve updates later."""
        if self.updates:
            return f"step_{self.steps + 1:06d}_update_{self.updates:04d}"
        return f"step_{self.steps:06d}"

    @property
    def in_words(self) -> str:
        return f"step {self.steps + 1}, update {self.updates}" if self.updates else f"step {self.steps}"


def position_of(name: str) -> TrainingPosition | None:
    """The position whose checkpoint has this name; None where none has."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    step, updates = int(match[1]), match[2]
    position = TrainingPosition(step) if updates is None else TrainingPosition(step - 1, int(updates))
    return position if position.steps >= 0 and position.name == name else None
