"""Losses against the published formulas, for every output of the network."""

import itertools
import math

import pytest
import torch

from triptych.diffusion.bound import Bound
from triptych.diffusion.denoiser import Denoiser, MuTildeOutput, Output
from triptych.diffusion.loss import (
    EDM,
    EDM2,
    NCSN,
    P2,
    Elbo,
    Level,
    MinSNR,
    MuTilde,
    PathVelocity,
    Sigmoid,
    Simple,
    Squared,
    TruncatedSNR,
)
from triptych.diffusion.objective import Objective
from triptych.diffusion.prediction import SPACES
from triptych.diffusion.process import (
    Preconditioned,
    Rectified,
    VarianceExploding,
    VariancePreserving,
)
from triptych.diffusion.schedule import BetaLinear, Cosine, Linear, Straight
from triptych.diffusion.times import LogitNormal, LogNormal

from .oracles import SCHEDULES, Scaled, Wrong, close, every_schedule, refused, row

STEPS, T = 12, (torch.arange(24).double() + 0.5) / 24
VP = VariancePreserving()
OUTPUTS = [*SPACES, "mu_tilde"]
SAID = {"vp": VP, "ve": VarianceExploding(), "rectified": Rectified()}
every_output = pytest.mark.parametrize("output", OUTPUTS)
every_process = pytest.mark.parametrize("process", SAID.values(), ids=SAID)
# Outputs under other processes are in test_prediction.py.
every_pair = pytest.mark.parametrize(
    ("output", "process"), [*zip(OUTPUTS, itertools.cycle(SAID.values()))]
)


class Guess:
    """A batch under a wrong network in the notation of papers: x, eps, their predictions, alpha and
    sigma (B, 1, 1)."""

    def __init__(self, output, schedule, process=VP, t=T, steps=None):
        generator = torch.Generator().manual_seed(0)
        self.x, self.eps = (
            torch.randn(len(t), 2, 3, generator=generator).double() for _ in range(2)
        )
        self.t, self.schedule, self.process, self.steps = t, schedule, process, steps
        mu_tilde = output == "mu_tilde"
        self.output = MuTildeOutput(schedule, process, STEPS) if mu_tilde else Output(output)
        self.denoiser = Denoiser(Wrong(), self.output, process)
        self.gamma = schedule.gamma(t if steps is None else torch.ceil(t * steps) / steps)
        self.alpha, self.sigma = (a.view(-1, 1, 1) for a in process.alpha_sigma(self.gamma))
        self.snr = ((self.alpha / self.sigma) ** 2).flatten()
        self.z = self.alpha * self.x + self.sigma * self.eps
        found = self.denoiser(self.z, self.gamma)
        self.x_hat = found.x0
        self.eps_hat = (self.z - self.alpha * self.x_hat) / self.sigma

    def term(self, loss):
        objective = Objective(self.output, loss, self.steps)
        return objective(self.denoiser, self.schedule, self.x, self.t, self.eps)

    def ours(self, loss):
        return self.term(loss).nats

    def square(self, value):
        """Return |value(x, eps) - value(x_hat, eps_hat)|^2, (B,)."""
        return (value(self.x, self.eps) - value(self.x_hat, self.eps_hat)).square().sum((1, 2))


PAPERS = {  # our loss, and the published one at uniform times
    "x0": (Squared("x0"), lambda g: g.square(lambda x, eps: x)),
    # Ho et al. 2020, eq. 14
    "epsilon": (Squared("epsilon"), lambda g: g.square(lambda x, eps: eps)),
    "score": (Squared("score"), lambda g: g.square(lambda x, eps: -eps / g.sigma)),
    "v": (Squared("v"), lambda g: g.square(lambda x, eps: g.alpha * eps - g.sigma * x)),
    "velocity": (Squared("velocity"), lambda g: g.square(lambda x, eps: eps - x)),
    "min_snr": (MinSNR(5.0), lambda g: g.snr.clamp(max=5) * g.square(lambda x, eps: x)),
    # Choi et al. 2022
    "p2": (P2(2.0, 0.5), lambda g: (2 + g.snr) ** -0.5 * g.square(lambda x, eps: eps)),
    "truncated_snr": (TruncatedSNR(), lambda g: g.snr.clamp(min=1) * g.square(lambda x, eps: x)),
    "ncsn": (
        NCSN(),
        lambda g: 0.5 * (g.sigma.flatten()) ** 2 * g.square(lambda x, eps: -eps / g.sigma),
    ),
}


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("steps", [None, STEPS])
@every_pair
def test_loss_matches_paper_for_every_output(name, output, process, steps):
    guess = Guess(output, Cosine(-6.0, 5.0), process, steps=steps)
    loss, published = PAPERS[name]
    close(guess.ours(loss), published(guess))


