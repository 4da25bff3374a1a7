"""A VAE with a diffusion prior, compared with exact densities: all is linear and Gaussian."""

import math
from unittest.mock import patch

import pytest
import torch

import triptych
from tests.diffusion.oracles import cubature, legendre
from tests.models.options import OPTIONS
from tests.models.test_vae import batch, digits_like, principal_components
from tests.refusal import refused
from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.denoiser import Denoiser, Output
from triptych.diffusion.draws import Draw
from triptych.diffusion.learned_schedule import LearnedEndpoints
from triptych.diffusion.loss import Elbo, Simple
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import Ancestral, Heun
from triptych.diffusion.schedule import Cosine, Linear
from triptych.models.contract import check_output
from triptych.models.latent import VAE
from triptych.models.latent_diffusion import LatentDiffusion
from triptych.networks.conv_ladder import ConvLadder
from triptych.networks.resnet import ResNet
from triptych.run.execute import execute

VP = VariancePreserving()
LOW, HIGH = -9.0, 5.0


def make(network, denoiser, schedule=None, levels=None, steps=None, **options) -> LatentDiffusion:
    schedule = schedule or Linear(LOW, HIGH)
    objective = Objective("v", options.pop("loss", Elbo()), steps)
    parts = (network, denoiser, schedule, objective, Bound(schedule, GaussianDensity(), steps))
    options = OPTIONS | {"repeats": 2} | options
    return LatentDiffusion(*parts, levels=levels, discrete=levels is not None, **options)


def standard(q: int) -> GaussianMixture:
    return GaussianMixture([1.0], torch.zeros(1, q), torch.eye(q)[None])


def expected(model: LatentDiffusion, items: Batch, nodes: int = 160) -> torch.Tensor:
    """Return the expectation of the model's own bound, (B,), without sampling noise.

    Everything is Gaussian and linear, so at a time the bound is quadratic in (noise of y, eps), for
    which +- sqrt(2 q) along each axis are enough; in time it is smooth, and Gauss-Legendre's rule
    converges.
    """
    (q,) = model.event
    points = cubature(2 * q)
    n = len(items.x)
    every = batch(items.x.repeat(len(points), 1))
    of_y, eps = points.repeat_interleave(n, 0).split(q, 1)
    total, one = torch.zeros(n, dtype=torch.float64), torch.ones(len(every.x), dtype=torch.float64)
    for t, w in zip(*legendre(nodes), strict=True):
        draw = Draw(t.expand(len(every.x)), eps, torch.zeros_like(eps))
        drawn = {"_draw": lambda *_, draw=draw: (draw, one)}
        noise = patch.object(
            type(model.random), "evaluation_noise", lambda *_, noise=of_y: lambda _: noise
        )
        with torch.no_grad(), noise, patch.multiple(model, **drawn):
            totals = model.elbo(every, 0, 1).total
        total += w * totals.reshape(len(points), n).mean(0)
    return total


def gap_of_a_standard_normal(y_squared: torch.Tensor, low: float) -> torch.Tensor:
    r"""Return VDM's bound of N(0, I) with its exact denoiser, minus -log N(y; 0, I).

    It is summed over (B, d) squares y^2.
    eps_hat = sigma z, so E|eps - eps_hat|^2 = a^4 + a^2 s^2 y^2 a dimension (a = alpha, s = sigma).
    With d a^2 / d gamma = -a^2 s^2 and int a^2 d gamma = log s_1^2 / s_0^2 the three terms are

        prior           1/2 (a_1^2 (y^2 - 1) - log s_1^2)
        diffusion       1/2 (log s_1^2 / s_0^2 + (y^2 - 1) (a_0^2 - a_1^2))
        reconstruction  1/2 (1 + log 2 pi + log s_0^2 / a_0^2)

    whose sum is 1/2 (1 + log 2 pi + (y^2 - 1) a_0^2 - log a_0^2): beyond the truth by
    1/2 (s_0^2 (1 - y^2) - log a_0^2), whatever lies at gamma_1.
    """
    gamma = torch.tensor(low, dtype=torch.float64)
    noise = torch.sigmoid(gamma)
    return 0.5 * (noise * (1 - y_squared) + torch.nn.functional.softplus(gamma)).sum(1)


