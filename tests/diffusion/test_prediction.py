r"""Predictions in every space in float32; tolerances follow from the conversions' conditioning.

Every space is a row in (x0, eps), see ``oracles.row``. With z = alpha x0 + sigma eps each
conversion is ``b = p z + q a``; the oracle solves that 2x2 system in float64. A float32 evaluation
of it makes at most R roundings on each of the two terms, so its error is at most ``R U (|p z| + |q
a|)``: large only where the conversion is ill conditioned.
"""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.diffusion.prediction import SPACES, Prediction, Row, Space, edm, error_scale
from triptych.diffusion.process import VarianceExploding, VariancePreserving

from .oracles import U, normal, refused, row

# The longest conversion, score to v, has 8 roundings: alpha^2, sigma^2, +, sigma score, *, sigma z,
# -, /.
R = 8
R_EDM = 11  # v to EDM's F: sigma alpha, 4/3 of it in -, * z, D (3), * sd h (3), /, +
TINY = 1e-30  # below this, float32 underflows and relative bounds do not hold
PAIRS = list(product(SPACES, SPACES))
pairs = pytest.mark.parametrize("a, b", PAIRS)
gammas = st.floats(-13.3125, 10, width=32)
vectors = st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3)
often = settings(max_examples=30, deadline=None)


def roundings(*spaces):
    return R_EDM if "edm" in spaces else R


def conversion(a, b, alpha, sigma):
    """Return (p, q) with b = p z + q a, in float64."""
    (a0, a1), (b0, b1) = row(a, alpha, sigma), row(b, alpha, sigma)
    det = alpha * a1 - sigma * a0
    return (b0 * a1 - b1 * a0) / det, (b1 * alpha - b0 * sigma) / det


def at(gamma, process=None):
    """Return alpha, sigma () in float32 and the very same numbers in float64."""
    alpha, sigma = (process or VariancePreserving()).alpha_sigma(
        torch.tensor(gamma, dtype=torch.float32)
    )
    return (alpha, sigma), (alpha.double(), sigma.double())


def converted(a, b, value, z, gamma, process=None):
    """Return the code's float32 b, the oracle's float64 b, and how much they may differ."""
    single, double = at(gamma, process)
    ours = Prediction(a, value, z, *single).view(b)
    p, q = conversion(a, b, *double)
    first, second = p * z.double(), q * value.double()
    return ours, first + second, roundings(a, b) * U * (first.abs() + second.abs()) + TINY


@pairs
@given(gamma=gammas, z=vectors, value=vectors)
@often
def test_prediction_conversions_match_definitions(a, b, gamma, z, value):
    for process in (VariancePreserving(), VarianceExploding()):
        ours, exact, allowed = converted(a, b, torch.tensor(value), torch.tensor(z), gamma, process)
        assert ours.dtype == torch.float32
        assert ((ours.double() - exact).abs() <= allowed).all()


@pairs
@given(gamma=gammas, z=vectors, value=vectors, truth=vectors)
@often
def test_convert_then_square_equals_square_then_scale(a, b, gamma, z, value, truth):
    """|b - b'|^2 = (s_b / s_a)^2 |a - a'|^2. An error e in d changes d^2 by at most e (2 |d| +
    e)."""
    z, value, truth = torch.tensor(z), torch.tensor(value), torch.tensor(truth)
    (guess, _, erred), (target, _, errs) = (converted(a, b, w, z, gamma) for w in (value, truth))
    converted_first = (guess - target).double()
    single, double = at(gamma)
    scale = error_scale(b, *single).double() / error_scale(a, *single).double()
    squared_first = scale.square() * (value.double() - truth.double()).square()
    exact = (value.double() - truth.double()).abs() * scale
    off = erred + errs + U * exact
    rounded = roundings(a, b) * U * squared_first
    assert (
        (converted_first.square() - squared_first).abs() <= off * (2 * exact + off) + rounded
    ).all()
    # The scale itself is |q| of the definition.
    torch.testing.assert_close(
        scale, conversion(a, b, *double)[1].abs(), rtol=roundings(a, b) * U, atol=0
    )


