"""Every sampler on one denoiser: against peers, its order of convergence and the truth."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch

from triptych.diffusion.betas import Betas
from triptych.diffusion.condition import Condition
from triptych.diffusion.guidance import ClassifierFree
from triptych.diffusion.measures import mode_fractions, sliced_wasserstein
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.sampler import (
    DDIM,
    EDM,
    Ancestral,
    AnnealedLangevin,
    Chosen,
    DPMSolver,
    Euler,
    Heun,
    Langevin,
    PredictorCorrector,
    Step,
)
from triptych.diffusion.schedule import Cosine, Linear
from triptych.diffusion.wrappers import DynamicThreshold, StaticThreshold

from .oracles import (
    SCHEDULES,
    Wrong,
    correlated,
    every_schedule,
    generator,
    lopsided,
    network,
    noise_floor,
    normal,
    oracle,
    ring,
    ring_mixture,
)
from .test_processes import PROCESSES

EVERY = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "ddim_eta": lambda steps, **k: DDIM(steps, eta=0.5, **k),
    "euler": Euler,
    "heun": Heun,
    "edm": lambda steps, **k: EDM(steps, churn=5.0, low=0.1, high=20.0, **k),
    "dpm_solver": DPMSolver,
    "annealed_langevin": lambda steps, **k: AnnealedLangevin(steps, inner=3, **k),
    "langevin": lambda steps, **k: Langevin(steps, inner=3, **k),
    "predictor_corrector": PredictorCorrector,
}
every = pytest.mark.parametrize("name", EVERY)
vp_ve = pytest.mark.parametrize("process", [PROCESSES["vp"], PROCESSES["ve"]], ids=["vp", "ve"])
processes = pytest.mark.parametrize("process", PROCESSES)


# against peers ------------------------------------------------------------------------------------


def peer_path(scheduler, denoiser, gammas, z):
    """Return the path of a diffusers scheduler with our epsilon on our grid. Its table rises from
    gamma(0) at i = 0."""
    rising = gammas.flip(0)
    found = []
    for t in scheduler.timesteps:
        z = scheduler.step(denoiser(z, rising[t]).epsilon, t, z).prev_sample
        found.append(z)
    return torch.stack(found)


def peer_table(gammas):
    """Return arguments for a diffusers scheduler with our alpha^2 as cumulative products of 1 -
    beta."""
    square = torch.sigmoid(-gammas.flip(0))
    betas = torch.cat([1 - square[:1], 1 - square[1:] / square[:-1]])
    return {"num_train_timesteps": len(gammas), "trained_betas": betas.numpy()}


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("kind", ["oracle", "network"])
def test_ddim_and_dpm_solver_follow_the_trajectories_of_diffusers(steps, kind):
    import diffusers

    denoiser = oracle(ring()) if kind == "oracle" else network(Wrong(), "v")
    gammas = DDIM(steps, grid="time").gammas(Cosine(-6.0, 4.0), dtype=torch.float64)
    table, z = peer_table(gammas), normal(64, 2)
    timesteps = list(range(steps, 0, -1))

    ddim = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **table)
    ddim.set_timesteps(steps)
    ddim.timesteps = torch.tensor(timesteps)
    ours = torch.stack(list(DDIM(steps).path(denoiser, gammas, z)))
    torch.testing.assert_close(ours, peer_path(ddim, denoiser, gammas, z), rtol=0, atol=1e-4)

    solver = diffusers.DPMSolverMultistepScheduler(
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        euler_at_final=True,
        final_sigmas_type="sigma_min",
        **table,
    )
    solver.set_timesteps(timesteps=timesteps)
    ours = torch.stack(list(DPMSolver(steps).path(denoiser, gammas, z)))
    torch.testing.assert_close(ours, peer_path(solver, denoiser, gammas, z), rtol=0, atol=1e-4)


CHURNS = {  # S_churn, S_noise, S_tmin, S_tmax
    "heun": (0.0, 1.0, 0.0, np.inf),
    "churn": (6.0, 1.003, 0.1, 3.0),
    "most": (100.0, 1.0, 0.0, np.inf),  # limited to sqrt 2 - 1 per step
}


@pytest.mark.parametrize("churn", CHURNS)
def test_heun_and_edm_match_karras_2022_algorithms_1_and_2(churn):
    """Karras et al. 2022 in the paper's variables, with the ring's denoiser written from its
    formula."""
    _, means, covariances = (part.numpy() for part in ring())
    variance, steps = covariances[0, 0, 0], 30
    s_churn, s_noise, s_min, s_max = CHURNS[churn]

    def denoised(y, s):
        gap = y[:, None] - means
        logits = -0.5 * (gap**2).sum(-1) / (variance + s**2)
        weight = np.exp(logits - logits.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        return (weight[..., None] * (means + variance / (variance + s**2) * gap)).sum(1)

    rho, top, bottom = 7.0, math.exp(2.0), math.exp(-3.0)
    ladder = (
        top ** (1 / rho) + np.arange(steps + 1) / steps * (bottom ** (1 / rho) - top ** (1 / rho))
    ) ** rho
    y = normal(64, 2).numpy() * ladder[0]
    theirs, noise = [], generator(7)
    for s, then in itertools.pairwise(ladder):
        raised = min(s_churn / steps, np.sqrt(2) - 1) if s_min <= s <= s_max else 0.0
        fresh = torch.randn(64, 2, generator=noise, dtype=torch.float64).numpy()
        if raised:
            y = y + np.sqrt((s + raised * s) ** 2 - s**2) * s_noise * fresh
            s = s + raised * s
        slope = (y - denoised(y, s)) / s
        ahead = y + (then - s) * slope
        y = y + (then - s) * 0.5 * (slope + (ahead - denoised(ahead, then)) / then)
        theirs.append(y)

    for process in PROCESSES.values():
        sampler = Heun(steps, grid="karras", rho=rho)
        if churn != "heun":
            limits = {"low": s_min, "high": None if s_max == np.inf else s_max}
            sampler = EDM(steps, rho=rho, churn=s_churn, noise=s_noise, **limits)
        gammas = sampler.gammas(Linear(-6.0, 4.0), dtype=torch.float64)
        np.testing.assert_allclose(torch.exp(gammas / 2).numpy(), ladder, rtol=1e-12)
        start = normal(64, 2) * process.alpha_sigma(gammas[0])[1]
        ours = list(sampler.path(oracle(ring(), process), gammas, start, generator=generator(7)))
        scaled = [
            z / process.alpha_sigma(gamma)[0] for z, gamma in zip(ours, gammas[1:], strict=True)
        ]
        np.testing.assert_allclose(torch.stack(scaled).numpy(), np.stack(theirs), atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_edm_without_churn_is_heun_to_the_last_digit(process):
    truth, z = oracle(lopsided(), process), normal(32, 2)
    for options in ({"churn": 0.0}, {"churn": 5.0, "low": 1e3}):
        heun, edm = Heun(12, grid="karras"), EDM(12, **options)
        gammas = heun.gammas(Linear(-6.0, 4.0), dtype=torch.float64)
        assert torch.equal(gammas, edm.gammas(Linear(-6.0, 4.0), dtype=torch.float64))
        pairs = zip(heun.path(truth, gammas, z), edm.path(truth, gammas, z), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


# order and quality, with the exact denoiser
# -------------------------------------------------------------


@functools.cache
def end(make, steps):
    sampler = make(steps)
    gammas = sampler.gammas(Linear(-6.0, 5.0), dtype=torch.float64)
    *_, last = sampler.path(oracle(ring()), gammas, normal(128, 2))
    return last


@pytest.mark.parametrize(("make", "order"), [(Euler, 1), (Heun, 2), (DPMSolver, 2)])
def test_sampler_converges_at_its_order(make, order):
    exact, ends = end(Heun, 800), (end(make, steps) for steps in (40, 80, 160))
    errors = [(last - exact).norm(dim=1).square().mean().sqrt().item() for last in ends]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.3)


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_dpm_solver_reaches_noise_floor_at_20_evaluations(process):
    n, truth = 4000, oracle(ring(), PROCESSES[process])
    floor = noise_floor(
        sliced_wasserstein, lambda i: truth.mixture.sample(n, generator(100 + i))[0], pairs=9
    )
    reference, _ = truth.mixture.sample(n, generator(99))
    found = {}
    for sampler in (DPMSolver(20), Ancestral(20), Heun(10), Euler(20)):
        assert sampler.evaluations == 20
        x = sampler(truth, Linear(-7.0, 4.0), (n, 2), generator=generator(0))
        found[type(sampler).__name__] = sliced_wasserstein(x, reference)
    assert min(found.values()) < 2 * floor[4], (found, floor)
    assert found["DPMSolver"] < 2 * floor[-1], (found, floor)


@every
@pytest.mark.parametrize("process", ["ve", "rectified"])
def test_each_sampler_reaches_a_gaussian_under_each_process(name, process):
    """Mean and spread of one Gaussian, which Langevin dynamics samples well too."""
    if name == "langevin":
        sampler = Langevin(40, inner=10, size=0.02)
    elif name == "annealed_langevin":
        sampler = AnnealedLangevin(60, inner=10, rate=0.5)
    else:
        sampler = EVERY[name](60)
    truth = oracle(([1.0], [[0.4, -0.3]], [[[0.09, 0.0], [0.0, 0.09]]]), PROCESSES[process])
    x = sampler(truth, Linear(-8.0, 6.0), (2000, 2), generator=generator())
    # Langevin without a Metropolis step widens by size / (8 variance), first-order solvers by their
    # step.
    assert (x.mean(0) - torch.tensor([0.4, -0.3])).abs().max() < 0.04
    assert (x.std(0) / 0.3 - 1).abs().max() < 0.08


def root(matrix, power=0.5):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ (values**power).diag() @ vectors.T


def affine_map(sampler, schedule, parts, process):
    """Return (A, b) with sample = A w + b for the initial white noise w. This is exact, because the
    oracle is affine."""
    d = parts[1].shape[1]
    sample = sampler(oracle(parts, process), schedule, (8 * d, d), generator=generator()).double()
    white = torch.randn(8 * d, d, generator=generator()).double()
    solution = torch.linalg.lstsq(
        torch.cat([white, torch.ones(8 * d, 1).double()], 1), sample
    ).solution
    return solution[:d].T, solution[d]


def exact_map(schedule, parts, process):
    """Return the probability flow of a Gaussian: (z_s - alpha_s m) = S_s^{1/2} S_t^{-1/2} (z_t -
    alpha_t m)."""
    ends = torch.tensor([schedule.gamma_min, schedule.gamma_max]).double()
    (alpha_0, alpha_1), (sigma_0, sigma_1) = process.alpha_sigma(ends)
    mean, cov, eye = parts[1][0], parts[2][0], torch.eye(2).double()
    clean, noisy = alpha_0**2 * cov + sigma_0**2 * eye, alpha_1**2 * cov + sigma_1**2 * eye
    flow = root(clean) @ root(noisy, -0.5) / alpha_0
    return flow * process.prior_std(ends[1]), mean - alpha_1 * flow @ mean


@vp_ve
@pytest.mark.parametrize(
    ("grid", "name"), [("gamma", "linear"), ("time", "cosine"), ("time", "sigmoid")]
)
def test_ddim_converges_to_the_exact_flow_at_first_order(process, grid, name):
    """Half the step gives half the error (float32's rounding is far below it)."""
    parts, schedule = correlated(2), SCHEDULES[name](-4.0, 4.0)
    exact_A, exact_b = exact_map(schedule, parts, process)
    errors = []
    for steps in (100, 200, 400):
        A, b = affine_map(DDIM(steps, grid), schedule, parts, process)
        errors.append(math.hypot((A - exact_A).norm().item(), (b - exact_b).norm().item()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("sampler", [Ancestral(300), DDIM(300, eta=0.5)])
def test_samples_of_ring_match_entropy_and_mode_weights(sampler):
    """All modes are equally frequent, and the mean of -log p of the samples is the entropy."""
    mixture, n = ring_mixture(), 2000
    x = sampler(oracle(ring()), Linear(-10.0, 8.0), (n, 2), generator=generator(5)).double()
    entropy = mixture.entropy()
    nats = -mixture.log_prob(x)
    assert abs(nats.mean().item() - entropy.mean) < 5 * nats.std().item() / math.sqrt(n) + 0.05
    counts = torch.cdist(x, mixture.means).argmin(1).bincount(minlength=8)
    assert (counts - n / 8).abs().max() < 5 * math.sqrt(n / 8 * 7 / 8)


# Langevin and the weights of modes ----------------------------------------------------------------


def test_annealed_langevin_keeps_mode_weights_and_langevin_does_not():
    """Song & Ermon 2019, sec. 3.2.2: 1/5 N((-5, -5), I) + 4/5 N((5, 5), I) with its exact score."""
    means, eye = torch.tensor([[-5.0, -5.0], [5.0, 5.0]]), torch.eye(2).repeat(2, 1, 1)
    truth = oracle(([0.2, 0.8], means, eye), PROCESSES["ve"])
    mixture = truth.mixture
    schedule = Linear(-2.0, 6.0)
    # A larger rate samples a wider density, and fewer updates lag behind the falling noise. Both
    # move the share towards 1/2.
    annealed = AnnealedLangevin(40, inner=20, rate=0.2)
    plain = Langevin(20, inner=20, size=0.2)
    kept = annealed(truth, schedule, (6000, 2), generator=generator())
    # The tolerance is four standard errors.
    assert mode_fractions(kept, mixture)[0].item() == pytest.approx(0.2, abs=0.02)
    lost = plain(truth, schedule, (4000, 2), generator=generator())
    assert mode_fractions(lost, mixture)[0].item() == pytest.approx(0.5, abs=0.03)


# one step and one loop ----------------------------------------------------------------------------


@processes
def test_ancestral_step_samples_posterior_at_predicted_x0(process):
    denoiser, z = network(Wrong(), "v", PROCESSES[process]), normal(4, 2)
    gamma_t, gamma_s = torch.tensor([2.0, 0.5]).double()
    mean, std = denoiser.process.posterior(z, denoiser(z, gamma_t).x0, gamma_t, gamma_s)
    noise = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    ours = Ancestral(1).step(z, Step(denoiser, gamma_t, gamma_s, generator=generator()))
    torch.testing.assert_close(ours, mean + std * noise)


@vp_ve
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_ddim_keeps_marginal_for_any_eta(process, eta):
    """If the prediction is the truth, z_s ~ N(alpha_s x, sigma_s^2): kept^2 + fresh^2 = sigma_s^2
    (lemma 1)."""
    x, eps = torch.full((200_000, 1), 0.4).double(), normal(200_000, 1)
    gamma_t, gamma_s = torch.tensor([0.5, -1.0]).double()

    class Truth(torch.nn.Module):
        def forward(self, z, gamma, condition):
            return x

    z = process.diffuse(x, gamma_t, eps)
    at = Step(network(Truth(), "x0", process), gamma_t, gamma_s, generator=generator(1))
    z_s = DDIM(1, eta=eta).step(z, at)
    alpha, sigma = process.alpha_sigma(gamma_s)
    white = (z_s - alpha * x) / sigma
    n = len(x)
    assert abs(white.mean().item()) < 5 / math.sqrt(n)
    assert abs(white.var().item() - 1) < 5 * math.sqrt(2 / n)
    # The share of eps_hat in it is sqrt(1 - eta^2 (1 - SNR_t / SNR_s)).
    kept = math.sqrt(1 - eta**2 * (1 - math.exp(-1.5)))
    assert (white * eps).mean().item() == pytest.approx(kept, abs=5 / math.sqrt(n))


@vp_ve
def test_ddim_with_eta_one_equals_ancestral(process):
    denoiser = network(Wrong(), "epsilon", process)
    z = normal(64, 3)
    for levels in torch.tensor([[8.0, 7.0], [1.0, -3.0], [0.01, 0.0], [-9.9, -10.0]]).double():
        one, other = (
            sampler.step(z, Step(denoiser, *levels, generator=generator(1)))
            for sampler in (DDIM(5, eta=1.0), Ancestral(5))
        )
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_euler_is_ddim_without_noise():
    truth, schedule = oracle(lopsided()), Linear(-6.0, 5.0)
    ours = [s(truth, schedule, (8, 2), generator=generator()) for s in (Euler(9), DDIM(9))]
    assert torch.equal(*ours)


def test_dpm_solver_keeps_its_history_in_step_only():
    truth, sampler = oracle(lopsided()), DPMSolver(4)
    z, gammas = normal(4, 2), sampler.gammas(Linear(-4.0, 4.0), dtype=torch.float64)
    before = dict(sampler.__dict__)
    at, by_hand = Step(truth, gammas[0], gammas[1]), [z]
    for i in range(4):
        at.gamma_t, at.gamma_s, at.last = gammas[i], gammas[i + 1], i == 3
        by_hand.append(sampler.step(by_hand[-1], at))
    for one, other in zip(sampler.path(truth, gammas, z), by_hand[1:], strict=True):
        assert torch.equal(one, other)
    assert sampler.__dict__ == before
    # A step on its own is a first step, which is DDIM's.
    alone = [one.step(z, Step(truth, gammas[1], gammas[2])) for one in (sampler, DDIM(4))]
    assert torch.equal(*alone)


@every
def test_sampler_depends_on_generator_only_and_path_is_not_overwritten(name):
    truth, schedule, sampler = oracle(lopsided()), Linear(-6.0, 5.0), EVERY[name](4)
    one = sampler(truth, schedule, (6, 2), generator=generator(3))
    torch.manual_seed(123)
    assert torch.equal(one, sampler(truth, schedule, (6, 2), generator=generator(3)))
    assert not torch.equal(one, sampler(truth, schedule, (6, 2), generator=generator(4)))
    copies = [
        (z, z.clone()) for z in sampler.path(truth, sampler.gammas(schedule), torch.ones(6, 2))
    ]
    assert len(copies) == 4
    assert all(torch.equal(z, copy) for z, copy in copies)


class Counting(VariancePreserving):
    """A process that counts the single gammas whose scales it computes."""

    single = 0

    def alpha_sigma(self, gamma):
        self.single += gamma.ndim == 0
        return super().alpha_sigma(gamma)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "edm"])
def test_steps_and_guided_denoisers_do_not_compute_the_grid_s_scales_anew(name):
    process = Counting()
    guided = ClassifierFree(oracle(ring(), process), 2.0, interval=(-4.0, 4.0))
    condition = Condition(label=torch.arange(6))
    gammas = torch.linspace(5.0, -6.0, 5)
    *_, last = EVERY[name](4).path(DynamicThreshold(guided), gammas, torch.ones(6, 2), condition)
    assert last.isfinite().all() and process.single == 0


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm_solver"])
def test_deterministic_sampler_is_independent_of_chunk(name):
    truth, schedule = oracle(ring()), Linear(-6.0, 5.0)
    labels = Condition(label=torch.arange(7) % 8)
    whole, parts = (
        EVERY[name](5, chunk=c)(truth, schedule, (7, 2), generator=generator(), condition=labels)
        for c in (None, 3)
    )
    torch.testing.assert_close(whole, parts)


@every
def test_sampler_accepts_any_n_and_reports_progress_per_step(name):
    truth, schedule = oracle(ring()), Linear(-6.0, 5.0)
    seen = []

    def bar(steps):
        seen.append(0)
        for i in steps:
            yield i
            seen[-1] += 1  # like tqdm, count when the next item is requested

    for n, chunks in ((0, 1), (1, 1), (5, 3)):
        x = EVERY[name](4, chunk=2)(truth, schedule, (n, 2), generator=generator(), progress=bar)
        assert x.shape == (n, 2)
        assert seen.pop() == 4 * chunks


@pytest.mark.parametrize("schedule", [Linear(-4.0, 4.0), Betas(num_train_timesteps=20)])
def test_evaluations_count_the_calls_of_the_denoiser(schedule):
    class Counting(Wrong):
        calls = 0

        def forward(self, z, gamma, condition):
            self.calls += 1
            return super().forward(z, gamma, condition)

    told = Condition(text_embedding=torch.ones(2, 2))
    for make in (*EVERY.values(), Chosen):
        for steps in (1, 3):
            net, sampler = Counting(), make(steps)
            sampler(
                network(net, "epsilon"), schedule, (2, 2), generator=generator(), condition=told
            )
            assert net.calls == sampler.count_denoiser_calls(schedule)


# grids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grids_decrease_from_gamma_max_to_gamma_min_in_equal_steps(dtype):
    schedule = Cosine(-6.0, 4.0)
    for grid, own in (
        ("gamma", lambda g: g),
        ("time", schedule.t_of),
        ("quadratic", lambda g: schedule.t_of(g).sqrt()),
        ("karras", lambda g: torch.exp(g / 14)),
    ):
        gammas = DDIM(16, grid).gammas(schedule, dtype=dtype)
        assert gammas.dtype == dtype and gammas.shape == (17,) and (gammas.diff() < 0).all()
        assert gammas[[0, -1]].tolist() == pytest.approx([4.0, -6.0], abs=1e-5)
        steps = own(gammas.double()).diff()
        torch.testing.assert_close(steps, steps.mean().expand(16), rtol=1e-4, atol=1e-6)


def test_karras_grid_with_large_rho_tends_to_gamma_grid():
    schedule = Linear(-6.0, 4.0)
    far = DDIM(10, "karras", rho=1e5).gammas(schedule, dtype=torch.float64)
    torch.testing.assert_close(
        far, DDIM(10).gammas(schedule, dtype=torch.float64), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("grid", ["gamma", "time", "karras"])
@every_schedule
def test_grid_with_most_steps_is_strictly_decreasing(kind, grid):
    """Two equal levels would be a step of length 0, for which a second-order sampler computes 0 /
    0."""
    assert (DDIM(100_000, grid).gammas(kind(-13.0, 10.0)).diff() < 0).all()


@every_schedule
def test_quadratic_grid_with_1000_steps_is_strictly_decreasing(kind):
    """With 100,000 its last steps are shorter than float32 resolves."""
    assert (DDIM(1000, "quadratic").gammas(kind(-13.0, 10.0)).diff() < 0).all()


# thresholds and refusals --------------------------------------------------------------------------


def test_static_and_dynamic_threshold_limit_x0():
    wide = network(Wrong(), "x0")
    z = 2 * normal(6, 3, 4)
    z[0] = 0.05 * z[0]
    gamma = torch.zeros(()).double()
    x0 = wide(z, gamma).x0
    assert x0[1:].abs().flatten(1).amax(1).min() > 1
    static = StaticThreshold(wide)(z, gamma)
    torch.testing.assert_close(static.x0, x0.clamp(-1, 1))
    alpha, sigma = wide.process.alpha_sigma(gamma)
    torch.testing.assert_close(alpha * static.x0 + sigma * static.epsilon, z)
    dynamic = DynamicThreshold(wide, quantile=0.9)(z, gamma).x0
    torch.testing.assert_close(dynamic[0], x0[0])  # within [-1, 1] x0 is unchanged
    scale = x0.abs().flatten(1).quantile(0.9, 1).clamp(min=1).view(-1, 1, 1)
    torch.testing.assert_close(dynamic, (x0 / scale).clamp(-1, 1))