@pytest.mark.parametrize(("d", "q"), [(1, 1), (7, 3)])
@pytest.mark.parametrize("schedule", [Linear, Cosine])
def test_latent_diffusion_with_standard_normal_prior_equals_vae_bound(d, q, schedule):
    """PPCA's encoder is the true posterior, so only the diffusion's clean end leaves a gap."""
    network, mixture = principal_components(d, q, 0.3)
    options = {"shape": (d,), "mixture": mixture}
    model = make(network, Oracle(standard(q), VP), schedule(LOW, HIGH), **options).double()
    x = mixture.sample(50, torch.Generator().manual_seed(1))[0].double()
    found = expected(model, batch(x))
    posterior = model.encode(x)
    gap = gap_of_a_standard_normal(posterior.mean.square() + posterior.std.square(), LOW)
    torch.testing.assert_close(found, -mixture.log_prob(x) + gap, atol=1e-5, rtol=0)
    assert 0 < gap.mean() < 2e-4 * q
    # The same network as a plain VAE, in expectation over its own noise.
    vae = VAE(network, discrete=False, shape=(d,), **OPTIONS).double()
    paths = [vae.hierarchy.path(x, lambda shape, e=e: e.expand(shape)) for e in cubature(q)]
    with torch.no_grad():
        plain = torch.stack([vae.hierarchy.bound(x, path).total for path in paths]).mean(0)
    torch.testing.assert_close(found, plain + gap, atol=1e-5, rtol=0)


