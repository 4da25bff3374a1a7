"""The diffusion model beyond a fixed schedule: learned noise, optimal variance, likelihood, the gap."""

import pytest
import pytorch_lightning as pl
import torch

from triptych.data.mixture import Ring
from triptych.diffusion import weighting
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.draws import training_draw
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.models.diffusion import Diffusion
from triptych.models.lr_schedule import Constant
from triptych.networks.mlp import MLP


@pytest.fixture(scope="module")
def data():
    found = Ring(modes=8, radius=1.5, std=0.15, train_size=2000, val_size=50, test_size=300, batch_size=64)
    found.setup()
    return found


def make(data, schedule, steps=None, variance="beta_tilde", weight=None, **options) -> Diffusion:
    torch.manual_seed(0)
    objective = Objective("v", weight or weighting.Elbo())
    return Diffusion(
        Denoiser(MLP((2,), width=32, blocks=1), Output("v"), VariancePreserving()),
        schedule,
        objective,
        Bound(schedule, GaussianDensity(), steps, variance),
        lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.1),
        Constant(),
        shape=(2,),
        discrete=False,
        seed=1,
        repeats=4,
        val_repeats=1,
        mixture=data.mixture,
        **options,
    )


def trainer(tmp_path, steps: int = 20) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        max_epochs=-1,
        log_every_n_steps=5,
        val_check_interval=steps,
        default_root_dir=tmp_path,
    )


def test_free_endpoints_move_and_are_logged_and_their_bins_follow(data, tmp_path):
    model = make(data, LearnedEndpoints(-4.0, 4.0))
    fit = trainer(tmp_path)
    fit.fit(model, data)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0])).tolist()
    assert abs(low + 4) > 0.01 and abs(high - 4) > 0.01
    assert fit.logged_metrics["train/gamma_min"].item() == pytest.approx(low, abs=0.3)
    assert model.accounting.edges[[0, -1]].tolist() == pytest.approx([low, high])
    assert model.panels()["schedule"]["gamma"][-1] == pytest.approx(high)


def test_the_loss_is_the_whole_bound_when_endpoints_are_free(data):
    fixed, free = make(data, Linear(-4.0, 4.0)), make(data, LearnedEndpoints(-4.0, 4.0))
    batch = data.splits["train"].batch(torch.arange(64))
    _, eps_0 = training_draw((2,), 64, 99, 3)
    difference = free.loss(batch, 3, 0, 1) - fixed.loss(batch, 3, 0, 1)
    prior, reconstruction = fixed.bound.ends(fixed.denoiser, batch.x, eps_0)
    assert difference.mean().item() == pytest.approx((prior + reconstruction).mean().item(), rel=0.2)


def test_pinned_endpoints_stay_the_interior_moves_and_nothing_of_it_decays(data, tmp_path):
    schedule = Monotone(-4.0, 4.0, pinned=True, hidden=8)
    start = {name: p.detach().clone() for name, p in schedule.named_parameters()}
    model = make(data, schedule)
    groups = model.parameter_groups()
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    ends = ("low_shift", "top_shift")
    assert {id(p) for p in groups[1]["params"]} == {
        id(p) for n, p in schedule.named_parameters() if n not in ends
    }
    trainer(tmp_path).fit(model, data)
    for name, p in schedule.named_parameters():
        assert torch.equal(p, start[name]) == (name in ends)


def test_optimal_variance_is_measured_before_it_is_reported(data, tmp_path):
    calibration = data.splits["train"].batch(torch.arange(256))
    figures = {}
    for variance in ("beta_tilde", "beta", "optimal"):
        model = make(data, Linear(-8.0, 6.0), 10, variance, calibration=calibration)
        fit = trainer(tmp_path, 100)
        fit.fit(model, data)
        model.split = "test"
        fit.test(model, dataloaders=data.eval_dataloader("test"), verbose=False)
        figures[variance] = model.accounting.compute()["nats_per_dim"]["mean"]
    assert figures["optimal"] < figures["beta"] < figures["beta_tilde"]


def test_likelihood_stands_beside_the_bound_on_the_items_asked_for(data, tmp_path):
    schedule = Linear(-8.0, 6.0)
    model = make(data, schedule, likelihood=Likelihood(schedule, tolerance=1e-4), likelihood_items=120)
    fit = trainer(tmp_path, 60)
    fit.fit(model, data)
    for split in ("test", "val"):
        model.split = split
        fit.test(model, dataloaders=data.eval_dataloader(split), verbose=False)
        found = model.accounting.compute()
        assert ("nats_per_dim_ode" in found) == (split == "test")
        if split == "test":
            assert found["nats_per_dim_ode"]["n"] == 120 and found["nats_per_dim"]["n"] == 300
            # of a network this poor the flow need not be the better model, but it is near
            assert found["nats_per_dim_ode"]["mean"] == pytest.approx(found["nats_per_dim"]["mean"], abs=0.3)


@pytest.mark.slow
def test_the_gap_shrinks_with_training(data, tmp_path):
    gaps = []
    for steps in (30, 2000):
        model = make(data, Linear(-8.0, 6.0))
        fit = trainer(tmp_path, steps)
        fit.fit(model, data)
        fit.test(model, dataloaders=data.eval_dataloader("test"), verbose=False)
        gaps.append(model.accounting.compute()["gap"])
    early, late = gaps
    assert early["mean"] - late["mean"] > 3 * (early["stderr"] ** 2 + late["stderr"] ** 2) ** 0.5
    assert late["mean"] > -3 * late["stderr"]


def test_bad_values_are_named(data):
    with pytest.raises(ValueError, match="weighting=elbo"):
        make(data, Monotone(-4.0, 4.0), weight=weighting.Simple())
    with pytest.raises(ValueError, match="training items"):
        make(data, Linear(-4.0, 4.0), 10, "optimal")
