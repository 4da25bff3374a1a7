"""Measures of a run's samples in its summary, a model without training, and trajectories."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from tests.refusal import refused
from triptych.errors import Diverged, UserError
from triptych.run import pictures, reference
from triptych.run.build import build_experiment
from triptych.run.directory import write_atomic
from triptych.run.execute import execute
from triptych.run.measure import _mean_over_sets
from triptych.run.reference import _median_and_range

RING = ("data=ring", "model=oracle", "denoiser=mlp", "schedule.gamma_min=-10", "schedule.gamma_max=8",
        "data.test_size=500", "data.train_size=500", "data.val_size=100")  # fmt: skip


def test_an_oracle_opens_again_and_its_trajectory_is_drawn(finished, inside, root):
    ckpt = finished(*RING, path="oracle") / "checkpoints" / "last.ckpt"
    asked = "n=20 sampler=ddim sampler.steps=4 trajectory=strip label=3 out=drawn"
    exact = ["guidance=classifier", "guidance.classifier=exact"]
    result = inside("triptych.cli.sample", f"ckpt={ckpt}", *asked.split(), *exact)
    assert result.returncode == 0, result.stderr
    assert (root / "drawn" / "trajectory.png").stat().st_size > 1000
    x = torch.load(root / "drawn" / "samples.pt")["x"]
    angle = torch.atan2(x[:, 1], x[:, 0])
    assert (angle - 2 * torch.pi * 3 / 8).abs().max() < 0.5  # all in the mode that was asked for


SETS = 100  # of samples, and pairs of true ones: a mean is known to a tenth of a spread
UNEVEN = (
    "data=mixture",
    "data.weights=[.9,.1]",
    "data.means=[[-1,0],[1,0]]",
    "data.covariances=[.02,.02]",
)


@pytest.mark.parametrize("conditional", ["true", "false"])
def test_exact_samples_are_as_far_from_the_data_as_true_points_are(
    prepared, conditional, monkeypatch
):
    """Both distances are between two independent sets of true points, so their means are equal."""
    exact = (
        "denoiser=none",
        f"model.conditional={conditional}",
        "sampler=heun",
        "sampler.steps=30",
    )
    more = ("measures.n=100", f"measures.repeats={SETS}", "data.val_size=20", "samples.n=0")
    pairs: list[dict[str, float]] = []
    monkeypatch.setattr(reference, "PAIRS", SETS)
    monkeypatch.setattr(reference, "_median_and_range", lambda figures: pairs.extend(figures) or {})
    result = execute(prepared(*RING, *UNEVEN, *exact, *more, path="exact"))
    measures, versions = result["measures"], result["versions"]
    assert len(pairs) == SETS
    assert versions["mode_1"] == 1 and ("classes" in versions) == (conditional == "true")
    for name in ("sliced_wasserstein", "energy_distance", "mode_error", "mode_1"):
        floor = torch.tensor([figures[name] for figures in pairs], dtype=torch.float64)
        error = math.hypot(floor.std().item() / math.sqrt(SETS), measures[name]["stderr"])
        assert abs(measures[name]["mean"] - floor.mean().item()) < 4 * error, name


def test_a_measure_has_its_error_over_sets_and_a_floor_the_range_of_what_is_finite():
    """The error is sd / sqrt(n) with n - 1 in the variance: sqrt(14 / 2 / 3) for 1, 2 and 6.

    It is unknown for a single set.
    """
    assert _mean_over_sets([1.0, 2.0, 6.0], 9) == {
        "mean": 3.0,
        "stderr": pytest.approx(math.sqrt(7 / 3)),
        "n": 9,
    }
    assert _mean_over_sets([4.0], 9) == {"mean": 4.0, "stderr": None, "n": 9}
    sets = [{"a": a, "b": b} for a, b in ((5.0, 1.0), (1.0, math.nan), (2.0, 2.0))]
    assert _median_and_range(sets) == {"a": {"median": 2.0, "low": 1.0, "high": 5.0}}


POINTS = """
import torch
from triptych.data.base import DataModule
from triptych.data.batch import Split