@every_schedule
@every_output
def test_elbo_and_sigmoid_weights_match_papers_for_every_output(kind, output):
    """VDM eq. 17, -1/2 SNR'(t) |x - x_hat|^2, and the sigmoid weight of Kingma & Gao (2023)."""
    guess = Guess(output, kind(-6.0, 5.0))
    # SNR' = -SNR gamma'
    term = 0.5 * guess.snr * guess.schedule.dgamma(T) * guess.square(lambda x, eps: x)
    close(guess.ours(Elbo()), term)
    for bias in (2.0, -1.5):
        weight = 1 / (1 + torch.exp(guess.snr.log() - bias))  # sigmoid(b - log SNR)
        close(guess.ours(Sigmoid(bias)), weight * term)


@pytest.mark.parametrize("output", SPACES)
@every_process
def test_simple_loss_is_squared_error_of_network_output(output, process):
    guess = Guess(output, Cosine(-6.0, 5.0), process)
    c, d = row(output, guess.alpha, guess.sigma)
    off = Wrong()(guess.z, guess.gamma, None) - (c * guess.x + d * guess.eps)
    loss, over = guess.term(Simple()), LogNormal(-1.0, 1.5)
    close(loss.nats, off.square().sum((1, 2)))
    close(loss.gamma, guess.gamma)
    close(loss.squared_error, guess.square(lambda x, eps: eps))
    if output != "edm":  # edm is a space of outputs, not of losses
        close(guess.ours(Simple(over)), guess.ours(Squared(output, over)))
    assert not torch.allclose(guess.ours(Simple(over)), loss.nats)


@every_pair
def test_mu_tilde_is_the_error_of_the_posterior_mean(output, process):
    """Ho et al. 2020, eq. 8 without 1 / 2 sigma^2, for every process: means of q(z_s | z_t, x)."""
    guess = Guess(output, Cosine(-6.0, 5.0), process, steps=STEPS)
    lower = guess.schedule.gamma(torch.ceil(T * STEPS) / STEPS - 1 / STEPS)
    mean = lambda x, eps: process.posterior(guess.z, x, guess.gamma, lower).mean  # noqa: E731
    close(guess.ours(MuTilde()), guess.square(mean))
    if output == "mu_tilde":  # the plain error of the network's own output
        off = Wrong()(guess.z, guess.gamma, None) - mean(guess.x, None)
        close(guess.ours(Simple()), off.square().sum((1, 2)))


def test_mu_tilde_output_matches_ddpm_posterior_mean():
    """Ho et al. 2020, eq. 7, written with the paper's beta_t and alphabar_t."""
    schedule = Cosine(-6.0, 5.0)
    bars = torch.sigmoid(-schedule.gamma(torch.arange(STEPS + 1).double() / STEPS))
    x, eps = torch.randn(2, STEPS, 4, dtype=torch.float64)
    bar, before = bars[1:, None], bars[:-1, None]
    beta = 1 - bar / before
    z = bar.sqrt() * x + (1 - bar).sqrt() * eps
    mean = before.sqrt() * beta / (1 - bar) * x + (1 - beta).sqrt() * (1 - before) / (1 - bar) * z
    guess = MuTildeOutput(schedule, VP, STEPS)(mean, z, bar.sqrt(), (1 - bar).sqrt())
    torch.testing.assert_close(guess.x0, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guess.epsilon, eps, rtol=1e-6, atol=1e-6)


