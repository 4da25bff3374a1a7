"""Options of the diffusion model: learned noise, optimal variance, likelihood, and the gap."""

import pytest
import torch

from tests.diffusion.oracles import network
from tests.diffusion.steps import training_draw
from tests.lightning import trainer
from triptych.data.mixture import Ring
from triptych.diffusion.block_draws import STREAMS
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import Condition, Labels
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.guidance import Auto, ClassifierFree
from triptych.diffusion.guidance import Classifier as ByClassifier
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.loss import EDM2, Elbo
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.reverse_variance import BetaTilde, WithFraction
from triptych.diffusion.sampler import DDIM, Ancestral, PredictorCorrector
from triptych.diffusion.schedule import Linear
from triptych.diffusion.wrappers import DynamicThreshold, StaticThreshold
from triptych.errors import UserError
from triptych.models.diffusion import Diffusion
from triptych.networks.mlp import MLP

from .options import OPTIONS


@pytest.fixture(scope="module")
def data():
    found = Ring(
        modes=8, radius=1.5, std=0.15, train_size=2000, val_size=50, test_size=300, batch_size=64
    )
    found.setup()
    return found


def make(data, schedule, steps=None, variance="beta_tilde", loss=None, **options) -> Diffusion:
    torch.manual_seed(0)
    denoiser = network(MLP((2,), width=32, blocks=1), "v")
    bound = Bound(schedule, GaussianDensity(), steps, variance)
    known = OPTIONS | {
        "shape": (2,),
        "discrete": False,
        "seed": 1,
        "repeats": 4,
        "mixture": data.mixture,
    }
    known["optimizer"] = lambda groups: torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.1)
    return Diffusion(denoiser, schedule, Objective("v", loss or Elbo()), bound, **known | options)


class Table(Elbo, torch.nn.Module):
    """A loss that was a module before losses could learn: its checkpoints have no table."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(3))


def test_only_trainable_loss_is_in_state_dict(data, tmp_path):
    assert not any(
        "loss" in name for name in make(data, Linear(-6.0, 5.0), loss=Table()).state_dict()
    )
    model = make(data, Linear(-6.0, 5.0), loss=EDM2(channels=4))
    before = model.loss_module.row.detach().clone()
    assert {"loss_module.row", "loss_module.phase"} <= model.state_dict().keys()
    trainer(tmp_path, 3).fit(model, data)
    assert not torch.equal(model.loss_module.row, before)


def test_learned_endpoints_are_trained_logged_and_used_for_bins(data, tmp_path):
    model = make(data, LearnedEndpoints(-4.0, 4.0))
    fit = trainer(tmp_path, 20)
    fit.fit(model, data)
    low, high = model.schedule.gamma(torch.tensor([0.0, 1.0])).tolist()
    assert abs(low + 4) > 0.01 and abs(high - 4) > 0.01
    assert fit.logged_metrics["train/gamma_min"].item() == pytest.approx(low, abs=0.3)
    assert model.accounting.edges[[0, -1]].tolist() == pytest.approx([low, high])
    assert model.panels()["schedule"]["gamma"][-1] == pytest.approx(high)


def test_loss_with_learned_endpoints_includes_prior_and_reconstruction(data):
    fixed, free = make(data, Linear(-4.0, 4.0)), make(data, LearnedEndpoints(-4.0, 4.0))
    batch = data.splits["train"].batch(torch.arange(64))
    _, eps_0 = training_draw((2,), 64, 99, 3)
    difference = free.loss(batch, 3, 0, 1) - fixed.loss(batch, 3, 0, 1)
    prior, reconstruction = fixed.bound.ends(fixed.denoiser, batch.x, eps_0)
    assert difference.mean().item() == pytest.approx(
        (prior + reconstruction).mean().item(), rel=0.2
    )


def test_pinned_schedule_trains_interior_without_weight_decay(data, tmp_path):
    schedule = Monotone(-4.0, 4.0, pinned=True, hidden=8)
    start = {name: p.detach().clone() for name, p in schedule.named_parameters()}
    model = make(data, schedule)
    groups = model.parameter_groups()
    assert [group.get("weight_decay") for group in groups] == [None, 0.0]
    ends = ("low_shift", "top_shift")
    inner = {id(p) for n, p in schedule.named_parameters() if n not in ends}
    assert {id(p) for p in groups[1]["params"]} == inner
    trainer(tmp_path, 20).fit(model, data)
    for name, p in schedule.named_parameters():
        assert torch.equal(p, start[name]) == (name in ends)


def test_likelihood_is_reported_for_likelihood_items(data, tmp_path, monkeypatch):
    call, streams = Likelihood.__call__, set()

    def recorded(self, *arguments):
        streams.add(arguments[-1])
        return call(self, *arguments)

    monkeypatch.setattr(Likelihood, "__call__", recorded)
    schedule = Linear(-8.0, 6.0)
    model = make(
        data, schedule, likelihood=Likelihood(schedule, tolerance=1e-4), likelihood_items=120
    )
    fit = trainer(tmp_path, 60)
    fit.fit(model, data)

    def account(split):
        fit.test(model, dataloaders=data.eval_dataloader(split), verbose=False)
        return model.accounting.compute()

    model.random = STREAMS["blocks"]
    test = account("test")
    assert streams == {STREAMS["blocks"]}, "drawn where the model draws"
    ode, found = test.figures["nats_per_dim_ode"], test.figures
    assert ode["n"] == 120 and found["nats_per_dim"]["n"] == 300
    # The ODE's figure is paired with the bound of its own items, and its parts sum to it.
    own = test.per_item[1][test.per_item[0] < 120, 0].mean().item()
    assert found["nats_per_dim_ode_bound"]["mean"] == pytest.approx(own, rel=1e-12)
    parts = [f"nats_per_dim_ode_{part}" for part in ("density", "dequantisation", "reconstruction")]
    assert ode["mean"] == pytest.approx(sum(found[part]["mean"] for part in parts), rel=1e-9)
    # With such a poor network the flow need not be the better model, but it is near.
    assert ode["mean"] == pytest.approx(found["nats_per_dim"]["mean"], abs=0.3)
    assert "nats_per_dim_ode" not in account("val").figures


# which model a sampler draws from
# -----------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["beta_tilde", "beta", "learned"])
def test_ancestral_sampler_uses_bound_variance(data, variance):
    """It uses ``bound.variance`` unless it has its own; tests/diffusion check the draws."""
    model = make(data, Linear(-8.0, 6.0), 10, variance)
    assert model.adapt_sampler(Ancestral(10)).reverse is model.bound.variance
    assert isinstance(model.adapt_sampler(Ancestral(10, variance="beta_tilde")).reverse, BetaTilde)
    deterministic = DDIM(10)
    assert model.adapt_sampler(deterministic) is deterministic


def test_optimal_variance_is_measured_on_sampler_grid(data):
    """It is measured on the sampler's own grid with the present weights; the bound stays."""
    items = data.splits["train"].batch(torch.arange(256))
    model = make(data, Linear(-8.0, 6.0), 10, "optimal", training=lambda n: items)
    model.before_accounting()
    before = model.bound.variance.epsilon_mse.clone()
    for sampler in (Ancestral(5, grid="karras"), PredictorCorrector(5, variance="optimal")):
        ready = model.adapt_sampler(sampler)
        assert torch.equal(ready.reverse.gamma, sampler.gammas(model.schedule)[:-1].flip(0))
        assert ready.reverse is not model.bound.variance
    assert torch.equal(model.bound.variance.epsilon_mse, before)