@pytest.mark.parametrize("space", SPACES)
@given(gamma=gammas, x=vectors, eps=vectors, value=vectors)
@often
def test_epsilon_error_is_epsilon_minus_eps_in_every_space(space, gamma, x, eps, value):
    """The error is formed in the prediction's own space: only the terms of that space are rounded,
    then scaled by 1 / s.

    If it were formed from ``epsilon``, the rounding of z, U |z| / sigma, would be added: 770 times
    as much at -13.3.
    """
    x, eps, value = torch.tensor(x), torch.tensor(eps), torch.tensor(value)
    single, (alpha, sigma) = at(gamma)
    z = alpha * x.double() + sigma * eps.double()
    p, q = conversion(space, "epsilon", alpha, sigma)
    exact = p * z + q * value.double() - eps.double()
    ours = Prediction(space, value, z.float(), *single).epsilon_error(x, eps)
    x0_part, eps_part = row(space, alpha, sigma)
    terms = value.double().abs() + (x0_part * x.double()).abs() + (eps_part * eps.double()).abs()
    # The float64 oracle is computed from z and has its own roundoff.
    allowed = roundings(space) * U * q.abs() * terms + 8 * 2.0**-53 * (p * z).abs() + TINY
    assert ((ours.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("space", SPACES)
def test_prediction_at_other_level_keeps_x0_and_epsilon(space):
    """at(alpha', sigma') = alpha' x0 + sigma' epsilon, the solution of the same 2x2 system."""
    z, value = normal(2, 5, 3)
    levels = torch.tensor([-8.0, -1.0, 0.5, 3.0, 8.0], dtype=torch.float64).view(5, 1)
    for process in (VariancePreserving(), VarianceExploding()):
        alpha, sigma = process.alpha_sigma(levels)
        (p0, q0), (p1, q1) = (conversion(space, view, alpha, sigma) for view in ("x0", "epsilon"))
        for down in (0.01, 2.0):
            alpha_s, sigma_s = process.alpha_sigma(levels - down)
            exact = alpha_s * (p0 * z + q0 * value) + sigma_s * (p1 * z + q1 * value)
            ours = Prediction(space, value, z, alpha, sigma).at(alpha_s, sigma_s)
            torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_score_is_the_gradient_of_the_log_density():
    """For one data point, q(z | x) = N(alpha x, sigma^2): Tweedie's sign and scale."""
    alpha, sigma = torch.tensor(0.8, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    z = torch.tensor([[0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        torch.distributions.Normal(alpha * x, sigma).log_prob(z).sum(), z
    )
    torch.testing.assert_close(Prediction("x0", x, z.detach(), alpha, sigma).score, gradient)


PATHS = {
    "v": lambda phi: (phi.cos(), phi.sin()),  # along the circle (Salimans & Ho 2022)
    # Along the straight line (Lipman et al. 2023, Liu et al. 2023).
    "velocity": lambda s: (1 - s, s),
}


@pytest.mark.parametrize("space", PATHS)
def test_v_and_velocity_are_derivatives_along_their_paths(space):
    """They are derivatives of z(s) = alpha(s) x + sigma(s) eps."""
    x, eps = torch.tensor([[0.3, -1.0], [-0.4, 2.0]]).double()
    at = torch.tensor(0.7).double()
    scales = torch.func.jvp(PATHS[space], (at,), (torch.ones_like(at),))
    z, slope = (alpha * x + sigma * eps for alpha, sigma in scales)
    alpha, sigma = scales[0]
    torch.testing.assert_close(Prediction("x0", x, z, alpha, sigma).view(space), slope)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding()], ids=["vp", "ve"])
def test_edm_is_the_preconditioning_of_karras(sigma_data, process):
    """D(y; s) = c_skip y + c_out F with y = z / alpha and s = sigma / alpha (Karras et al. 2022,
    eq. 7)."""
    z, f = normal(2, 5, 3)
    alpha, sigma = process.alpha_sigma(
        torch.tensor([-9.0, -1.0, 0.0, 2.0, 8.0]).double().view(5, 1)
    )
    s = sigma / alpha
    c_skip = sigma_data**2 / (s**2 + sigma_data**2)
    c_out = s * sigma_data / (s**2 + sigma_data**2).sqrt()
    guess = Prediction(edm(sigma_data), f, z, alpha, sigma)
    torch.testing.assert_close(guess.x0, c_skip * z / alpha + c_out * f)
    # The paper's weight lambda(s) makes the loss plain in F: lambda |x0 error|^2 = |F error|^2.
    per_x0 = error_scale(edm(sigma_data), alpha, sigma) / error_scale("x0", alpha, sigma)
    torch.testing.assert_close(per_x0.square(), (s**2 + sigma_data**2) / (s * sigma_data) ** 2)


def test_user_defined_space_needs_only_a_row():
    """The space 2 x0 - eps is in no table; views and errors follow from its row alone."""
    own = Space("own", lambda alpha, sigma: Row(2.0, -1.0))
    x, eps = normal(2, 4)
    alpha, sigma = VariancePreserving().alpha_sigma(torch.linspace(-5, 5, 4).double())
    guess = Prediction(own, 2 * x - eps, alpha * x + sigma * eps, alpha, sigma)
    torch.testing.assert_close(guess.x0, x)
    torch.testing.assert_close(guess.epsilon, eps)
    torch.testing.assert_close(error_scale(own, alpha, sigma), (alpha + 2 * sigma) / alpha)
    assert guess.epsilon_error(x, eps).abs().max() < 1e-12


def test_user_defined_space_of_eps_only_accepts_scale_per_item():
    """sigma eps does not depend on z; its epsilon and score are divided by each item's own
    scale."""
    own = Space("noise", lambda alpha, sigma: Row(0.0, sigma))
    x, eps = normal(2, 4, 3)
    alpha, sigma = VariancePreserving().alpha_sigma(torch.linspace(-5, 5, 4).double().view(4, 1))
    guess = Prediction(own, sigma * eps, alpha * x + sigma * eps, alpha, sigma)
    torch.testing.assert_close(guess.epsilon, eps)
    torch.testing.assert_close(guess.score, -eps / sigma)


@pytest.mark.parametrize("sigma_data", [0, -1, float("nan")])
def test_edm_refuses_non_positive_sigma_data(sigma_data):
    refused(lambda: edm(sigma_data), f"sigma_data={sigma_data}", "above 0")


def test_refuses_unknown_spaces():
    one = torch.ones(1)
    refused(lambda: Prediction("x00", one, one, one, one), "space='x00'", "x0, epsilon, score, v")
    refused(lambda: error_scale("x00", one, one), "space='x00'", "x0, epsilon, score, v")
