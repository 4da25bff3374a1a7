"""A report's controlled draws: unbiased, with less noise and a correct standard error."""

import math

import pytest
import torch

from tests.diffusion.oracles import Says, Wrong, correlated, generator, network, normal, oracle
from triptych.diffusion.bound import Bound
from triptych.diffusion.control import Control, controlled_error, lattice_variance
from triptych.diffusion.decoder import Categorical, GaussianDensity
from triptych.diffusion.draws import evaluation_draw, evaluation_times
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.reference import BaselineErrors, histogram
from triptych.diffusion.schedule import Cosine, Linear

VP = VariancePreserving()
LOW, HIGH, D, SEEDS = -6.0, 5.0, 6, 60


def controlled(control, denoiser, x, seed, repeats):
    """Return (R, B) estimates of the diffusion term, plain and controlled, and the error stated for
    the controlled ones."""
    bound = control.bound
    index, plain, found = torch.arange(len(x)), [], []
    for repeat in range(repeats):
        draw = evaluation_draw(tuple(x.shape[1:]), index, seed, repeat, repeats)
        plain.append(bound.diffusion(denoiser, x, draw.t, draw.eps).nats.double())
        t, weight = control.times(evaluation_times(index, seed, repeat, repeats))
        nats = bound.diffusion(denoiser, x, t.float(), draw.eps).nats
        found.append(control(nats, x, t, draw.eps, weight))
    values = torch.stack(found)
    return torch.stack(plain), values, controlled_error(values, [control], index, seed)


def stated(error):
    """Return the standard error of the mean over items, as a report states it."""
    return math.hypot(error.variance.sum().sqrt().item(), error.quadrature.sum().item()) / len(
        error.variance
    )


def gaussian():
    """Return training and test items of a correlated Gaussian."""
    mixture = GaussianMixture(*correlated(D))
    return [mixture.sample(n, generator(n))[0].float() for n in (400, 40)]


def exact_term(x, steps=None):
    """Return the diffusion term of each x under the exact denoiser of ``correlated(D)``, averaged
    exactly over eps.

    eps_hat - eps is linear in (c, e): sum_k (a s c_k / v_k)^2 + (a^2 L_k / v_k)^2, v = a^2 L + s^2.
    """
    _, mean, covariance = correlated(D)
    values, vectors = torch.linalg.eigh(covariance[0])
    c = (x.double() - mean) @ vectors
    if steps is None:
        return diffusion_term(c.square(), values, torch.linspace(LOW, HIGH, 20001).double())
    edges = Linear(LOW, HIGH).gamma(torch.linspace(0, 1, steps + 1).double())
    return diffusion_term(c.square(), values, edges, steps=True)


def diffusion_term(squares, values, edges, steps=False):
    """Return the diffusion term (B,) of items, from squared components (B, d) with the variances
    ``values``."""
    gamma, factor = (edges[1:] + edges[:-1]) / 2, 0.5 * edges.diff()
    if steps:
        gamma, factor = edges[1:], 0.5 * torch.expm1(edges.diff())
    a2, s2 = torch.sigmoid(-gamma)[:, None], torch.sigmoid(gamma)[:, None]
    v = a2 * values + s2
    return squares @ (a2 * s2 / v**2).T @ factor + ((a2 * values / v) ** 2).sum(1) @ factor


def test_lattice_variance_uses_successive_differences_in_time():
    """Half the mean square of successive differences around the circle, over R (von Neumann
    1941)."""
    for n in (2, 5):
        u, value = torch.rand(2, n, 3, generator=generator(n)).double()
        for i, found in enumerate(lattice_variance(value, u)):
            y = [v for _, v in sorted(zip(u[:, i].tolist(), value[:, i].tolist(), strict=True))]
            squares = sum((y[r] - y[r - 1]) ** 2 for r in range(n))
            assert found.item() == pytest.approx(squares / (2 * n * n))
        assert lattice_variance(value[:1], u[:1]).isnan().all()


@pytest.mark.parametrize("steps", [None, 10])
def test_control_variate_is_unbiased_with_correct_standard_error(steps):
    """The exact denoiser of a Gaussian against its closed form, with a reference that is fitted to
    other data."""
    items, x = gaussian()
    bound = Bound(Linear(LOW, HIGH), GaussianDensity(), steps)
    # Neither the mean nor the covariance of this reference is right.
    reference = BaselineErrors(0.7 * items + 0.1 * items.square(), VP, LOW, HIGH)
    denoiser, figures = oracle(correlated(D)), []
    control = Control(bound, denoiser, reference, items, 0)
    for seed in range(SEEDS):
        plain, found, error = controlled(control, denoiser, x, seed, 8)
        figures.append((found.mean().item(), plain.mean().item(), stated(error) ** 2))
    means, plains, claimed = torch.tensor(figures).double().T
    truth = exact_term(x, steps).mean().item()
    assert abs(means.mean().item() - truth) < 3.5 * means.std().item() / math.sqrt(len(means))
    assert means.std() < 0.5 * plains.std()
    # The relative error of a standard deviation over SEEDS values is 1 / sqrt(2 SEEDS).
    ratio = claimed.mean().sqrt().item() / means.std().item()
    assert abs(ratio - 1) < 3 / math.sqrt(2 * SEEDS), ratio