def test_sampler_variance_learned_is_refused_if_not_trained(data):
    model = make(data, Linear(-8.0, 6.0), 10)
    model.check_sampler(DDIM(3))
    model.check_sampler(Ancestral(3, variance="optimal"))
    with pytest.raises(
        UserError, match="sampler.variance=learned: .* use null, beta_tilde, beta or optimal"
    ):
        model.check_sampler(Ancestral(3, variance="learned"))


def test_learned_variance_is_kept_by_guidance_and_thresholds(data):
    """Guidance moves the mean of a step, not its width (Dhariwal & Nichol 2021)."""
    kind = {"conditions": {"label": Labels(3)}, "width": 16, "blocks": 1}
    torch.manual_seed(0)
    net = MLP((2,), outputs=2, **kind)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    denoiser = Denoiser(net, WithFraction(Output("epsilon")), VariancePreserving())
    z, gamma, label = torch.randn(6, 2), torch.tensor(0.5), Condition(label=torch.arange(6) % 3)
    fraction = denoiser(z, gamma, label).fraction
    assert not torch.equal(fraction, denoiser(z, gamma, None).fraction)
    free, weak = ClassifierFree(denoiser, scale=3.0), network(MLP((2,), **kind), "v")
    guides = (
        free,
        ClassifierFree(denoiser, scale=3.0, rescale=0.5),
        Auto(denoiser, weak, scale=2.0),
    )
    for guide in (*guides, StaticThreshold(free), DynamicThreshold(denoiser)):
        assert torch.equal(guide(z, gamma, label).fraction, fraction)
    by_classifier = ByClassifier(denoiser, lambda z, gamma: z @ torch.ones(2, 3), scale=2.0)
    unconditional = denoiser(z, gamma, None).fraction
    assert torch.equal(by_classifier(z, gamma, label).fraction, unconditional)
