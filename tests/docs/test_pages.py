"""The pages a newcomer reads: how long they are, whom they are for, and that what they name is there."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
DOCS = sorted((REPOSITORY / "docs").glob("*.md"))
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *DOCS]
NAMES = [page.name for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_a_screen_and_a_half():
    lines = README.read_text().splitlines()
    assert len(lines) <= 90
    assert [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_prose_is_wrapped(page):
    """At 120 columns. A row of a table cannot be."""
    lines = without_code(page.read_text()).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("page", DOCS, ids=[page.name for page in DOCS])
def test_a_page_says_first_whom_it_is_for(page):
    title, blank, first = page.read_text().splitlines()[:3]
    assert title.startswith("# ") and not blank
    assert first.startswith("For ")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or anchor and anchor not in anchors_of(file):
            broken.append(target)
    assert broken == []


def test_every_page_can_be_found_from_the_index():
    index = (REPOSITORY / "docs/index.md").read_text()
    assert [page.name for page in DOCS if page.name != "index.md" and f"]({page.name}" not in index] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_file_that_is_named_exists(page):
    """`folder/file.py` is looked for from the top of the repository and from the package; NAME is the reader's own."""
    text = re.sub(r"^```(diff|python)\n.*?^```$", "", page.read_text(), flags=re.M | re.S)
    named = set(re.findall(r"(?<![\w./*-])[\w.-]+(?:/[\w.-]+)+\.(?:py|sh|sbatch|yaml|md|svg|png)\b", text))
    places = (REPOSITORY, REPOSITORY / "nemo_simplerl", page.parent)
    lost = [name for name in named if "NAME" not in name and not any((place / name).exists() for place in places)]
    assert sorted(lost) == []


def calls_in(source: str) -> set[str]:
    """Names of the functions and methods that are called."""
    called = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "") for func in called}


def test_the_readmes_step_calls_what_the_loop_calls():
    (block,) = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.M | re.S)
    assert calls_in(block) <= calls_in((REPOSITORY / "nemo_simplerl/trainer/loop.py").read_text())
    assert {"generate", "grade", "kl_penalty", "estimate", "refit"} <= calls_in(block)
