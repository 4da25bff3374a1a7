"""The generic hierarchy against exact densities and, with three restrictions, the diffusion
bound."""

import math
from operator import itemgetter
from runpy import run_path

import pytest
import torch
from torch import distributions

from triptych.config.check import CONFIGS
from triptych.diffusion.bound import Bound
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.draws import BATCH_DRAWS, Draw, plain_noise
from triptych.diffusion.hierarchy import Hierarchy, importance_weighted
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.normal import Normal
from triptych.diffusion.process import VarianceExploding, VariancePreserving
from triptych.diffusion.schedule import Linear

from .oracles import generator, normal, ring_mixture
from .steps import CPU, training_noise

SCRIPT = CONFIGS.parent / "docs" / "decompositions.py"
restricted, take_apart = itemgetter("restricted", "take_apart")(run_path(str(SCRIPT)))
VP = VariancePreserving()
SCHEDULE = Linear(-10, 8)


def test_normal_matches_torch_distribution():
    a, b, c, d, z = normal(5, 4, 3)
    ours, theirs = ((kind(a, b.exp()), kind(c, d.exp())) for kind in (Normal, distributions.Normal))
    assert torch.allclose(ours[0].log_prob(z), theirs[0].log_prob(z).sum(1))
    assert torch.allclose(ours[0].kl(ours[1]), distributions.kl_divergence(*theirs).sum(1))


def chain(d: int, levels: int) -> tuple[Hierarchy, GaussianMixture]:
    """Return z_L ~ N(0, I), z_{l-1} = a_l z_l + b_l noise elementwise, with its exact posterior as
    encoders."""
    a, b = torch.rand(2, levels, d, generator=generator(d), dtype=torch.float64)
    a, b = a + 0.5, b + 0.3
    variance = [torch.ones(d, dtype=torch.float64)]
    for level in reversed(range(levels)):
        variance.append(a[level] ** 2 * variance[-1] + b[level] ** 2)
    variance = variance[::-1]  # variances of z_0 = x ... z_L

    def up(level):
        gain = a[level] * variance[level + 1] / variance[level]
        return lambda z: Normal(
            gain * z, (b[level].square() * variance[level + 1] / variance[level]).sqrt()
        )

    def down(level):
        return lambda z: Normal(a[level] * z, b[level])

    hierarchy = Hierarchy(
        [up(level) for level in range(levels)],
        [down(level) for level in range(1, levels)],
        lambda x, z: -down(0)(z).log_prob(x),
        lambda z: Normal(torch.zeros_like(z), torch.ones_like(z)),
    )
    return hierarchy, GaussianMixture([1.0], torch.zeros(1, d), torch.diag(variance[0])[None])


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("d", [1, 16])
def test_hierarchy_with_exact_posterior_gives_exact_log_weight(d, levels):
    hierarchy, mixture = chain(d, levels)
    x = mixture.sample(2000, generator(1))[0].double()
    exact = -mixture.log_prob(x)
    path = hierarchy.path(x, plain_noise(generator(2)))
    assert torch.allclose(-hierarchy.log_weight(x, path), exact, atol=1e-9 * d)
    # The top level is a KL, so the two are equal on average only.
    gap = hierarchy.bound(x, path).total - exact
    assert gap.mean().abs() < 3 * gap.std() / math.sqrt(len(gap))


