"""Two settings crossed: what is a grid, and its picture."""

import json

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.factorial import crossing, crossing_figure
from triptych.study.panels import colours
from triptych.study.render import write_report
from triptych.study.study import read_study
from triptych.study.style import styled
from triptych.study.tables import table_rows

from .fake_runs import make_run

RATES = ("0.0005", "0.001", "0.002", "0.004", "0.008")
OBJECTIVES = ("x0", "epsilon", "v", "levels")


def sweep(root, bound, seeds=(1, 2, 3), rates=RATES, objectives=OBJECTIVES, key="optimizer.lr"):
    """A run for each objective, value of ``key`` and seed, of the bound that ``bound`` gives them."""
    for objective in objectives:
        for rate in rates:
            for seed in seeds:
                typed = [f"objective={objective}", f"{key}={rate}", f"seed={seed}"]
                choices = {} if "." in key else {key: rate}
                if (at := bound(objective, rate, seed)) is not None:
                    make_run(root, objective, seed, at, overrides=typed, choices=choices)
    (comparison,) = compare(read_runs(root))
    return comparison


def additive(objective, rate, seed):
    """No interaction: .1 an objective, .01 a doubling of the rate; seeds shift all cells alike."""
    return 2 + 0.1 * OBJECTIVES.index(objective) + 0.01 * np.log2(float(rate) / 0.0005) + 0.03 * seed


def test_numbers_are_an_axis_and_names_are_lines(tmp_path):
    found = crossing(sweep(tmp_path, additive))
    assert found.lines.key == "objective" and found.along.key == "optimizer.lr"
    assert found.along.values == RATES and found.numbers == tuple(map(float, RATES))
    assert len(found.cells) == 20


def test_two_names_are_a_grid_too(tmp_path):
    found = crossing(
        sweep(tmp_path, lambda o, r, s: 2 + 0.01 * s, rates=("linear", "cosine"), key="schedule")
    )
    assert found.numbers is None and found.along.key == "objective" and found.lines.key == "schedule"


def test_what_has_holes_is_no_grid(tmp_path):
    """A design where one setting goes with one of the other, as an objective tuned by hand."""
    comparison = sweep(
        tmp_path, lambda o, r, s: 2.0 + s / 50 if OBJECTIVES.index(o) == RATES.index(r) else None
    )
    assert crossing(comparison) is None


def test_a_hole_leaves_the_picture_and_equal_steps_a_linear_axis(tmp_path):
    how = {"rates": ("2", "4", "6"), "objectives": OBJECTIVES[:2], "key": "denoiser.network.blocks"}
    bound = lambda o, r, s: None if (o, r) == ("x0", "6") else additive(o, r, s)  # noqa: E731
    comparison = sweep(tmp_path, bound, **how)
    assert len(crossing(comparison).cells) == 5
    with styled():
        figure = crossing_figure(comparison, colours({c.label: c.label for c in comparison.cells}))
    assert figure.axes[0].get_xscale() == "linear"


def test_the_picture(tmp_path):
    comparison = sweep(tmp_path, additive)
    palette = colours(read_study([tmp_path]).hues)
    assert len(set(palette.values())) == 4, "a colour is a line's"
    assert palette["x0 / lr=0.001"] == palette["x0 / lr=0.008"] != palette["v / lr=0.008"]
    with styled():
        figure = crossing_figure(comparison, palette)
    (ax,) = figure.axes
    assert ax.get_xscale() == "log" and len(ax.containers) == 4
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [
        "0.0005",
        "0.001",
        "0.002",
        "0.004",
        "0.008",
    ]
    rings = [c for c in ax.collections if isinstance(c, PathCollection) and c.get_sizes()[0] == 70]
    assert [float(c.get_offsets()[0, 0]) for c in rings] == [0.0005] * 4
    lowest = [np.mean([additive(o, "0.0005", s) for s in (1, 2, 3)]) for o in OBJECTIVES]
    assert sorted(float(c.get_offsets()[0, 1]) for c in rings) == pytest.approx(sorted(lowest))


def test_the_page_shows_the_grid_first_and_says_what_all_share(tmp_path):
    sweep(tmp_path, additive, seeds=(1,), rates=RATES[:2], objectives=OBJECTIVES[:2])
    (tmp_path / "sweep.json").write_text(
        json.dumps({"title": "mine", "shared": ["data=digits", "test=true"]})
    )
    report = write_report(tmp_path)
    page = report.html.read_text()
    assert "All runs: data=digits, test=true" in page and "mine" in page
    assert "one pair: no ranking" not in page, "the headline has said that there is one seed"
    assert "Each line is one objective, along optimizer.lr" in page
    (comparison,) = report.story.comparisons
    assert {row.verdict for row in table_rows(comparison)} == {"lowest mean", ""}
