"""Figures show each seed, the run's own seconds, and two crossed settings as a grid."""

import csv
import itertools
import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection

from triptych.run.metrics import MetricsCsv
from triptych.study.curves import (
    crossing_figure,
    find_crossing,
    noise_levels,
    training,
    training_time,
)
from triptych.study.figures import forest, headline
from triptych.study.panels import assign_colours
from triptych.study.render import write_report
from triptych.study.study import read_study
from triptych.study.style import figure_style
from triptych.study.tables import table_rows

from .fake_runs import TARGETS, edit, make_run, sweep
from .test_report_compare import one


def hues(comparison):
    return assign_colours({cell.label: cell.label for cell in comparison.cells})


def compared(root):
    return one(root), hues(one(root))


def test_noise_level_figure_averages_seeds_with_different_gammas(tmp_path):
    """For exp(-gamma) times 1, 2 and 6 at learned endpoints, the mean is 3 exp(-gamma).

    This holds wherever all seeds have values.
    """
    for seed, (size, low, high) in enumerate([(1, -8, 5), (2, -7, 6), (6, -9, 4)], 1):
        gamma = np.linspace(low, high, 20)
        curve = {"gamma": list(gamma), "epsilon_mse": list(size * np.exp(-gamma))}
        make_run(tmp_path, "v", seed, 2.0 + seed / 100, noise_levels=curve)
    figure = noise_levels(*compared(tmp_path))
    x, y = figure.axes[0].lines[0].get_data()
    assert (x.min(), x.max()) == (-7, 4) and np.allclose(y, 3 * np.exp(-x))


