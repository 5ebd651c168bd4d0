"""Problems of a configuration, collected and raised together, in words for the person who must change it."""

import difflib
from collections.abc import Iterable, Sequence


class ConfigErrors(ValueError):
    """Every problem of one configuration, in `problems`."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n  - ".join([f"{count} in the configuration:", *self.problems]))


class Findings:
    """Problems found so far, and the keys that later rules must not read.

    A key in `reported` has a problem of its own, or its value is not known because of one. Rules that would read it
    are skipped, so that one mistake is reported once and a second, independent one is still reported.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.reported: set[str] = set()

    def add(self, problem: str, *keys: str) -> None:
        self.problems.append(problem)
        self.reported.update(keys)


def suggest(wrong: str, known: Iterable[str]) -> str:
    """' Did you mean a or b?' with the closest known names; empty where none is close.

    The last word counts on its own too: 'trainer.lr' answers with the keys that end in '.lr'.
    """
    names = list(known)
    leaf = wrong.rpartition(".")[2]
    leaves = difflib.get_close_matches(leaf, {name.rpartition(".")[2] for name in names}, n=1, cutoff=0.75)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.8)
    close += [name for name in names if name.rpartition(".")[2] in leaves]
    close = list(dict.fromkeys(close))[:3]
    return f" Did you mean {' or '.join(close)}?" if close else ""
