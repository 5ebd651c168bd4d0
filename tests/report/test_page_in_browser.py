"""The file report.html in a headless Chromium: figures, filters, formulas, hostile text, requests."""

import json

import pytest

from nemo_simplerl.report.follow import Follower
from nemo_simplerl.report.page import build_page, write_page
from support.headless_browser import CHROMIUM, Page
from support.run_on_disk import write_lines, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]
HOSTILE = "</script><script>window.taken = 1</script><img src=x onerror='window.taken = 1'> $\\text{<img src=y>}$"
COUNT = "document.getElementById('count').textContent"
CARDS = "[...document.querySelectorAll('article')].map((card) => card.querySelector('header').textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    page = Page(tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "run", steps=10, per_step=40)
    rows = [json.loads(line) for line in (run / "rollouts" / "step_000003.jsonl").read_text().splitlines()]
    rows[0] |= {"id": "hostile", "response": HOSTILE, "prompt": HOSTILE, "gold": HOSTILE, "verdict": HOSTILE}
    rows[1] |= {"id": "formula", "response": r"so $\frac{1}{2} < 1$, $oops_$ and \[x^2\] \boxed{7}"}
    write_lines(run / "rollouts" / "step_000003.jsonl", rows)
    return write_page([run], run / "report.html")


@pytest.fixture
def page(browser, page_file):
    browser.ask("Page.navigate", url="about:blank")  # a change of the fragment alone would load nothing
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(page_file.as_uri())
    return browser


def choose(page, **fields):
    """Set filters as a reader of the page does."""
    for name, value in fields.items():
        field = f"document.getElementById('filters').elements[{json.dumps(name)}]"
        page.value(
            f"{field}.value = {json.dumps(str(value))}; {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )


def test_the_figures_are_seen_and_nothing_is_fetched_or_complained_of(page, page_file):
    shown = "[...document.querySelectorAll('figure > svg')].map((svg) => svg.getBoundingClientRect().height)"
    heights = page.value(shown)
    assert len(heights) == 17 and min(heights) > 100
    assert page.requests == [page_file.as_uri()]
    assert page.complaints == []


@pytest.mark.parametrize("width", [1200, 420])
def test_the_page_is_as_wide_as_the_window(page, page_file, width):
    page.open(page_file.as_uri(), width=width)
    assert page.value("document.documentElement.scrollWidth") <= width


def test_filters_change_the_list(page):
    assert page.value(COUNT) == "420 of 420 samples"
    assert len(page.value(CARDS)) == 20
    choose(page, source="training", step=3)
    assert page.value(COUNT) == "40 of 420 samples"
    assert all("step 3, training" in card for card in page.value(CARDS))
    choose(page, text="hostile")
    page.wait(f"{COUNT} === '1 of 420 samples'")
    choose(page, text="", verdict="correct")
    page.wait(f"{CARDS}.length > 1 && {CARDS}.every((card) => card.startsWith('correct'))")
    choose(page, step="", source="", verdict="", truncated=1, level=2, least=20, most=30)
    cards = page.value(CARDS)
    assert cards and all("level 2" in card and "cut at the limit" in card for card in cards)
    page.value("document.getElementById('clear').click()")
    assert page.value(COUNT) == "420 of 420 samples"
    assert page.complaints == []


def test_pages_are_turned_and_steps_are_gone_through(page):
    first = page.value(CARDS)
    page.value("document.getElementById('next').click()")
    assert page.value("document.getElementById('page').textContent") == "page 2 of 21"
    assert page.value(CARDS) != first
    choose(page, step=3)
    page.value("document.getElementById('later').click()")
    assert all("step 4," in card for card in page.value(CARDS))


def test_one_prompt_is_shown_across_the_steps(page):
    choose(page, source="greedy", step=0)
    page.value("document.querySelector('article button').click()")
    choose(page, source="greedy")
    cards = page.value(CARDS)
    assert ["step 0," in cards[0], "step 10," in cards[-1]] == [True, True]
    prompts = page.value(
        "[...document.querySelectorAll('article')].map((one) => one.querySelector('.text').textContent)"
    )
    assert len(set(prompts)) == 1


def test_a_view_is_in_the_address(page, page_file):
    choose(page, step=3, verdict="correct")
    shown, address = page.value(CARDS), page.value("location.href")
    assert address != page_file.as_uri()
    page.ask("Page.navigate", url="about:blank")
    page.open(address)
    assert page.value(CARDS) == shown


def test_formulas_are_drawn_and_what_is_none_stays_text(page):
    pytest.importorskip("latex2mathml")
    choose(page, text="formula")
    page.wait(f"{COUNT} === '1 of 420 samples'")
    response = "document.querySelector('.response')"
    assert page.value(f"{response}.querySelectorAll('math').length") == 3
    assert page.value(f"{response}.querySelector('mfrac').textContent") == "12"
    assert page.value(f"{response}.querySelector('math[display=block]').textContent") == "x2"
    assert "$oops_$" in page.value(f"{response}.textContent")
    page.value("document.querySelector('[name=math]').click()")
    assert page.value(f"{response}.querySelectorAll('math').length") == 0
    assert r"$\frac{1}{2} < 1$" in page.value(f"{response}.textContent")


def test_hostile_text_is_shown_as_it_is_written(page):
    choose(page, text="hostile")
    page.wait(f"{COUNT} === '1 of 420 samples'")
    page.value("document.querySelector('[name=math]').click()")
    assert page.value("document.querySelector('.response').textContent") == HOSTILE
    page.value("document.querySelector('[name=math]').click()")
    assert page.value("document.querySelectorAll('article img, article script').length") == 0
    assert page.value("window.taken === undefined")
    assert page.complaints == []


def test_fifty_thousand_samples_are_filtered_without_a_complaint(page, tmp_path):
    run = write_run(tmp_path / "run", steps=100, per_step=500)
    page.open(write_page([run], run / "report.html").as_uri())
    assert page.value(COUNT) == "51,375 of 51,375 samples"
    choose(page, source="training", step=77)
    assert page.value(COUNT) == "500 of 51,375 samples"
    assert len(page.value(CARDS)) == 20 and page.complaints == []


def test_a_served_page_comes_again_when_the_run_grows(browser, tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    follower = Follower([run / "metrics.jsonl"], lambda version: build_page([run], follow=version))
    try:
        browser.requests.clear()
        browser.complaints.clear()
        browser.open(follower.url)
        version = browser.value("document.body.dataset.follow")
        with (run / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"step": 3, "eval/accuracy": 0.987}\n')
        assert follower.refresh()
        # The page is gone for a moment while it loads.
        browser.wait(f"document.body?.hasAttribute('data-ready') && document.body.dataset.follow !== '{version}'")
        assert browser.value("document.body.textContent.includes('98.7 %')")
        assert set(browser.requests) == {follower.url, f"{follower.url}version"}
        assert browser.complaints == []
    finally:
        follower.close()