def test_standard_error_includes_quadrature_error_of_times():
    """All noise of a linear denoiser is controlled, so the error of its mean is due to the times
    alone."""
    d, items, seeds, repeats = 64, 40, 30, 8
    values = torch.logspace(0, -2.6, d)
    training, x = (normal(n, d, seed=n).float() * values.sqrt() for n in (400, items))

    class Linearly(torch.nn.Module):
        process = VP

        def forward(self, z, gamma, condition=None):
            alpha, sigma = (a[:, None] for a in VP.alpha_sigma(gamma))
            variance = alpha**2 * values + sigma**2
            return Prediction("x0", alpha * values * z / variance, z, alpha, sigma)

    bound, reference = (
        Bound(Linear(LOW, HIGH), GaussianDensity()),
        BaselineErrors(training, VP, LOW, HIGH),
    )
    control = Control(bound, Linearly(), reference, training, 0)
    edges = torch.linspace(LOW, HIGH, 20001).double()
    truth = diffusion_term(x.double().square(), values.double(), edges).mean().item()
    errors, claimed = [], []
    for seed in range(seeds):
        _, found, error = controlled(control, Linearly(), x, seed, repeats)
        errors.append(found.mean().item() - truth)
        claimed.append(stated(error))
    seen = math.sqrt(sum(error**2 for error in errors) / seeds)
    said = math.sqrt(sum(error**2 for error in claimed) / seeds)
    assert abs(said / seen - 1) < 3 / math.sqrt(2 * seeds), (said, seen)


def test_control_variate_is_unbiased_for_wrong_network():
    """The estimate agrees with the mean of 600 plain draws per item."""
    items, x = gaussian()
    denoiser, bound = network(Wrong(), "epsilon"), Bound(Cosine(LOW, HIGH), GaussianDensity())
    reference = BaselineErrors(items, VP, LOW, HIGH)
    control = Control(bound, denoiser, reference, items, 0)
    means = torch.stack([controlled(control, denoiser, x, seed, 4)[1].mean() for seed in range(40)])
    index = torch.arange(len(x))
    draws = [evaluation_draw((D,), index, 10**6, r, 600) for r in range(600)]
    brute = torch.stack(
        [bound.diffusion(denoiser, x, d.t, d.eps).nats.double().mean() for d in draws]
    )
    error = math.hypot(means.std().item() / math.sqrt(40), brute.std().item() / math.sqrt(600))
    assert abs(means.mean() - brute.mean()) < 3.5 * error


def grid(n, seed):
    """Return items on 5 levels in 8 dimensions; each dimension has its own probabilities."""
    p = torch.softmax(1.5 * normal(8, 5), 1)
    k = torch.multinomial(p, n, replacement=True, generator=generator(seed)).T
    return (k / 2 - 1).float()


def test_baseline_errors_mean_matches_monte_carlo():
    """40,000 draws of eps, for one item, at three gammas."""
    x, n = grid(500, 1), 40_000
    reference = BaselineErrors(x, VP, -7.0, 5.0, 5)
    for gamma in (-4.0, -2.0, 3.0):
        eps = torch.randn(n, 8, generator=generator(3))
        found = reference.errors(x[:1].expand(n, 8), torch.full((n,), gamma), eps)
        assert found.value.shape == (2, n)
        error = (found.value - found.mean).mean(1) / found.value.std(1) * math.sqrt(n)
        assert error.abs().max() < 3.5, (gamma, error)
        assert (found.mean.std(1) < 1e-9).all()


def test_level_reference_reduces_variance_more_than_gaussian():
    """The network is the denoiser of the histograms, so their reference removes all noise but that
    of the times."""
    items, x = grid(500, 1), grid(30, 2)
    p = histogram([items], 5, 1.0)
    log_p, centres = p.log().float(), torch.linspace(-1, 1, 5)

    class Own(torch.nn.Module):
        def forward(self, z, gamma, condition):
            alpha, sigma = (a[:, None, None] for a in VP.alpha_sigma(gamma))
            logits = log_p - 0.5 * ((z.unsqueeze(2) - alpha * centres) / sigma).square()
            return (torch.softmax(logits, 2) * centres).sum(2)

    bound = Bound(Linear(-6.0, 5.0), Categorical(5))
    spreads = {}
    for levels in (None, 5):
        reference = BaselineErrors(items, VP, -6.0, 5.0, levels)
        denoiser = network(Own(), "x0")
        control = Control(bound, denoiser, reference, items, 0)
        means = [controlled(control, denoiser, x, seed, 8)[1].mean() for seed in range(20)]
        spreads[levels] = torch.stack(means).std().item()
    assert spreads[5] < 0.4 * spreads[None], spreads


@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("n", [1, 400])
def test_control_times_are_uniform_for_constant_training_items(n, levels):
    """A reference has no error on a single item or on equal ones, so no time needs more draws than
    another."""
    items, bound = (
        torch.tensor([[0.5, -0.5]]).expand(n, 2),
        Bound(Linear(LOW, HIGH), GaussianDensity()),
    )
    reference = BaselineErrors(items, VP, LOW, HIGH, levels)
    control = Control(bound, network(Wrong(), "v"), reference, items, 0)
    u = torch.rand(50, generator=generator()).double()
    t, weight = control.times(u)
    torch.testing.assert_close(t, u)
    torch.testing.assert_close(weight, torch.ones_like(u))
    assert control.b.isfinite().all()


def test_control_times_do_not_depend_on_denoiser():
    items, _ = gaussian()
    bound, reference = (
        Bound(Linear(LOW, HIGH), GaussianDensity()),
        BaselineErrors(items, VP, LOW, HIGH),
    )
    one, other = (
        Control(bound, denoiser, reference, items, 3)
        for denoiser in (oracle(correlated(D)), network(Says(oracle(correlated(D)), "v"), "v"))
    )
    assert torch.equal(one.density.rates, other.density.rates)
    assert torch.equal(one.b, Control(bound, oracle(correlated(D)), reference, items, 3).b)
