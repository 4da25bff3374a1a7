"""The posterior mean from a model's score, compared with the oracle's, in summary and report."""

import pytest
import torch

from tests.study.fake_runs import make_run
from triptych.run.build import build_experiment
from triptych.run.execute import execute
from triptych.run.measure import measure_posterior_mean
from triptych.run.pictures import save_picture, save_real_images
from triptych.run.read import read_run
from triptych.study.compare import compare
from triptych.study.curves import posterior_mean_error
from triptych.study.panels import assign_colours
from triptych.study.style import figure_style, to_svg

SMALL = (
    "data=ring",
    "denoiser=mlp",
    "data.test_size=300",
    "data.val_size=100",
    "data.train_size=500",
)


def test_it_is_exact_for_the_oracle_and_not_for_a_network(prepared, tmp_path):
    runs = prepared(*SMALL, "model=oracle", path="oracle"), prepared(*SMALL, path="network")
    made = (build_experiment(run.config(), download=False) for run in runs)
    exact, found = (measure_posterior_mean(experiment)["tweedie"] for experiment in made)
    assert len(exact["gamma"]) == 20 and max(exact["excess"]) < 1e-8
    assert max(found["excess"]) > 0.1 and found["spread"] == exact["spread"]
    # At the noisiest level the posterior is nearly the data: variance 1.5^2 / 2 + 0.15^2.
    assert abs(found["spread"][-1] - 1.15) < 0.15
    run = make_run(tmp_path / "sweep", "v", 1, 2.0, tweedie=found)
    (comparison,) = compare([read_run(run)])
    with figure_style():
        figure = posterior_mean_error(
            comparison, assign_colours({c.label: c.label for c in comparison.cells})
        )
    # SVG has its text as text: a tick in TeX would be shown with its dollars
    assert "0.001<" in to_svg(figure, "t") and "$" not in to_svg(figure, "t")


@pytest.mark.parametrize(
    ("overrides", "known"),
    [
        (("model.label_dropout=0",), False),
        (("model.label_dropout={label:0}",), False),
        (("model.label_dropout={label:0.1}",), True),
        (("model.label_dropout=0.1",), True),
        (("model=oracle",), True),
    ],
)
def test_it_is_not_asked_of_a_network_that_was_never_trained_without_its_condition(
    prepared, overrides, known
):
    told = "model.conditional=true"
    experiment = build_experiment(prepared(*SMALL, *overrides, told).config(), download=False)
    assert bool(measure_posterior_mean(experiment)) == known


def test_a_run_s_last_figures_are_of_a_network_without_dropout(prepared, monkeypatch):
    seen = []
    for name in ("draw_sets", "measure_posterior_mean"):
        look = lambda experiment, *_: seen.append(experiment.model.denoiser.network.training) or {}  # noqa: E731
        monkeypatch.setattr(f"triptych.run.final.{name}", look)
    execute(prepared(*SMALL, "trainer.max_steps=2"))
    assert seen == [False, False]


@pytest.mark.parametrize("overrides", [SMALL, ()])
def test_without_a_test_no_item_of_its_set_is_looked_at(prepared, tmp_path, overrides):
    """With test=false, neither the formula nor a picture reads test items, points or images."""
    experiment = build_experiment(prepared(*overrides, "test=false").config(), download=False)
    data = experiment.data
    x = data.splits["val"].batch(torch.arange(9)).x
    data.splits["test"] = None
    assert bool(measure_posterior_mean(experiment)) == bool(overrides)
    save_picture(x, data, tmp_path / "final.png")
    save_real_images(data, 9, tmp_path / "real.png")
    assert (tmp_path / "real.png").exists() != bool(overrides)
