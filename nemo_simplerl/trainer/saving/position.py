"""How far a run has come: steps done, and updates made of the step after them."""

import re
from dataclasses import dataclass

_NAME = re.compile(r"step_(\d{6,})(?:_update_(\d{4,}))?")


@dataclass(frozen=True, order=True)
class Place:
    """In order of time. `updates` counts those of both models in step `steps` + 1; 0 is between steps."""

    steps: int
    updates: int = 0

    @property
    def steps_begun(self) -> int:
        return self.steps + (self.updates > 0)

    @property
    def name(self) -> str:
        """Of its checkpoint: step_000002 after two steps, step_000003_update_0012 in the third after 12 updates."""
        if self.updates:
            return f"step_{self.steps + 1:06d}_update_{self.updates:04d}"
        return f"step_{self.steps:06d}"

    @property
    def in_words(self) -> str:
        return f"step {self.steps + 1}, update {self.updates}" if self.updates else f"step {self.steps}"


def place_of(name: str) -> Place | None:
    """The place whose checkpoint has this name; None where none has."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    place = Place(int(match[1])) if match[2] is None else Place(int(match[1]) - 1, int(match[2]))
    return place if place.steps >= 0 and place.name == name else None
