"""The file report.html: its parts, its escaping, its size."""

import base64
import gzip
import hashlib
import html
import json
import random
import re
import string

import pytest

from nemo_simplerl.cli import report
from nemo_simplerl.report.evaluations import load_evaluation
from nemo_simplerl.report.page import build_page, labels_of
from support.run_on_disk import write_lines, write_run

HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
FIGURES = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "length_mean": 700.0}


def samples_of(page):
    """The unpacked samples of a page."""
    text = re.search(r'<script type="application/octet-stream" id="samples">([^<]*)</script>', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(text, validate=True)))


def add_evaluation(folder, **benchmarks):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"settings": {}, "benchmarks": benchmarks}))
    return folder


def test_the_page_has_every_figure_of_a_run_in_one_file_that_asks_for_nothing(tmp_path):
    page = build_page([write_run(tmp_path / "run", steps=12)])
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles == [
        *("Reward", "Response length", "Accuracy", "Evaluation length", "Verdicts", "Truncated"),
        *("KL to the reference", "KL of a step&#x27;s updates", "Entropy", "Clipped", "Value fit", "Gradient norm"),
        *("Engine mismatch", "Mismatch gate", "Skipped updates", "Throughput", "Time per phase"),
    ]
    assert page.count("<figure>") == len(titles) == len(re.findall(r"</figcaption><svg viewBox", page))
    for title, unit in (("Entropy", "nats per token"), ("Time per phase", "seconds"), ("Reward", "mean of a step")):
        figure = page.partition(f"<figcaption>{title}</figcaption>")[2].partition("</figure>")[0]
        assert unit in figure and ">step<" in figure
    addresses = set(re.findall(r"https?://[^\"'\s<>]+", page))
    assert addresses == {"http://www.w3.org/1998/Math/MathML"}  # a name, which nothing fetches
    assert not re.search(r"<(link|img|iframe|script)[^>]*\b(src|href)=(?!\"data:)", page)
    assert "{{" not in page


def test_the_page_of_a_run_with_the_metric_names_of_earlier_versions_is_the_same(tmp_path):
    run = write_run(tmp_path / "run", steps=12)
    page = build_page([run])
    metrics = run / "metrics.jsonl"
    assert '"actor/kl_ref"' in metrics.read_text()
    metrics.write_text(metrics.read_text().replace('"actor/', '"policy/'))
    assert build_page([run]) == page


def test_every_colour_of_a_figure_is_the_style_sheets_to_choose(tmp_path):
    page = build_page([write_run(tmp_path / "run", steps=3)])
    figures = "".join(re.findall(r"<figure>.*?</figure>", page, re.DOTALL))
    assert re.findall(r"#[0-9a-fA-F]{6}\b", figures) == []
    assert {"var(--s0)", "var(--s1)", "var(--s2)", "currentColor"} <= set(
        re.findall(r"var\(--s\d+\)|currentColor", figures)
    )


def test_ids_are_unique_and_each_reference_finds_its_own(tmp_path):
    page = build_page([write_run(tmp_path / "run", steps=3)])
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_several_runs_share_the_figures_and_each_has_its_own_time(tmp_path):
    one, two = write_run(tmp_path / "one", steps=5), write_run(tmp_path / "two", steps=9, seed=1)
    page = build_page([one, two])
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles.count("Reward") == 1
    assert titles[-2:] == ["Time per phase, one", "Time per phase, two"]
    headings = re.findall(r"<h2><svg class=swatch.*?stroke:(var\(--s\d\)).*?</svg>(\w+)</h2>", page)
    assert headings == [("var(--s0)", "one"), ("var(--s1)", "two")]
    content = samples_of(page)
    assert content["runs"] == ["one", "two"]
    assert set(content["columns"]["run"]) == {0, 1}


