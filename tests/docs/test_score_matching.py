"""Four losses with one minimiser: elsewhere they differ by the constants of the theory."""

import math
from operator import itemgetter
from runpy import run_path

import pytest
import torch

from tests.diffusion.oracles import Says, correlated, generator, lopsided, network, oracle, ring
from tests.diffusion.test_processes import PROCESSES
from triptych.config.check import CONFIGS
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.tweedie import posterior_mean, tweedie_errors

SCRIPT = run_path(str(CONFIGS.parent / "docs" / "score_losses.py"))
explicit, implicit, sliced = itemgetter("explicit", "implicit", "sliced")(SCRIPT)
denoising, rademacher = itemgetter("denoising", "rademacher")(SCRIPT)


def losses(score, truth, gamma, n, seed=0):
    """Return all four losses at n points of the noisy marginal, and the true score there."""
    x = truth.mixture.sample(n, generator(seed))[0].double()
    eps = torch.randn(x.shape, generator=generator(seed + 1), dtype=torch.float64)
    alpha, sigma = truth.process.alpha_sigma(gamma)
    z = alpha * x + sigma * eps
    target = truth(z, gamma).score
    found = {
        "explicit": explicit(score, z, target),
        "implicit": implicit(score, z),
        "sliced": sliced(score, z, rademacher(z, generator(seed + 2))),
        "denoising": denoising(score, z, eps, sigma),
    }
    return {k: v.detach() for k, v in found.items()}, target, sigma.item()


@pytest.mark.parametrize("off", [0.0, 0.4], ids=["optimum", "elsewhere"])
@pytest.mark.parametrize("process", PROCESSES)
def test_score_matching_losses_differ_by_known_constants(process, off):
    """Row by row (loss - explicit - constant) has mean zero, within 3 standard errors."""
    truth = oracle(lopsided(), PROCESSES[process])
    gamma = torch.tensor(-0.5, dtype=torch.float64)

    def score(z):
        return truth(z, gamma).score + off * torch.sin(2 * z + z.flip(1))

    found, target, sigma = losses(score, truth, gamma, 20_000)
    if not off:
        assert found["explicit"].max() == 0
    information = 0.5 * target.square().sum(1)
    noise = target.shape[1] / (2 * sigma**2)
    known = {"implicit": -information, "sliced": -information, "denoising": noise - information}
    for name, constant in known.items():
        gap = found[name] - found["explicit"] - constant
        stderr = gap.std().item() / math.sqrt(len(gap))
        assert abs(gap.mean().item()) <= 3 * stderr + 1e-12, (name, gap.mean().item(), stderr)


def test_implicit_is_exact_and_sliced_unbiased_on_a_linear_score():
    """For s = A z, div s = tr A, and E v.Av = tr A over independent signs."""
    matrix = torch.randn(4, 4, generator=generator(), dtype=torch.float64)
    z = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    quadratic = 0.5 * (z @ matrix.T).square().sum(1)
    torch.testing.assert_close(implicit(lambda z: z @ matrix.T, z), quadratic + matrix.trace())
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 4)
    every = torch.stack([sliced(lambda z: z @ matrix.T, z, v.expand_as(z)) for v in corners]).mean(
        0
    )
    torch.testing.assert_close(every, quadratic + matrix.trace())
    signs = rademacher(z, generator())
    assert signs.dtype == z.dtype and (signs.abs() == 1).all()


def test_score_matching_losses_recover_gaussian_score():
    """Each loss reaches a Gaussian's linear score in a few Newton-like steps of its gradient."""
    truth, gamma = oracle(correlated(2)), torch.tensor(-1.0, dtype=torch.float64)
    x = truth.mixture.sample(4000, generator())[0].double()
    eps = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    alpha, sigma = truth.process.alpha_sigma(gamma)
    z = alpha * x + sigma * eps
    cov = alpha**2 * correlated(2)[2][0] + sigma**2 * torch.eye(2)
    for loss in (
        lambda s: implicit(s, z),
        lambda s: sliced(s, z, rademacher(z, generator(2))),
        lambda s: denoising(s, z, eps, sigma),
    ):
        matrix = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([matrix, bias], max_iter=100, line_search_fn="strong_wolfe")

        def closure(loss=loss, matrix=matrix, bias=bias, optimiser=optimiser):
            optimiser.zero_grad()
            value = loss(lambda z: z @ matrix.T + bias).mean()
            value.backward()
            return value

        optimiser.step(closure)
        exact = -torch.linalg.inv(cov)
        assert (matrix.detach() - exact).norm() < 0.12 * exact.norm()
        centre = torch.linalg.solve(matrix.detach(), -bias.detach())
        assert (centre - alpha * truth.mixture.means[0]).abs().max() < 0.05


def test_tweedie_posterior_mean_matches_oracle():
    truth = oracle(lopsided())
    gamma = torch.tensor(0.7, dtype=torch.float64)
    z = torch.randn(6, 2, generator=generator(), dtype=torch.float64)
    alpha, sigma = truth.process.alpha_sigma(gamma)
    guess = truth(z, gamma)
    torch.testing.assert_close(posterior_mean(guess.score, z, alpha, sigma), guess.x0)


def test_tweedie_errors_are_zero_for_oracle_and_scale_with_epsilon_error():
    """The oracle has no error; one in epsilon is sigma / alpha times that in the posterior mean."""
    truth, gammas = oracle(ring()), torch.tensor([-4.0, 0.0, 3.0]).double()
    x = truth.mixture.sample(4000, generator())[0].double()
    exact = tweedie_errors(truth, truth, x, gammas, generator(1))
    assert max(exact["excess"]) < 1e-20 and min(exact["spread"]) > 0

    class Off(Says):
        def forward(self, z, gamma, condition):
            return super().forward(z, gamma, condition) + 0.1

    figures = tweedie_errors(
        network(Off(truth, "epsilon"), "epsilon"), truth, x, gammas, generator(1)
    )
    assert figures["gamma"] == gammas.tolist()
    assert figures["excess"] == pytest.approx([0.01 * math.exp(gamma) for gamma in gammas])
    assert len(figures["stderr"]) == len(figures["spread"]) == len(gammas)


def test_tweedie_spread_is_posterior_variance():
    """One Gaussian: E|x - E[x | z]|^2 / d = tr(C sigma^2 S^-1) / d, a closed form."""
    truth = oracle(correlated(3), VariancePreserving())
    x = truth.mixture.sample(20_000, generator())[0].double()
    gamma = torch.tensor([0.3]).double()
    (spread,) = tweedie_errors(truth, truth, x, gamma, generator(1))["spread"]
    alpha, sigma = truth.process.alpha_sigma(gamma[0])
    cov = correlated(3)[2][0]
    marginal = alpha**2 * cov + sigma**2 * torch.eye(3)
    exact = (sigma**2 * cov @ torch.linalg.inv(marginal)).trace().item() / 3
    assert spread == pytest.approx(exact, rel=0.03)