@every_schedule
@pytest.mark.parametrize("output", ["x0", "score"])
@every_process
def test_path_velocity_is_time_derivative_of_path(kind, output, process):
    """SiT (Ma et al. 2024): |alpha' x + sigma' eps - (alpha' x_hat + sigma' eps_hat)|^2 by
    autograd."""
    guess = Guess(output, kind(-6.0, 5.0), process)
    time = T.clone().requires_grad_()
    alpha, sigma = (  # 0 t, so that a constant has a derivative too
        torch.autograd.grad((part + 0 * time).sum(), time, retain_graph=True)[0]
        for part in process.alpha_sigma(guess.schedule.gamma(time))
    )
    velocity = lambda x, eps: alpha.view(-1, 1, 1) * x + sigma.view(-1, 1, 1) * eps  # noqa: E731
    close(guess.ours(PathVelocity()), guess.square(velocity))


def test_path_velocity_matches_sit_weighted_score():
    """The code of Ma et al. 2024 on its VP path: (beta / 2 sigma)^2 |sigma s_hat + eps|^2, beta
    from .1 to 20."""
    schedule = BetaLinear(-6.0, 5.0)
    guess = Guess("score", schedule)
    start, stop = schedule._inverse(torch.tensor([-6.0, 5.0]).double())
    beta = 0.1 + 19.9 * (start + (stop - start) * T)
    score = -guess.eps_hat / guess.sigma
    weighted = (beta.view(-1, 1, 1) / 2 / guess.sigma) * (guess.sigma * score + guess.eps)
    # Their loss in a time that is [0, 1] between the ends.
    theirs = weighted.square().sum((1, 2)) * (stop - start) ** 2
    close(guess.ours(PathVelocity()), theirs)
    straight = Guess("score", Straight(-6.0, 5.0), Rectified())
    ratio = straight.ours(PathVelocity()) / straight.ours(Squared("velocity"))
    torch.testing.assert_close(ratio, ratio[:1].expand(24), rtol=1e-6, atol=0)


def test_mu_tilde_requires_objective_steps():
    refused(lambda: MuTildeOutput(Linear(-6.0, 5.0), VP), "objective.steps=T")
    # There a step's mean differs from z only in the last digits of float32.
    more = "objective.steps=10001", "10000"
    refused(lambda: MuTildeOutput(Linear(-6.0, 5.0), VP, 10_001), *more)
    refused(lambda: Objective("epsilon", MuTilde()), "objective.loss=MuTilde", "objective.steps=T")


@every_pair
@pytest.mark.parametrize("data", [0.5, 1.3])
def test_edm_loss_matches_karras_2022(output, process, data):
    """Karras et al. 2022, eq. 2 with table 1: lambda(sigma) |D - x|^2 at ln sigma ~ N(P_mean,
    P_std^2)."""
    schedule, times = Linear(-22.0, 16.0), LogNormal(-1.2, 1.2)
    t, density = times((torch.arange(40).double() + 0.5) / 40, schedule)
    guess = Guess(output, schedule, process, t)
    sigma = (guess.sigma / guess.alpha).flatten()
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    close(guess.ours(EDM(-1.2, 1.2, data)) / density, weight * guess.square(lambda x, eps: x))


@every_output
def test_velocity_loss_with_logit_normal_matches_jit(output):
    """Li & He 2025: |v error|^2 at logit t ~ N(-.8, .8^2), z = t x + (1 - t) eps, v = x - eps."""
    schedule, process = Straight(-44.0, 44.0), Rectified()
    times = LogitNormal(0.8, 0.8)
    t, density = times((torch.arange(40).double() + 0.5) / 40, schedule)
    guess = Guess(output, schedule, process, t)
    theirs = 1 - t
    torch.testing.assert_close(guess.alpha.flatten(), theirs, rtol=0, atol=1e-8)
    standard = (torch.logit(theirs).sort().values + 0.8) / 0.8
    torch.testing.assert_close(
        standard, torch.special.ndtri((torch.arange(40).double() + 0.5) / 40)
    )
    close(
        guess.ours(Squared("velocity", over=times)) / density, guess.square(lambda x, eps: x - eps)
    )


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("steps", [None, 1000, 20, 8])
@pytest.mark.parametrize("over", [None, LogNormal(), LogitNormal()])
def test_loss_weights_average_to_one(kind, steps, over):
    t = (torch.arange(20_000).double() + 0.5) / 20_000
    for loss in (
        Squared("epsilon", over),
        P2(1.0, 0.0, over),
        *[EDM()] * isinstance(over, LogNormal),
    ):
        at = Objective("epsilon", loss, steps).level(VP, kind(-12.43, 8.76), t)
        square = 1 + torch.exp(at.gamma) / 0.25 if isinstance(loss, EDM) else torch.ones(())
        assert (0.5 * loss.weight(at) * at.dgamma / square).mean().item() == pytest.approx(
            1, abs=2e-3
        )


