"""The figures of the page."""

import re
from dataclasses import replace

import pytest

from nemo_simplerl.report.figures import draw_all, draw_panel, draw_phases, phase_layers, thinned
from nemo_simplerl.report.panels import PANELS, Panel, Series
from nemo_simplerl.report.read import RunData

PANEL = Panel("T", "u", (Series("a/b", "first", "plain"), Series("a/c", "second", "plain"), Series("a/d", "third")))


def run_of(path, *rows):
    return RunData(path, tuple({"step": step} | row for step, row in enumerate(rows, 1)), None)


def strokes(svg):
    """The colour and dash pattern of each line drawn in a series colour."""
    lines = re.findall(r'style="fill: none;( stroke-dasharray: [^;]+;)?[^"]*?stroke: (var\(--s\d+\))', svg)
    return [(color, bool(dash)) for dash, color in lines]


def test_one_run_has_a_colour_for_each_series_that_was_measured(tmp_path):
    chart = draw_panel(PANEL, [run_of(tmp_path, {"a/b": 1.0, "a/c": 2.0}, {"a/b": 2.0, "a/c": None})])
    assert [(entry.label, entry.color, entry.dash) for entry in chart.legend] == [
        ("first", 0, "solid"),
        ("second", 1, "solid"),
    ]
    assert {color for color, _ in strokes(chart.svg)} == {"var(--s0)", "var(--s1)"}


def test_several_runs_have_a_colour_for_each_run_and_a_dash_for_each_series(tmp_path):
    runs = [run_of(tmp_path, {"a/b": 1.0, "a/c": 2.0}, {"a/b": 2.0, "a/c": 3.0}) for _ in range(2)]
    chart = draw_panel(PANEL, runs)
    assert [(entry.color, entry.dash) for entry in chart.legend] == [(None, "solid"), (None, "dashed")]
    assert sorted(strokes(chart.svg)) == [
        *(("var(--s0)", False), ("var(--s0)", True)),
        *(("var(--s1)", False), ("var(--s1)", True)),
    ]


def test_a_panel_without_a_number_is_not_drawn(tmp_path):
    assert draw_panel(PANEL, [run_of(tmp_path, {"a/b": None})]) is None


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_every_panel_is_drawn_of_a_single_step_and_of_zeros(tmp_path, panel):
    row = {series.key: 0.0 for series in panel.series}
    for rows in ([row], [row, row]):
        assert draw_panel(panel, [run_of(tmp_path, *rows)]).svg.startswith("<svg viewBox=")


def test_time_is_stacked_in_the_order_of_a_step_with_the_rest_on_top(tmp_path):
    first = {"time/total": 4.0, "time/reward": 1.0, "time/rollout": 2.0, "time/tokens_per_second": 900.0}
    second = {"time/total": 5.0, "time/reward": 1.0, "time/rollout": 2.0, "time/mine": 1.0}
    chart = draw_phases(run_of(tmp_path, first, second), "Time")
    assert [entry.label for entry in chart.legend] == ["rollout", "reward", "mine", "other"]
    # 4 - 2 - 1 and 5 - 2 - 1 - 1.
    assert phase_layers([first, second]) == {
        "rollout": [2.0, 2.0],
        "reward": [1.0, 1.0],
        "mine": [0.0, 1.0],
        "other": [1.0, 1.0],
    }


def test_roles_on_ranks_of_their_own_have_a_chart_each_and_waits_one_of_theirs(tmp_path):
    row = {"time/total": 9.0, "time/rollout": 5.0, "time/old_logprobs": 1.0, "time/values": 1.5, "time/actor_update": 2}
    row |= {"time/critic_update": 3.0, "time/wait_values": 0.5, "time/eval": 0.0, "time/mine": 0.1}
    apart = {"actor": "ranks 0-1", "critic": "ranks 2", "engine": "the other ranks"}
    charts = draw_all([replace(run_of(tmp_path, row), placement=apart)], ["run"])
    assert {chart.title: [entry.label for entry in chart.legend] for chart in charts} == {
        "Time per phase, actor on ranks 0-1": ["old logprobs", "actor update", "eval", "mine", "other"],
        "Time per phase, critic on ranks 2": ["values", "critic update", "other"],
        "Time per phase, engine on the other ranks": ["rollout", "other"],
        "Waits": [],
    }
    assert phase_layers([row], ("critic",))["other"] == [4.5]
    both = {"actor": "the other ranks", "critic": "the other ranks", "engine": "ranks 2"}
    titles = [chart.title for chart in draw_all([replace(run_of(tmp_path, row), placement=both)], ["run"])]
    assert titles[0] == "Time per phase, actor and critic on the other ranks"


def test_step_0_is_no_step_of_the_phases(tmp_path):
    run = RunData(tmp_path, ({"step": 0, "time/total": 100.0, "time/eval": 99.0},), None)
    assert draw_phases(run, "Time") is None


def test_a_long_run_is_drawn_as_means_of_neighbours_and_says_so(tmp_path):
    assert thinned([1, 2, 3], [1.0, 2.0, 6.0]) == ([1, 2, 3], [1.0, 2.0, 6.0])
    steps, values = thinned(range(1, 1202), [float(step) for step in range(1, 1202)])
    # Three neighbours make a point: 401 groups, the last of one.
    assert (len(steps), steps[:2], values[:2]) == (401, [1, 4], [2.0, 5.0])
    assert (steps[-1], values[-1]) == (1201, 1201.0)
    chart = draw_panel(PANEL, [run_of(tmp_path, *({"a/b": 1.0} for _ in range(1201)))])
    assert chart.note == "Each point is the mean of 3 steps."
