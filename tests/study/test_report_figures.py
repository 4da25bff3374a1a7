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
from triptych.study.figures import forest, headline, measure_figure
from triptych.study.panels import assign_colours, draw_panels, headline_panels
from triptych.study.render import write_figures, write_report
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


def arrows(ax):
    """Return the arrows of a figure as {marker: number}."""
    markers = [line.get_marker() for line in ax.lines]
    return {mark: markers.count(mark) for mark in "<>^v" if mark in markers}


def test_crossing_figure_frame_contains_every_seed(tmp_path):
    """Seeds spread by .3 around means that differ by .01: the best and worst runs are seen."""
    bound = lambda o, r, s: 2.8 + RATES.index(r) / 100 + (s - 2) * 0.3  # noqa: E731
    comparison = grid(tmp_path, bound, objectives=OBJECTIVES[:2])
    with figure_style():
        ax = crossing_figure(comparison, hues(comparison)).axes[0]
    low, high = ax.get_ylim()
    assert low < 2.5 and high > 2.8 + 0.04 + 0.3 and not arrows(ax)


def test_crossing_figure_marks_settings_beyond_its_frame(tmp_path):
    bound = lambda o, r, s: 30 + s if (o, r) == ("x0", "0.008") else additive(o, r, s)  # noqa: E731
    comparison = grid(tmp_path, bound)
    with figure_style():
        ax = crossing_figure(comparison, hues(comparison)).axes[0]
    assert ax.get_ylim()[1] < 3 and arrows(ax) == {"^": 3}
    panel = headline_panels(comparison, hues(comparison))[0]
    assert panel.how.endswith("An arrow points to a value beyond the axis.")


def test_forest_marks_each_interval_that_its_axis_cuts(tmp_path):
    """The interval of d, whose seeds disagree, is far longer than those of the others."""
    random = np.random.default_rng(0)
    for label, mean in {"a": 0.0, "b": 0.1, "c": 0.2, "d": 0.15}.items():
        for seed in (1, 2, 3):
            noise = (seed - 2) * 0.3 if label == "d" else random.normal() * 0.003
            make_run(tmp_path, label, seed, 2 + mean + seed / 50 + noise)
    comparison, palette = compared(tmp_path)
    ax = forest(comparison, palette).axes[0]
    low, high = ax.get_xlim()
    intervals = [comparison.pair_test(0, k).interval for k in range(1, 4)]
    beyond = {"<": sum(a < low for a, _ in intervals), ">": sum(b > high for _, b in intervals)}
    assert beyond["<"] and arrows(ax) == {mark: n for mark, n in beyond.items() if n}
    caps = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "|"]
    inside = [end for pair in intervals for end in pair if low <= end <= high]
    assert sorted(caps) == pytest.approx(sorted(inside))
    (panel,) = (p for p in headline_panels(comparison, palette) if "forest" in p.figures)
    assert "A line that ends in an arrow goes on beyond the axis." in panel.how
    assert "grey band" not in panel.how


def test_outlier_within_axis_of_true_data_is_a_dot(tmp_path):
    """Higher is better: .394 is far from .402 and .403, and near the range of true data."""
    about = {"n": 8, "floor": {"precision": {"median": 0.4, "low": 0.315, "high": 0.405}}}
    for label, figure in {"a": 0.4031, "b": 0.4022, "c": 0.394}.items():
        for seed in (1, 2):
            shown = {"precision": {"mean": figure + seed / 1e5}}
            make_run(tmp_path, label, seed, 1.9, measures=shown, measured=about)
    comparison, palette = compared(tmp_path)
    table = comparison.measures["precision"]
    assert table.outlying_cells == {"c"}
    ax = measure_figure(table)(comparison, palette).axes[0]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 6 and min(dots) == pytest.approx(0.39401) and not arrows(ax)


def test_mean_over_seconds_is_taken_at_equal_steps(tmp_path):
    """One seed takes five times as long as the other: both have 1.9 on average at their end."""
    history(tmp_path, "a", 1, [3.0, 2.5, 2.1, 1.8], 40.0)
    history(tmp_path, "a", 2, [3.2, 2.7, 2.3, 2.0], 200.0)
    history(tmp_path, "b", 1, [3.2, 2.7, 2.3, 2.2], 200.0)
    lines = training_time(*compared(tmp_path)).axes[0].lines
    (mean,) = (line for line in lines if line.get_linewidth() == 2 and line.get_label() == "a")
    assert np.allclose(mean.get_data(), [[30, 60, 90, 120], [3.1, 2.6, 2.2, 1.9]])


