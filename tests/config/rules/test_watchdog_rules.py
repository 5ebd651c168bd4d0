import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nemo_simplerl
from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import load
from nemo_simplerl.config.phases import PHASES
from nemo_simplerl.config.rules.watchdog import NAMES

FOLDER = Path(nemo_simplerl.__file__).parent
# What names a wait, and the place among its arguments of the name.
NAMING = {"waiting": 0, "timer": 0, "timed": 0, "gather_objects": 2, "of_first_rank": 1, "of_rank": 2, "exchange": 3}
NAMING |= {"wait_for_word": 0}
KINDS = {"gather_objects": "gather.", "of_first_rank": "gather.", "of_rank": "gather.", "exchange": "exchange."}
# They pass on names that others give them.
PASSING_ON = {"parallel/exchange.py", "parallel/reductions.py", "parallel/word.py", "trainer/logging/timing.py"}


def _problems(limits: str) -> list[str]:
    try:
        load(["experiment=quickstart", f"trainer.watchdog.limits_s={limits}"], world_size=1)
    except ConfigErrors as errors:
        return errors.problems
    return []


def named_in(source: str) -> Iterator[tuple[str, str | None]]:
    """The call that names each wait in `source`, with the name; None where the name is no literal."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
        if called not in NAMING:
            continue
        keywords = [keyword.value for keyword in node.keywords if keyword.arg == "what"]
        given = [*node.args[NAMING[called] :][:1], *keywords] or [ast.Constant("objects")]
        name = given[0].value if isinstance(given[0], ast.Constant) else None
        yield called, None if name is None else KINDS.get(called, "") + name


def test_the_waits_of_a_source_are_found():
    source = (
        "with waiting('a'), waits.waiting(f'b.{x}'), self.timer('c'):\n    gather_objects(x, None)\n"
        "@timed('d')\ndef f():\n    gather_objects(x, None, 'e')\n    reductions.of_first_rank(x, what='g')"
    )
    assert sorted(named_in(source), key=str) == [
        ("gather_objects", "gather.e"),
        ("gather_objects", "gather.objects"),
        ("of_first_rank", "gather.g"),
        ("timed", "d"),
        ("timer", "c"),
        ("waiting", "a"),
        ("waiting", None),
    ]


def test_every_phase_and_every_wait_of_the_source_can_be_limited_and_nothing_else():
    found = {
        (str(file.relative_to(FOLDER)), called, name)
        for file in FOLDER.rglob("*.py")
        if not file.is_relative_to(FOLDER / "dry")  # no watchdog watches the dry run
        for called, name in named_in(file.read_text(encoding="utf-8"))
    }
    assert {file for file, _, name in found if name is None} == PASSING_ON
    assert {name for _, called, name in found if called in ("timer", "timed")} - {None} == set(PHASES)
    assert {name for _, _, name in found} - {None} == set(NAMES)


def test_limits_of_phases_and_of_waits_are_taken():
    assert _problems("{rollout: 60, engine.generate: 0.5, gather.completions: 9}") == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [("{rolout: 60}", "Did you mean trainer"), ("{rollout: -1}", "seconds above 0"), ("{rollout: soon}", "no time")],
)
def test_a_limit_on_nothing_or_of_no_time_is_refused(limits, words):
    (problem,) = _problems(limits)
    assert words.replace(" trainer", "") in problem
