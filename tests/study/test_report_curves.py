"""Lines over noise levels and over time: no seed is dropped, and seconds are those of the run."""

import csv
import json
import re

import numpy as np

from triptych.run.metrics import MetricsCsv
from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.curves import noise_levels, training, training_time
from triptych.study.figures import forest, headline
from triptych.study.panels import colours
from triptych.study.render import write_report

from .fake_runs import TARGETS, make_run, metrics, sweep


def compared(root):
    (found,) = compare(read_runs(root))
    return found, colours({cell.label: cell.label for cell in found.cells})


def test_seeds_with_levels_of_their_own_all_count(tmp_path):
    """exp(-gamma) times 1, 2 and 6 at learned endpoints: the mean is 3 exp(-gamma) wherever all have been."""
    for seed, (size, low, high) in enumerate([(1, -8, 5), (2, -7, 6), (6, -9, 4)], 1):
        gamma = np.linspace(low, high, 20)
        curve = {"gamma": list(gamma), "epsilon_mse": list(size * np.exp(-gamma))}
        make_run(tmp_path, "v", seed, 2.0 + seed / 100, noise_levels=curve)
    figure = noise_levels(*compared(tmp_path))
    x, y = figure.axes[0].lines[0].get_data()
    assert (x.min(), x.max()) == (-7, 4) and np.allclose(y, 3 * np.exp(-x))


def history(root, cell, seed, values, seconds):
    """A run that validated every 100 steps, and took so long."""
    run = make_run(root, cell, seed, values[-1], steps=100 * len(values), seconds={"fit": seconds})
    with (run / "metrics.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "val/bpd", "time"])
        for k, value in enumerate(values, 1):
            table.writerow([100 * k, value, k * seconds / len(values)])


def test_a_mean_over_seconds_ends_where_its_seeds_end(tmp_path):
    for seed in (1, 2):
        # a is better after as many steps, and takes twice as long for them: at b's end it stands at 2.2
        history(tmp_path, "a", seed, [2.4, 2.2, 2.1, 2.0 + seed / 1000], 80.0)
        history(tmp_path, "b", seed, [2.5, 2.3, 2.2, 2.1 + seed / 1000], 40.0)
    comparison, palette = compared(tmp_path)
    thick = [line for line in training_time(comparison, palette).axes[0].lines if line.get_linewidth() == 2]
    assert sorted(line.get_xdata()[-1] for line in thick) == [40, 80]


def test_the_clock_of_metrics_is_that_of_fitting(tmp_path):
    """A row has the seconds up to it; a run that goes on keeps those of its rows."""
    seconds = [0.1]
    first = MetricsCsv(tmp_path / "metrics.csv", lambda: seconds[0])
    for step in (10, 20, 30):
        first.log_metrics({"loss": 1.0}, step)
        seconds[0] += 0.1
    first.log_metrics({"test/bpd": 1.0}, 30)  # tested later, and no later for it
    first.flush()
    assert times(tmp_path) == [0.1, 0.2, 0.3]
    again = MetricsCsv(tmp_path / "metrics.csv", lambda: 0.25)
    again.keep_until(20)
    again.log_metrics({"loss": 1.0}, 30)
    again.flush()
    assert times(tmp_path) == [0.1, 0.2, 0.25]


def times(root) -> list[float]:
    with (root / "metrics.csv").open(newline="") as file:
        return [float(row["time"]) for row in csv.DictReader(file)]


def test_the_part_of_an_error_that_draws_make_is_exported(tmp_path):
    for seed, error in ((1, 0.006), (2, 0.008)):
        test = metrics(2.0 + seed / 100)
        test["bpd"]["draw_stderr"] = error
        make_run(tmp_path, "v", seed, 2.0, test=test)
    write_report(tmp_path)
    assert "test/bpd_draw_stderr" in (tmp_path / "results.csv").read_text()


def test_a_very_bad_setting_squeezes_no_other_and_its_value_stands_at_the_edge(tmp_path):
    compared_to = compared(sweep(tmp_path / "good", TARGETS))
    comparison, palette = compared(sweep(tmp_path / "one bad", TARGETS | {"bad": 13.0}))
    assert comparison.bounds.far == {"bad"}
    for draw, text in ((headline, "12.999 ±"), (forest, "+11.09"), (training, "13.01 ↑")):
        drawn = [draw(comparison, palette).axes[0], draw(*compared_to).axes[0]]
        ends = (one.get_ylim() if draw is training else one.get_xlim() for one in drawn)
        assert np.allclose(*ends, rtol=0.02), draw
        assert any(text in one.get_text() for one in drawn[0].texts), draw
        assert draw is training or [line for line in drawn[0].lines if line.get_marker() == ">"]
    html = write_report(tmp_path / "one bad").html.read_text()
    runs = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["runs"]
    assert {run["cell"] for run in runs if run["far"]} == {"bad"}