class Points(DataModule):
    name, shape, levels, num_classes = "points", (2,), None, 0

    def load(self):
        x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        return {"train": Split(x[:120]), "val": Split(x[120:140]), "test": Split(x[140:])}
"""


def test_points_of_ones_own_are_measured_against_training_items(prepared, trusting):
    """Points are measured like pictures: also between true items, as many as are held out."""
    trusting("points_lab", POINTS)
    run = prepared("data=ring", "denoiser=mlp", "samples.n=0", "measures.n=100", path="points")
    config = run.config()
    config["data"] = {"_target_": "points_lab.Points"}
    config["measures"]["repeats"] = 2
    write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    summary = execute(run)
    about, figures = summary["measured"], summary["measures"]
    assert about["reference"] == "100 training items of points"
    assert about["floor"]["n"] == 80 and about["floor"]["sliced_wasserstein"]["median"] < 0.5
    assert set(figures) == set(about["noise"]) == {"sliced_wasserstein", "energy_distance"}
    assert figures["energy_distance"]["n"] == 100 and figures["energy_distance"]["stderr"] > 0
    assert about["noise"]["sliced_wasserstein"] < 0.5  # the data are what noise is
    config["measures"]["n"] = 121
    refused(
        lambda: build_experiment(config, download=False),
        "measures.n=121: data points has only 120 training items; set measures.n=120",
    )


def test_its_trajectory_ends_with_the_first_of_the_samples(finished, inside, root, monkeypatch):
    ckpt, ends = finished(*RING, path="oracle") / "checkpoints" / "last.ckpt", []
    monkeypatch.setattr(
        pictures, "_plot_trajectory", lambda x, _: ends.append(x[-1]) or pictures.new_figure(1, 1)
    )
    asked = "n=20 batch_size=12 seed=3 sampler.steps=4 trajectory=strip out=same"
    result = inside("triptych.cli.sample", f"ckpt={ckpt}", *asked.split())
    assert result.returncode == 0, result.stderr
    torch.testing.assert_close(ends[0], torch.load(root / "same" / "samples.pt")["x"][:12])


def test_heun_gets_half_the_steps_for_the_same_evaluations(prepared):
    over = ("sampler=heun", "measures.n=8", "measures.over=evaluations", "measures.values=[5,10]")
    measured = build_experiment(prepared(*RING, *over).config(), download=False).measured
    assert [drawing.sampler.evaluations for _, drawing in measured] == [4, 10]


def test_a_run_of_which_samples_are_not_finite_diverged(prepared):
    run = prepared(*RING, "sampler=annealed_langevin", "sampler.steps=3", "measures.n=8",
                   "measures.repeats=1", "measures.over=sampler.rate", "measures.values=[0.1,1e30]",
                   path="unstable")  # fmt: skip
    with pytest.raises(Diverged, match=r"a sample with sampler.rate=1e\+30 is not finite"):
        execute(run)
    assert run.status == "diverged"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["measures.n=100"], "measures.classifier=null: metrics of images need a classifier"),
        ([*RING, "measures.n=3"], "measures.n=3: must be 0 or a whole number from 8 to 1000000"),
        ([*RING, "measures.n=9", "measures.over=sampler.stepz", "measures.values=[1]"],
         "measures.over=sampler.stepz: not a key of this run's sampling"),
        ([*RING, "measures.n=9", "measures.over=sampler.steps", "measures.values=[0]"], "sampler.steps=0"),
        ([*RING, "measures.n=9", "measures.over=sampler.steps"], r"measures.values=\[\]"),
        (["model=oracle"], "model=oracle: data digits have no known density"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(prepared, overrides, words):
    with pytest.raises(UserError, match=words):
        build_experiment(prepared(*overrides).config(), download=False)