def history(root, cell, seed, values, seconds):
    """Make a run that validated every 100 steps and took this long."""
    run = make_run(root, cell, seed, values[-1], steps=100 * len(values), seconds={"fit": seconds})
    with (run / "metrics.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "val/bpd", "time"])
        for k, value in enumerate(values, 1):
            table.writerow([100 * k, value, k * seconds / len(values)])


def test_training_time_mean_ends_with_its_seeds(tmp_path):
    for seed in (1, 2):
        # a is better after as many steps but takes twice as long for them: at b's end it is at 2.2.
        history(tmp_path, "a", seed, [2.4, 2.2, 2.1, 2.0 + seed / 1000], 80.0)
        history(tmp_path, "b", seed, [2.5, 2.3, 2.2, 2.1 + seed / 1000], 40.0)
    comparison, palette = compared(tmp_path)
    thick = [
        line
        for line in training_time(comparison, palette).axes[0].lines
        if line.get_linewidth() == 2
    ]
    assert sorted(line.get_xdata()[-1] for line in thick) == [40, 80]


def test_headline_dots_and_forest_labels_do_not_overlap(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path, "v", seed, 2.0 + seed / 1e6)
        make_run(tmp_path, "epsilon", seed, 2.1 + seed / 100)
    with figure_style():
        figures = [draw(*compared(tmp_path)) for draw in (headline, forest)]
        dots = [line for line in figures[0].axes[0].lines if line.get_marker() == "o"]
        assert len({float(line.get_ydata()[0]) for line in dots}) == 6
        (ax,) = figures[1].axes
        (label,) = (text for text in ax.texts if text.get_text() == "epsilon")
        end = label.get_window_extent(FigureCanvasAgg(figures[1]).get_renderer()).x1
        assert end < ax.transData.transform((0, 0))[0]


def test_metrics_csv_time_counts_fitting_only(tmp_path):
    """A row has the seconds up to it, and a resumed run keeps those of its rows."""
    seconds = [0.1]
    first = MetricsCsv(tmp_path / "metrics.csv", lambda: seconds[0])
    for step in (10, 20, 30):
        first.log_metrics({"loss": 1.0}, step)
        seconds[0] += 0.1
    first.log_metrics({"test/bpd": 1.0}, 30)  # tested later, and no later for it
    first.flush()
    assert times(tmp_path) == [0.1, 0.2, 0.3]
    again = MetricsCsv(tmp_path / "metrics.csv", lambda: 0.25)
    again.truncate_after(20)
    again.log_metrics({"loss": 1.0}, 30)
    again.flush()
    assert times(tmp_path) == [0.1, 0.2, 0.25]


def times(root) -> list[float]:
    with (root / "metrics.csv").open(newline="") as file:
        return [float(row["time"]) for row in csv.DictReader(file)]


def test_outlier_setting_is_drawn_at_axis_edge(tmp_path):
    compared_to = compared(sweep(tmp_path / "good", TARGETS))
    comparison, palette = compared(sweep(tmp_path / "one bad", TARGETS | {"bad": 13.0}))
    assert comparison.bounds.outlying_cells == {"bad"}
    for draw, text in ((headline, "12.999 ±"), (forest, "+11.09"), (training, "")):
        drawn = [draw(comparison, palette).axes[0], draw(*compared_to).axes[0]]
        ends = (one.get_ylim() if draw is training else one.get_xlim() for one in drawn)
        assert np.allclose(*ends, rtol=0.02), draw
        assert not text or any(text in one.get_text() for one in drawn[0].texts), draw
        assert draw is training or [line for line in drawn[0].lines if line.get_marker() == ">"]
    html = write_report(tmp_path / "one bad").html.read_text()
    runs = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["runs"]
    assert {run["cell"] for run in runs if run["far"]} == {"bad"}


RATES = ("0.0005", "0.001", "0.002", "0.004", "0.008")
OBJECTIVES = ("x0", "epsilon", "v", "levels")


def grid(root, bound, seeds=(1, 2, 3), rates=RATES, objectives=OBJECTIVES, key="optimizer.lr"):
    """Make a run for each objective, value of ``key`` and seed, with the bound of ``bound``."""
    for objective, rate, seed in itertools.product(objectives, rates, seeds):
        typed = [f"objective={objective}", f"{key}={rate}", f"seed={seed}"]
        choices = {} if "." in key else {key: rate}
        if (at := bound(objective, rate, seed)) is not None:
            make_run(root, objective, seed, at, overrides=typed, choices=choices)
    return one(root)


def additive(objective, rate, seed):
    """Bounds without interaction: .1 an objective, .01 a doubled rate; seeds shift all alike."""
    return (
        2 + 0.1 * OBJECTIVES.index(objective) + 0.01 * np.log2(float(rate) / 0.0005) + 0.03 * seed
    )


def test_crossing_of_two_categorical_axes_is_a_grid(tmp_path):
    two = {"rates": ("linear", "cosine"), "key": "schedule"}
    found = find_crossing(grid(tmp_path, lambda o, r, s: 2 + 0.01 * s, **two))
    assert (
        found.numbers is None and found.along.key == "objective" and found.lines.key == "schedule"
    )


def test_crossing_of_incomplete_grid_is_none(tmp_path):
    """In this design one setting goes with one value of the other, as after tuning by hand."""
    tuned = dict(zip(OBJECTIVES, RATES, strict=False))
    assert (
        find_crossing(grid(tmp_path, lambda o, r, s: 2.0 + s / 50 if tuned[o] == r else None))
        is None
    )


def test_crossing_figure_allows_missing_cell_and_linear_axis(tmp_path):
    how = {"rates": ("2", "4", "6"), "objectives": OBJECTIVES[:2], "key": "denoiser.network.blocks"}
    bound = lambda o, r, s: None if (o, r) == ("x0", "6") else additive(o, r, s)  # noqa: E731
    comparison = grid(tmp_path, bound, **how)
    assert len(find_crossing(comparison).cells) == 5
    with figure_style():
        figure = crossing_figure(comparison, hues(comparison))
    assert figure.axes[0].get_xscale() == "linear"


def test_crossing_figure_draws_numbers_on_axis_and_names_as_lines(tmp_path):
    comparison = grid(tmp_path, additive)
    found = find_crossing(comparison)
    assert found.lines.key == "objective" and found.along.key == "optimizer.lr"
    assert found.along.values == RATES and found.numbers == tuple(map(float, RATES))
    assert len(found.cells) == 20
    palette = assign_colours(read_study([tmp_path]).hues)
    assert len(set(palette.values())) == 4, "a colour is a line's"
    assert palette["x0 / lr=0.001"] == palette["x0 / lr=0.008"] != palette["v / lr=0.008"]
    with figure_style():
        figure = crossing_figure(comparison, palette)
    (ax,) = figure.axes
    assert ax.get_xscale() == "log" and len(ax.containers) == 4
    assert tuple(tick.get_text() for tick in ax.get_xticklabels()) == RATES
    rings = [c for c in ax.collections if isinstance(c, PathCollection) and c.get_sizes()[0] == 70]
    assert [float(c.get_offsets()[0, 0]) for c in rings] == [0.0005] * 4
    lowest = [np.mean([additive(o, "0.0005", s) for s in (1, 2, 3)]) for o in OBJECTIVES]
    assert sorted(float(c.get_offsets()[0, 1]) for c in rings) == pytest.approx(sorted(lowest))


def test_report_shows_crossing_figure_and_shared_overrides(tmp_path):
    grid(tmp_path, additive, seeds=(1,), rates=RATES[:2], objectives=OBJECTIVES[:2])
    edit(tmp_path / "sweep.json", title="mine", shared=["data=digits", "test=true"])
    report = write_report(tmp_path)
    page = report.html.read_text()
    assert "All runs: data=digits, test=true" in page and "mine" in page
    assert "one pair: no ranking" not in page, "the headline has said that there is one seed"
    assert "Each line is one objective, over optimizer.lr" in page
    assert 'aria-label="The test bound along one setting, a line' in page
    (comparison,) = report.study.comparisons
    assert {row.verdict for row in table_rows(comparison)} == {"lowest mean", ""}