def test_crossed_settings_differ_by_colour_and_dash(tmp_path):
    grid(tmp_path, additive, seeds=(1,), rates=RATES[:3], objectives=OBJECTIVES[:2])
    for run in tmp_path.iterdir():
        edit(run / "summary.json", noise_levels={"gamma": [-5, 0, 5], "epsilon_mse": [1, 2, 3]})
    lines = noise_levels(one(tmp_path), assign_colours(read_study([tmp_path]).hues)).axes[0].lines
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in lines}
    assert len(looks) == len(lines) == 6 and len({colour for colour, _ in looks}) == 2


def test_legend_names_stay_distinct_and_say_how_many_lines_they_leave_out(tmp_path):
    """Two schedules differ in the middle of their labels, and 20 lines have no room in a legend."""
    labels = [f"epsilon / {schedule} / lr=0.001" for schedule in ("linear", "cosine")]
    for label in labels:
        history(tmp_path / "two", label, 1, [2.1, 2.0], 10.0)
    for k in range(20):
        history(tmp_path / "many", f"k{k}", 1, [2.1, 2.0 + k / 100], 10.0)
    figures = {name: training(*compared(tmp_path / name)) for name in ("two", "many")}
    named = [text.get_text() for text in figures["two"].axes[0].get_legend().get_texts()]
    assert len({*named}) == 2 and all(len(name) < 21 for name in named)
    shown = len(figures["many"].axes[0].get_legend().get_texts())
    assert shown < 20 and f"The legend names {shown} of 20 lines." in figures["many"].sentences
    assert not any("legend" in sentence for sentence in figures["two"].sentences)


def test_training_figure_counts_runs_without_a_curve(tmp_path):
    history(tmp_path, "a", 1, [2.1, 2.0], 10.0)
    history(tmp_path, "b", 1, [2.1], 10.0)
    make_run(tmp_path, "c", 1, 2.0)
    assert (
        "2 of 3 runs lack two values and are not shown." in training(*compared(tmp_path)).sentences
    )


def test_captions_explain_only_what_is_drawn(tmp_path):
    for label, bound in (("a", 2.0), ("b", 2.1)):
        history(tmp_path / "single", label, 1, [bound + 0.1, bound], 10.0)
        for seed in (1, 2):
            history(tmp_path / "several", label, seed, [bound + 0.1, bound + seed / 90], 10.0)
    captions = {}
    for name in ("single", "several"):
        comparison, palette = compared(tmp_path / name)
        panels = (*headline_panels(comparison, palette), *draw_panels(comparison, palette))
        captions[name] = " ".join(panel.how for panel in panels)
    for text in ("An upright bar is a setting's mean.", "Thick lines are means"):
        assert text in captions["several"] and text not in captions["single"]
    for text in ("arrow", "grey", "dashed"):
        assert text not in captions["single"] + captions["several"]


def test_pdf_embeds_fonts_as_truetype(tmp_path):
    study = read_study([sweep(tmp_path / "runs", {"v": 2.0, "x0": 2.1}, (1, 2))])
    files = write_figures(study, tmp_path / "out")
    pdfs = [file.read_bytes() for file in files if file.suffix == ".pdf"]
    assert pdfs and not any(b"/Type3" in pdf for pdf in pdfs)


def test_figures_of_a_column_have_equal_decimals(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path, "a", seed, 1.976 + 0.002 * seed)
        make_run(tmp_path, "b", seed, 2.00147 + 0.0005 * seed**2 / 5)
        make_run(tmp_path, "c", seed, 2.1 + 0.02 * np.sin(seed))
    rows = table_rows(one(tmp_path))
    for key in ("bound", "difference", "reconstruction"):
        numbers = [re.findall(r"\d+\.(\d+)", row.entries[key].text) for row in rows]
        assert len({len(digits) for texts in numbers for digits in texts}) == 1, (key, numbers)
    assert rows[1].entries["bound"].text.count(".") == 2