def test_runs_of_one_name_are_told_apart_by_their_whole_paths(tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert labels_of(paths) == [str(path) for path in paths]
    assert labels_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_sample_comes_with_what_explains_its_verdict(tmp_path):
    run = write_run(tmp_path / "run", steps=1, per_step=1)
    problem = json.loads((run / "data" / "train.jsonl").read_text().splitlines()[7])
    row = {
        "id": problem["id"],
        "prompt": "How many?",
        "response": r"So \boxed{7}.",
        "gold": "8",
        "verdict": "incorrect",
    }
    row |= {"status": "parse_failed", "reward": -0.5, "length": 4, "finish_reason": "length", "weight_version": 0}
    write_lines(run / "rollouts" / "step_000001.jsonl", [row])
    content = samples_of(build_page([run]))
    column = {name: values[0] for name, values in content["columns"].items()}
    assert content["prompts"][column.pop("prompt")] == "How many?"
    assert column == {
        "run": 0,
        "source": "training",
        "step": 1,
        "id": "p-7",
        "gold": "8",
        "verdict": "incorrect",
        "status": "parse_failed",
        "reward": -0.5,
        "length": 4,
        "truncated": 1,
        "level": "2",  # 1 + 7 % 3
        "subject": problem["subject"],
        "answer": "7",
        "response": r"So \boxed{7}.",
    }


def test_no_markup_of_a_response_or_of_a_name_is_the_pages(tmp_path):
    run = write_run(tmp_path / "<b>&run", steps=2, per_step=2)
    rows = [json.loads(line) for line in (run / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    for row in rows:
        row.update(id=HOSTILE, prompt=HOSTILE, response=HOSTILE, gold=HOSTILE, verdict=HOSTILE, status=HOSTILE)
    write_lines(run / "rollouts" / "step_000001.jsonl", rows)
    for name in ("eval_<i>1", "eval_<i>2"):
        add_evaluation(run / name, **{"<u>": FIGURES})
    page = build_page([run, write_run(tmp_path / "two", steps=2)])
    assert "taken" not in page and "onerror" not in page
    assert not re.search(r"<[biu]>", page)
    assert "&lt;b&gt;&amp;run" in page
    assert page.count("<script") == page.count("</script>") == 2
    assert HOSTILE in samples_of(page)["columns"]["response"]


def test_the_policy_lets_the_pages_own_script_run_and_no_other(tmp_path):
    page = build_page([write_run(tmp_path / "run", steps=1)])
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy
    served = build_page([tmp_path / "run"], follow="v1")
    assert "connect-src &#x27;self&#x27;" in served and '<body data-follow="v1">' in served


def test_a_run_too_long_for_the_page_is_thinned_evenly_and_the_page_says_so(tmp_path):
    draw = random.Random(0)
    run = write_run(tmp_path / "run", steps=6, per_step=4)
    for step in range(1, 7):
        path = run / "rollouts" / f"step_{step:06d}.jsonl"
        row = json.loads(path.read_text().splitlines()[0])
        # Random letters: gzip makes little of them.
        write_lines(
            path,
            [row | {"id": f"{n}", "response": "".join(draw.choices(string.ascii_letters, k=9000))} for n in range(90)],
        )
    page = build_page([run], max_bytes=1_300_000)
    assert len(page.encode()) <= 1_300_000
    columns = samples_of(page)["columns"]
    chosen = [
        [int(one) for one, at, source in zip(columns["id"], columns["step"], columns["source"], strict=True)
         if at == step and source == "training"]
        for step in range(1, 7)
    ]  # fmt: skip
    assert all(rows == chosen[0] for rows in chosen)
    gaps = {after - before for before, after in zip(chosen[0], chosen[0][1:], strict=False)}
    assert 10 < len(chosen[0]) < 80 and max(gaps) - min(gaps) <= 1
    assert f"{len(columns['id'])} of {6 * 90 + 2} samples: an even choice of each step" in page


@pytest.mark.slow
def test_a_hundred_steps_like_the_quickstarts_stay_whole_and_under_five_megabytes(tmp_path):
    page = build_page([write_run(tmp_path / "run", steps=100, per_step=256)])
    assert len(page.encode()) < 5_000_000
    assert len(samples_of(page)["columns"]["step"]) == 100 * 256 + 11 * 64
    assert "All 26,304 samples." in page


def test_evaluations_of_several_steps_are_curves_and_stand_beside_the_reported_figures(tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    for step in (10, 2):
        add_evaluation(run / f"eval_{step}", math500=FIGURES, gsm8k=FIGURES)
    page = build_page([run])
    assert re.findall(r"<th scope=row>(eval_\d+)</th>", page) == ["eval_2", "eval_10"]
    assert "<td>50.0 % <small>40.0 to 60.0<br>700 tokens</small></td>" in page
    assert "<th scope=row>reported: SimpleRL-Zero</th><td>77.2 %</td><td></td>" in page
    figure = page.partition("<figcaption>Accuracy by benchmark</figcaption>")[2].partition("</figure>")[0]
    assert ">step<" in figure and re.findall(r"</svg>([\w ]+)</li>", figure) == ["MATH 500", "GSM8K"]


def test_an_evaluation_of_no_step_is_drawn_by_benchmark(tmp_path):
    extra = add_evaluation(tmp_path / "elsewhere", math500=FIGURES, mine=FIGURES)
    sampled = add_evaluation(tmp_path / "sampled", math500=FIGURES)
    (sampled / "results.json").write_text(
        json.dumps({"settings": {"engine": "vllm"}, "benchmarks": {"math500": FIGURES}})
    )
    page = build_page([write_run(tmp_path / "run", steps=2)], [extra, sampled])
    figure = page.partition("<figcaption>Accuracy by benchmark</figcaption>")[2].partition("</figure>")[0]
    assert ">step<" not in figure and ">mine<" in figure
    assert "<th scope=row>elsewhere</th>" in page and "<th scope=row>sampled, vllm</th>" in page


def test_what_is_no_evaluation_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="results.json; give the folder"):
        load_evaluation(tmp_path)
    add_evaluation(tmp_path / "half", math500={"accuracy": 0.5})
    with pytest.raises(ValueError, match=r"half/results.json is not what .*'low'"):
        load_evaluation(tmp_path / "half")


def test_a_run_that_has_only_begun_makes_a_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    page = build_page([tmp_path])
    assert "No step has finished yet." in page and "No samples were written yet." in page
    assert samples_of(page)["columns"] == {}


def test_the_warnings_of_a_run_are_on_the_page_and_what_was_only_said_is_not(tmp_path):
    run_dir = write_run(tmp_path / "run", steps=2)
    assert "<details>" not in build_page([run_dir])
    rows = [("WARNING", "step 1: <b> & more"), ("INFO", "by the way"), ("WARNING", "step 2: again")]
    write_lines(run_dir / "messages.jsonl", [{"time": "12:00", "level": level, "text": text} for level, text in rows])
    page = build_page([run_dir])
    assert "<summary>2 warnings</summary><ul><li>12:00 step 1: &lt;b&gt; &amp; more</li>" in page
    assert "by the way" not in page


def test_the_command_writes_the_page_beside_the_curves_or_where_it_is_told(tmp_path, capsys):
    one, two = write_run(tmp_path / "one", steps=2), write_run(tmp_path / "two", steps=2)
    assert report.run([str(one), str(two)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [f"Curves: {one}/report.png, {two}/report.png", f"Page: {one}/report.html"]
    assert [line for line in printed if line.endswith(":")] == [f"{one}:", f"{two}:"]
    assert (one / "report.html").is_file() and not (two / "report.html").exists()
    assert report.run([str(two), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "page.html", "two"]


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [(["--port", "70000"], "70000 is not a port"), (["--follow", "--out", "x"], "leave out --out")],
)
def test_the_command_refuses_what_makes_no_sense(tmp_path, capsys, extra, complaint):
    with pytest.raises(SystemExit, match="2"):
        report.run([str(write_run(tmp_path / "run", steps=1)), *extra])
    assert complaint in capsys.readouterr().err