def test_importance_weighted_gap_shrinks_with_more_samples():
    hierarchy, mixture = chain(4, 2)
    hierarchy.encoders = [
        lambda z, q=q: Normal(0.7 * q(z).mean, 1.3 * q(z).std) for q in hierarchy.encoders
    ]
    x = mixture.sample(500, generator(1))[0].double()
    exact = -mixture.log_prob(x).mean().item()
    noise = plain_noise(generator(2))
    weights = torch.stack([hierarchy.log_weight(x, hierarchy.path(x, noise)) for _ in range(256)])
    gaps = [
        torch.stack([importance_weighted(part) for part in weights.split(k)]).mean().item() - exact
        for k in (1, 8, 256)
    ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


@pytest.mark.parametrize("process", [VP, VarianceExploding()])
@pytest.mark.parametrize("steps", [4, 16])
def test_restricted_hierarchy_equals_diffusion_bound(steps, process):
    mixture, draws, n = ring_mixture(), generator(steps), 50_000
    oracle = Oracle(mixture, process)
    x = mixture.sample(10_000, draws)[0].double()
    hierarchy = restricted(oracle, SCHEDULE, GaussianDensity(), steps, dtype=torch.float64)
    assert len(hierarchy.encoders) == steps + 1
    ours = hierarchy.bound(x, hierarchy.path(x, plain_noise(draws)))
    x = mixture.sample(n, draws)[0].double()
    t = ((torch.arange(n) + 0.5) / n)[torch.randperm(n, generator=draws)].double()
    noise = torch.randn(2, n, 2, generator=draws, dtype=torch.float64)
    closed = Bound(SCHEDULE, GaussianDensity(), steps)(oracle, x, Draw(t, *noise))
    for a, b in ((ours.total, closed.total), (ours.reconstruction, closed.reconstruction)):
        stderr = math.hypot(a.std().item() / math.sqrt(len(a)), b.std().item() / math.sqrt(n))
        assert (a.mean() - b.mean()).abs() < 3 * stderr


def forms(steps: int, n: int = 20_000):
    oracle = Oracle(ring_mixture(), VP)
    x = oracle.mixture.sample(n, generator(1))[0].double()
    hierarchy = restricted(oracle, SCHEDULE, GaussianDensity(), steps, dtype=torch.float64)
    path = hierarchy.path(x, plain_noise(generator(2)))
    return hierarchy, x, path, take_apart(oracle, SCHEDULE, x, path)


@pytest.mark.parametrize("steps", [4, 16])
def test_consistency_and_matching_decompositions_agree(steps):
    hierarchy, x, path, terms = forms(steps)
    consistency = terms.consistency.sum(0) + terms.consistency_prior
    matching = terms.matching.sum(0) + terms.matching_prior
    printed = terms.as_kl.sum(0) + terms.consistency_prior

    def standard_errors(difference):
        return (difference.mean() / difference.std() * math.sqrt(len(difference))).item()

    assert abs(standard_errors(consistency - matching)) < 3
    assert standard_errors(printed - matching) > 6
    # The first is the generic hierarchy's result for each level.
    assert torch.allclose(torch.stack(hierarchy.ratios(x, path)[:-1]), terms.consistency)


def test_consistency_terms_have_higher_variance_than_matching_terms():
    # The claim of Luo 2022. It is not true for a whole path, where neighbouring terms cancel each
    # other's noise.
    ratios = []
    for steps in (4, 16, 64):
        _, _, _, found = forms(steps)
        both = (
            (found.consistency, found.consistency_prior),
            (found.matching, found.matching_prior),
        )
        paths = [terms.sum(0) + prior for terms, prior in both]
        assert paths[0].mean().item() == pytest.approx(paths[1].mean().item(), rel=0.02)
        # T times one term that is chosen at random
        of_a_step = [(steps * terms + prior).var(correction=0).item() for terms, prior in both]
        ratios.append(of_a_step[0] / of_a_step[1])
    assert ratios[2] > 10 > ratios[1] > 1.5 and ratios[1] > ratios[0]
    assert paths[0].var() < paths[1].var()


def test_hierarchy_noise_depends_on_item_and_global_batch():
    whole, part = (
        BATCH_DRAWS.evaluation_noise(torch.tensor(i), 3, 1, CPU) for i in ([4, 9, 2], [9])
    )
    for shape in ((2,), (5, 1)):
        drawn = whole((3, *shape))
        assert drawn.shape == (3, *shape) and torch.equal(drawn[1:2], part((1, *shape)))
    whole, second = training_noise(8, 3, 7), training_noise(8, 3, 7, rank=1, world=2)
    for shape in ((2,), (5, 1)):
        assert torch.equal(whole((8, *shape))[4:], second((4, *shape)))


def test_hierarchy_refuses_zero_levels_or_steps():
    with pytest.raises(ValueError, match="steps=0"):
        restricted(Oracle(ring_mixture(), VP), SCHEDULE, GaussianDensity(), 0)