def correlated(q: int) -> GaussianMixture:
    root = torch.randn(q, q, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    covariance = root @ root.T / q + 0.3 * torch.eye(q)
    return GaussianMixture([1.0], 0.5 * torch.ones(1, q), covariance[None])


def test_latent_diffusion_bound_matches_closed_form_for_gaussian_prior():
    r"""For x = W y + m + noise eps with y ~ N(mu, C), compare the bound with Gaussian formulas.

    The bound is E_q[-log p(x | y)] - H[q] + E_q[-log p(y)].
    Each is Gaussian: E_q of a quadratic form is its value at the mean and the trace of the rest.
    """
    d, q, noise = 6, 3, 0.3
    network, _ = principal_components(d, q, noise)
    prior = correlated(q)
    model = make(network, Oracle(prior, VP), Linear(-17.0, 17.0), shape=(d,)).double()
    x = torch.randn(20, d, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        m, s = model.encode(x)
        last = network.head.network[-1]
        w, b = last.weight[:d].double(), last.bias[:d].double()
        away = x - m @ w.T - b
        spread = s.square() @ w.T.square()
        wanted = 0.5 * ((away.square() + spread) / noise**2 + math.log(2 * math.pi * noise**2)).sum(
            1
        )
        wanted -= 0.5 * (1 + torch.log(2 * math.pi * s.square())).sum(1)
        mu = prior.means[0]
        covariance = prior.bases[0] @ prior.scales[0].diag() @ prior.bases[0].T
        p = torch.distributions.MultivariateNormal(mu, covariance)
        wanted += -p.log_prob(m) + 0.5 * s.square() @ torch.linalg.inv(covariance).diagonal()
    # The two ends contribute about e^-17.
    torch.testing.assert_close(expected(model, batch(x), 240), wanted, atol=1e-5, rtol=0)


def test_accounted_latent_diffusion_gap_matches_closed_form():
    """Simulate the whole test set with the usual draws and control variates, as in a report."""
    d, q = 7, 3
    network, mixture = principal_components(d, q, 0.3)
    x, _ = mixture.sample(2000, torch.Generator().manual_seed(1))
    training, _ = mixture.sample(500, torch.Generator().manual_seed(2))
    options = {"shape": (d,), "mixture": mixture, "training": lambda n: batch(training[:n])}
    model = make(network, Oracle(standard(q), VP), repeats=4, **options)
    model.before_report()
    with torch.no_grad():
        model._evaluate_batch(batch(x), 4, {}, report=True)
    found = model.accounting.compute().figures
    own = gap_of_a_standard_normal(torch.ones(1, q), LOW).item() / d  # E y^2 = 1 over the data
    assert abs(found["gap"]["mean"] - own) < 3 * found["gap"]["stderr"]
    assert found["gap"]["stderr"] < 0.01
    assert found["nats_per_dim"]["draw_stderr"] < found["nats_per_dim"]["stderr"]
    parts = [
        found[f"nats_per_dim_{part}"]["mean"] for part in ("prior", "reconstruction", "diffusion")
    ]
    assert sum(parts) == pytest.approx(found["nats_per_dim"]["mean"], rel=1e-9)
    assert found["nats_per_dim"]["n"] == 2000
    # The exact denoiser's epsilon error by noise level is that of q dimensions, not of d.
    levels = model.accounting.compute().noise_levels
    alpha, _ = VP.alpha_sigma(torch.tensor(levels["gamma"]))
    error = torch.tensor(levels["epsilon_mse"])
    assert (error - alpha.square()).abs().max() < 5 * torch.tensor(levels["stderr"]).max()
    samples = model.sample(20_000, Heun(50), torch.Generator().manual_seed(3))
    truth, _ = mixture.sample(20_000, torch.Generator().manual_seed(4))
    assert torch.allclose(samples.T.cov(), truth.T.cov(), atol=0.07)
    assert torch.allclose(samples.mean(0), truth.mean(0), atol=0.05)


def images(schedule=None, **options) -> LatentDiffusion:
    torch.manual_seed(0)
    network = ConvLadder((1, 8, 8), LatentDiffusion.outputs(17), 1, channels=3, width=8)
    denoiser = Denoiser(ResNet(network.top, width=8, blocks=1, fourier=()), Output("v"), VP)
    return make(network, denoiser, schedule, levels=17, shape=(1, 8, 8), **options)


def test_latent_diffusion_loss_trains_all_parts_and_equals_bound():
    model, items = images(), batch(digits_like())
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    loss = model.loss(items, 0, 0, 1)
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    # Averaged over the noise of many steps, the loss is the reported bound.
    with torch.no_grad():
        losses = torch.stack([model.loss(items, step, 0, 1).mean() for step in range(100)])
        bounds = torch.stack([model.elbo(items, r, 50).total.mean() for r in range(50)])
    stderr = math.hypot(losses.std() / math.sqrt(100), bounds.std() / math.sqrt(50))
    assert abs(losses.mean() - bounds.mean()) < 3 * stderr


def test_initial_latent_diffusion_prior_is_standard_normal(monkeypatch):
    """A network with output 0, read as v, is the exact denoiser of N(0, I)."""
    model, items = images(), batch(digits_like())
    z, gamma = torch.randn(5, 3, 4, 4), torch.linspace(-8, 4, 5)
    ours = model.denoiser(z, gamma).epsilon
    _, sigma = VP.alpha_sigma(gamma)
    torch.testing.assert_close(ours, sigma[:, None, None, None] * z)
    samples = model.sample(5, Ancestral(3), torch.Generator().manual_seed(1))
    assert samples.shape == (5, 1, 8, 8) and torch.isin(samples, model.observation.centres).all()
    assert model.to_picture(torch.randn(4, 5, 3, 4, 4)).shape == (4, 5, 1, 8, 8)
    tried = set()

    def note(key, *more):
        tried.add(key)
        return check_output(key, *more)

    for module in ("latent_diffusion", "diffusion"):
        monkeypatch.setattr(f"triptych.models.{module}.check_output", note)
    model.try_components(items)
    assert tried >= {"model.network.head", "denoiser.network"}


def test_latent_diffusion_bound_is_independent_of_batch_and_world_size():
    model = images().eval()
    whole = batch(digits_like())
    part = Batch(whole.x[2:4], None, whole.index[2:4])
    with torch.no_grad():
        ours, theirs = model.elbo(whole, 1, 2).total[2:4], model.elbo(part, 1, 2).total
        assert torch.allclose(ours, theirs, rtol=1e-5)
        loss = model.loss(whole, 5, 0, 1)
        halves = [
            model.loss(batch(whole.x[3 * rank : 3 * rank + 3]), 5, rank, 2) for rank in range(2)
        ]
    assert torch.allclose(loss, torch.cat(halves), rtol=1e-5)


def test_latent_diffusion_loss_gives_gradient_of_learned_endpoints():
    """d bound / d gamma_0 of the loss's graph equals finite differences of the reported bound."""
    schedule = LearnedEndpoints(-4.0, 3.0)
    model, items = images(schedule), batch(digits_like())
    model.loss(items, 0, 0, 1).mean().backward()
    assert schedule.low_shift.grad.abs() > 0 and schedule.top_shift.grad.abs() > 0
    found = schedule.low_shift.grad.item()
    h, values = 1e-2, []
    for shift in (h, -h):
        with torch.no_grad():
            schedule.low_shift.fill_(shift)
            values.append(model.loss(items, 0, 0, 1).double().mean().item())
    assert found == pytest.approx((values[0] - values[1]) / (2 * h), rel=0.02)


def test_latent_diffusion_refuses_loss_other_than_elbo():
    refused(lambda: images(loss=Simple("v")), "objective/loss=elbo", error=ValueError)


SMALL = ["model=latent_diffusion", "model.network.width=8"]
STEPS = ["bound.steps=5", "objective.steps=5"]
FLIPPED = ["augmentation=flip", "augmentation.flip.told=true", "guidance.scale=2"]


@pytest.mark.parametrize(
    "arguments",
    [
        [
            *SMALL,
            *FLIPPED,
            "schedule=learned",
            "model.conditional=true",
            "guidance=classifier_free",
        ],
        [*SMALL, *STEPS, "bound.variance=optimal"],
    ],
)
def test_latent_diffusion_run_trains_samples_and_reopens(prepared, arguments):
    run = prepared(*arguments)
    summary = execute(run)
    test = summary["test"]
    assert summary["status"] == "finished" and (run / "samples" / "trajectory.png").is_file()
    parts = [test[f"bpd_{part}"]["mean"] for part in ("prior", "reconstruction", "diffusion")]
    assert sum(parts) == pytest.approx(test["bpd"]["mean"])
    assert test["bpd"]["draw_stderr"] > 0
    assert triptych.load(run.path).evaluate("test") == test


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SMALL, "denoiser=none"], ["denoiser=none: not allowed with LatentDiffusion"]),
        ([*SMALL, "denoiser=resnet"], ["denoiser.network", "levels"]),
        ([*SMALL, "objective=levels"], ["objective=levels", "objective=x0"]),
        ([*SMALL, "threshold=static"], ["threshold", "pass threshold=none"]),
        ([*SMALL, "likelihood=ode_images"], ["set likelihood=none"]),
        (
            [*SMALL, "metrics=distortion"],
            ["metrics.distortion: LatentDiffusion", "model=diffusion"],
        ),
        ([*SMALL, "bound.variance=learned", *STEPS], ["bound.variance=learned", "optimal"]),
    ],
)
def test_latent_diffusion_refuses_incompatible_options(prepared, arguments, words):
    refused(lambda: execute(prepared(*arguments)), *words)