@pytest.mark.parametrize("steps", [1, 2, 8, 100])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.8)])
def test_logit_normal_weight_of_step_is_its_probability(steps, mean, std):
    """Esser et al. 2024: T times a step's probability under Phi((logit t - mean) / std), for the
    last step too."""
    t = (torch.arange(steps).double() + 0.5) / steps
    loss = Squared("epsilon", LogitNormal(mean, std))
    at = Objective("epsilon", loss, steps).level(VP, Cosine(-12.0, 8.0), t)
    edges = torch.logit(torch.arange(steps + 1).double() / steps)
    shares = torch.special.ndtr((edges - mean) / std).diff()
    torch.testing.assert_close(
        0.5 * loss.weight(at) * at.dgamma, steps * shares, rtol=2e-3, atol=2e-3
    )


def test_edm_monotonic_at_t_steps_uses_largest_weight():
    """If all 16 levels in the step are beyond the peak, w is 2 q (e^peak + sd^2) / sd^2 times the
    step's width."""
    at = Objective("x0", EDM(), 8).level(VP, Linear(-12.0, 12.0), torch.tensor([0.99]).double())
    plain = EDM(monotonic=True)
    peak = torch.tensor([plain.peak]).double()
    largest = EDM().weight(Level(VP, peak, torch.ones(1), torch.ones(1), "x0"))
    close(plain.weight(at) * at.dgamma, largest * 24)


def test_path_velocity_at_t_steps_uses_finite_difference():
    """(sigma gamma' / 2)^2 |eps - eps_hat|^2 with T (gamma_t - gamma_s) in place of gamma'(t)."""
    guess = Guess("x0", Cosine(-6.0, 5.0), Rectified(), steps=STEPS)
    slope = STEPS * (guess.gamma - guess.schedule.gamma(torch.ceil(T * STEPS) / STEPS - 1 / STEPS))
    scale = guess.sigma * slope.view(-1, 1, 1) / 2
    close(guess.ours(PathVelocity()), guess.square(lambda x, eps: scale * eps))


GAMMA = torch.linspace(-9.5, 7.5, 100, dtype=torch.float64)


