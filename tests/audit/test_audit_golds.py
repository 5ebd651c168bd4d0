"""`simplerl audit --golds`: the gold answers that can be compared as text only, by kind."""

import json

import pytest

from nemo_simplerl.audit.golds import GOLD_KINDS, audit_golds
from nemo_simplerl.cli.audit import run

# Gold answer -> its kind; None where it is read.
GOLDS = {
    r"\frac{1}{2}": None,
    "converges": None,
    r"$x<-7:(-\infty,-7)$": None,
    r"17 stuffed goats": None,
    "": None,
    r"The sum is never more than $n^2$, because every term is below $n$.": "sentence",
    r"$f(x)=\begin{cases} x & x>0 \\ -x & \text{otherwise} \end{cases} @ 0$": "piecewise",
    r"$\begin{bmatrix} 1 \\ 2 \end{bmatrix} \leadsto \begin{bmatrix} 1 \\ 0 \end{bmatrix}$": "matrices",
    r"$1+x+\frac{x^2}{2}+\cdots @ 0$": "series",
    r"concave up @ $(0, \infty)$": "words",
    "$x @ 1$ $y @ 2$": "several",
    "$x @ y$": "formula",
    "1+" * 2000 + "1": "too_long",
}


def test_each_gold_answer_without_a_tree_has_one_kind():
    found = audit_golds(list(GOLDS))
    assert found.num_golds == len(GOLDS) - 1
    assert {gold.gold: gold.kind for gold in found.unread} == {gold: kind for gold, kind in GOLDS.items() if kind}
    assert all(gold.why for gold in found.unread)


def test_the_command_counts_the_kinds_and_says_what_the_grader_then_does(tmp_path, capsys):
    file, out = tmp_path / "mine.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps({"problem": "?", "gt_answer": gold}) + "\n" for gold in GOLDS))
    assert run(["--golds", str(file), "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "8 of 12 gold answers are compared as text" in told and "compared token by token" in told
    report = json.loads(out.read_text())
    assert (report["golds"], report["without_tree"]) == (12, 8)
    assert {kind: len(found["golds"]) for kind, found in report["kinds"].items()} == dict.fromkeys(GOLD_KINDS, 1)


def test_a_file_without_the_field_is_told_with_the_fields_that_it_has(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"problem": "?", "reply": "5"}) + "\n")
    with pytest.raises(ValueError, match="say --answer FIELD, of problem, reply"):
        run(["--golds", str(file)])
    assert run(["--golds", str(file), "--answer", "reply"]) == 0


@pytest.mark.parametrize("argv", [[], ["runs/mine", "--golds", "mine.jsonl"]])
def test_the_command_takes_responses_or_golds(argv, capsys):
    with pytest.raises(SystemExit):
        run(argv)
    assert "one of them" in capsys.readouterr().err
