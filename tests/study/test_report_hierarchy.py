"""Panels of the bound: by steps, and schedules, each only where runs recorded it."""

import json
import math

from tests.study.fake_runs import make_run, metrics
from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.hierarchy import bound_by_steps, estimator_variance, schedules
from triptych.study.panels import colours, draw_panels


def compared(root):
    (found,) = compare(read_runs(root))
    return found, colours({cell.label: cell.label for cell in found.cells})


def texts(figure) -> list[str]:
    return [t.get_text() for ax in figure.axes for t in [*ax.texts, *ax.get_xticklabels()]]


def test_a_line_for_each_variance_over_t(tmp_path):
    for variance, scale in (("beta", 1.0), ("optimal", 0.5)):
        for steps in (10, 50, 250):
            make_run(
                tmp_path, "x", 1, 0.0, overrides=[f"bound.variance={variance}", f"bound.steps={steps}"],
                test=metrics(2.0) | {"gap": {"mean": scale / steps, "stderr": 0.0, "n": 9}},
            )  # fmt: skip
    comparison, palette = compared(tmp_path)
    figure = bound_by_steps(comparison, palette)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert [sorted(line.get_xdata()) == [10, 50, 250] for line in lines] == [True, True]
    assert {min(line.get_ydata()) for line in lines} == {0.5 / 250, 1 / 250}
    assert {"beta", "optimal"} <= set(texts(figure)) and "gap" in figure.axes[0].get_ylabel()
    assert "The bound by number of steps" in [p.title for p in draw_panels(comparison, palette, "s")]


def test_schedules_and_their_variance_only_where_they_differ(tmp_path):
    for name, bend in (("linear", 1.0), ("learned", 2.0)):
        make_run(
            tmp_path, name, 1, 2.0, estimator={"mean": 9.0, "variance": 100.0 * bend},
            schedule={"t": [0.0, 0.5, 1.0], "gamma": [-8.0, -bend, 6.0]},
        )  # fmt: skip
    comparison, palette = compared(tmp_path)
    assert [b.get_width() for b in estimator_variance(comparison, palette).axes[0].patches] == [100, 200]
    assert schedules(comparison, palette) is not None
    for path in tmp_path.rglob("summary.json"):
        summary = json.loads(path.read_text()) | {"schedule": {"t": [0.0], "gamma": ["?"]}, "estimator": 3}
        path.write_text(json.dumps(summary))
    comparison, palette = compared(tmp_path)
    assert all(math.isnan(run.variance) for cell in comparison.cells for run in cell.runs.values())
    for draw in (schedules, estimator_variance, bound_by_steps):
        assert draw(comparison, palette) is None