def test_effective_weight_matches_kingma_gao_2023_table_1():
    """Kingma & Gao 2023, table 1: with cosine times, epsilon-MSE has the weight sech(l / 2) and
    v-MSE e^{-l / 2}."""
    cosine, linear = Cosine(-10.0, 8.0), Linear(-10.0, 8.0)
    start, stop = (2 / math.pi * math.atan(math.exp(g / 2)) for g in (-10.0, 8.0))
    speed = math.pi * (stop - start)
    log_snr, snr = -GAMMA, torch.exp(-GAMMA)

    def effective(space, loss, schedule):
        return Objective(space, loss).effective_weight(VP, schedule, GAMMA)

    torch.testing.assert_close(
        effective("epsilon", Simple(), cosine), 1 / (torch.cosh(log_snr / 2) * speed)
    )
    torch.testing.assert_close(
        effective("v", Simple(), cosine), 2 * torch.exp(-log_snr / 2) / speed
    )
    torch.testing.assert_close(
        effective("epsilon", Simple(), linear), torch.full_like(GAMMA, 2 / 18)
    )
    torch.testing.assert_close(effective("x0", Simple(), linear), torch.exp(GAMMA) * 2 / 18)
    torch.testing.assert_close(
        effective("score", Simple(), linear), (1 + 1 / torch.exp(GAMMA)) * 2 / 18
    )
    torch.testing.assert_close(
        effective("x0", MinSNR(5.0), linear), torch.clamp(5 / snr, max=1) * 2 / 18
    )
    normal = torch.exp(-0.5 * ((log_snr - 2.4) / 2.4) ** 2) / (2.4 * math.sqrt(2 * math.pi))
    edm = normal * (torch.exp(-log_snr) + 0.25) * 8  # up to the paper's factor 2 / sigma_data^2
    for kind in SCHEDULES.values():  # these weights do not depend on the schedule
        schedule = kind(-10.0, 8.0)
        assert (effective("v", Elbo(), schedule) == 1).all()
        sigmoid = torch.sigmoid(1 - log_snr)
        torch.testing.assert_close(
            effective("v", Sigmoid(1.0), schedule), sigmoid, rtol=1e-6, atol=0
        )
        torch.testing.assert_close(effective("v", EDM(), schedule), edm, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("mean", "std", "data"), [(-1.2, 1.2, 0.5), (0.0, 0.4, 1.0), (-3.0, 2.5, 0.1)]
)
def test_edm_monotonic_weight_is_constant_below_peak_log_snr(mean, std, data):
    """Kingma & Gao 2023: EDM's w, held at its maximum towards lower log SNR."""
    gamma = torch.linspace(-25.0, 40.0, 200_001).double()
    at = Level(VP, gamma, torch.ones_like(gamma), torch.ones_like(gamma), "x0")
    plain, held = EDM(mean, std, data).weight(at), EDM(mean, std, data, monotonic=True).weight(at)
    peak = plain.argmax()
    torch.testing.assert_close(held[:peak], plain[:peak], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        held[peak:], plain[peak].expand(len(gamma) - peak), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("loss", [Sigmoid(2.0), EDM(monotonic=True), Squared("v")])
@pytest.mark.parametrize("std", [0.3, 2.0])
def test_monotone_weight_gives_elbo_of_noisy_data(loss, std):
    """Kingma & Gao 2023, theorem 1, in closed form for x ~ N(0, std^2) and its exact denoiser.

    The loss is 1/2 int w mse dgamma. The negative ELBO of noisy data z_a with this denoiser is
    their entropy H(z_a) = 1/2 ln 2 pi e (alpha^2 std^2 + sigma^2), and H(z_a | x) is 1/2 ln 2 pi e
    sigma^2. So loss = w(a_0) L(a_0) + int w'(a) L(a) da with L(a) = H(z_a) - H(z_a | x) and w' >=
    0: an expected ELBO of data with Gaussian noise, up to constants. L(gamma_max) is 0 if the ends
    are wide.
    """
    schedule, gamma = Cosine(-24.0, 24.0), torch.linspace(-24.0, 24.0, 200_001).double()
    t = schedule.t_of(gamma)
    alpha, sigma = VP.alpha_sigma(gamma)
    variance = (alpha * std) ** 2 + sigma**2
    mse = (alpha * std) ** 2 / variance  # E|eps - E[eps | z]|^2 = Var(eps | z)
    weight = loss.weight(Level(VP, gamma, schedule.dgamma(t), t, "epsilon"))
    noisy = 0.5 * torch.log(variance / sigma**2)
    slope = weight.diff() / gamma.diff()
    assert (slope >= -1e-12 * weight.max()).all(), "never falls with the noise"
    between = (noisy[1:] + noisy[:-1]) / 2
    expected = weight[0] * noisy[0] + (slope * between * gamma.diff()).sum()
    assert 0.5 * torch.trapezoid(weight * mse, gamma).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


@pytest.mark.parametrize("loss", [EDM(), MinSNR(), Squared("epsilon")])
def test_edm_min_snr_and_epsilon_weights_are_not_monotone(loss):
    """Kingma & Gao 2023: the weights of EDM, Min-SNR and epsilon (cosine) decrease with the noise
    somewhere."""
    schedule, gamma = Cosine(-24.0, 24.0), torch.linspace(-15.0, 15.0, 1001).double()
    t = schedule.t_of(gamma)
    weight = loss.weight(Level(VP, gamma, schedule.dgamma(t), t, "epsilon"))
    assert (weight.diff() < -1e-3 * weight.max() / 1000).any()


WEIGHTINGS = [Elbo(), Simple(), MinSNR(), Sigmoid()]


@pytest.mark.parametrize("steps", [None, STEPS])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@every_schedule
def test_effective_weight_is_the_loss_relative_to_the_bound(weighting, kind, steps):
    guess = Guess("x0", kind(-6.0, 5.0), steps=steps)
    bound = Bound(guess.schedule, None, steps).diffusion(guess.denoiser, guess.x, T, guess.eps).nats
    weight = Objective("x0", weighting, steps).effective_weight(VP, guess.schedule, guess.gamma)
    torch.testing.assert_close(guess.ours(weighting) / bound, weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_loss_weights_are_detached(weighting):
    guess, network = Guess("v", Linear(-6.0, 5.0)), Scaled()
    guess.denoiser = Denoiser(network, guess.output, VP)
    loss = guess.term(weighting)
    assert not loss.gamma.requires_grad
    weight = Objective("v", weighting).effective_weight(VP, guess.schedule, guess.gamma)
    fixed = 0.5 * weight * guess.schedule.dgamma(T) * loss.squared_error
    slopes = [
        torch.autograd.grad(a.sum(), network.gain, retain_graph=True) for a in (loss.nats, fixed)
    ]
    torch.testing.assert_close(*slopes)


def test_edm2_loss_matches_karras_2024():
    """Karras et al. 2024, eqs. 14, 21: E_sigma[lambda(sigma) / e^u |x0 error|^2 + u]."""
    loss, sigma_data, dims = EDM2(-0.8, 1.6), 0.5, 7
    process, schedule = Preconditioned(sigma_data), Linear(-12.0, 8.0)
    gamma = torch.linspace(-8.0, 6.0, 9).double()
    at = Level(process, gamma, schedule.dgamma(schedule.t_of(gamma)), schedule.t_of(gamma), "x0")
    sigma = torch.exp(gamma / 2)
    x0_error = torch.rand(9, generator=torch.Generator().manual_seed(1)).double()
    waves = math.sqrt(2) * torch.cos(
        torch.outer(sigma.log() / 4, loss.frequency.double()) + loss.phase
    )
    u = waves @ (loss.row / loss.row.norm()).double()
    lam = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    density = torch.exp(-0.5 * ((sigma.log() + 0.8) / 1.6) ** 2) / (1.6 * math.sqrt(2 * math.pi))
    per_t = density * at.dgamma / 2  # d ln sigma / dt
    expected = per_t * (lam / torch.exp(u) * x0_error + dims * u)
    made = loss.nats(at, x0_error / sigma**2, dims)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss.nats(at, x0_error / sigma**2, dims), made), "in half precision, too"
    plain = EDM(-0.8, 1.6).weight(at) / torch.exp(u)
    torch.testing.assert_close(loss.weight(at), plain, rtol=1e-4, atol=0)


def test_edm2_uncertainty_converges_to_error_per_level():
    """At the optimum of error / e^u + u per dimension, e^u is the error, so every level counts
    alike."""
    loss = EDM2().train()
    gamma = torch.tensor([-6.0, -1.0, 4.0])
    at = Level(Preconditioned(), gamma, torch.ones(3), torch.ones(3), "x0")
    per_dim = torch.tensor([2.0, 0.7, 0.1])  # errors of F, EDM's network
    squared = 4 * per_dim / (1 + torch.exp(gamma) / 0.25)  # errors of epsilon, in 4 dimensions
    optimizer = torch.optim.Adam(loss.parameters(), 0.03)
    for _ in range(400):
        optimizer.zero_grad()
        loss.nats(at, squared, 4).sum().backward()
        optimizer.step()
    assert loss.row.norm().item() == pytest.approx(math.sqrt(128), rel=0.01), "of magnitude 1"
    torch.testing.assert_close(torch.exp(loss.uncertainty(gamma)), per_dim, rtol=0.03, atol=0)
