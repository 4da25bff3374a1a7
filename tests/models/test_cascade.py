"""The sum rule where it is exact: a finite set of pictures, each with a low picture.

The posterior mean of a finite set is a sum over it, so both stages' denoisers and the single one
are exact, and so is -log p(x).
"""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from triptych.data.batch import Batch, to_unit
from triptych.data.shapes import halve_resolution
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import Condition
from triptych.diffusion.decoder import Categorical
from triptych.diffusion.loss import Elbo as Weight
from triptych.diffusion.objective import Objective
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.process import VariancePreserving, expand_like
from triptych.diffusion.sampler import DDIM
from triptych.diffusion.schedule import Linear
from triptych.models.cascade import Cascade
from triptych.models.diffusion import Diffusion
from triptych.run import reopen

from .options import OPTIONS

LEVELS = 3
# (2 x 2) pictures of three levels; the first three have one low picture, the last two another
PICTURES = torch.tensor([[2, 2, 0, 0], [0, 0, 2, 2], [1, 2, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
PICTURES = PICTURES.view(5, 1, 2, 2)
SHARES = torch.tensor([0.35, 0.1, 0.15, 0.15, 0.25])
LOW = halve_resolution(PICTURES).long()


class Exact(nn.Module):
    """Return E[x | z] over a finite set (n, *event) with shares (n,).

    With a condition, only points with that low picture count.
    """

    def __init__(self, points, shares, low=None):
        super().__init__()
        self.points, self.shares, self.low, self.process = points, shares, low, VariancePreserving()
        self.conditional = low is not None

    def forward(self, z, gamma, condition=None):
        alpha, sigma = self.process.alpha_sigma(expand_like(gamma.expand(len(z)), z))
        gap = (z.unsqueeze(1) - alpha.unsqueeze(1) * self.points).flatten(2).square().sum(2)
        score = self.shares.log() - gap / (2 * sigma.view(-1, 1) ** 2)
        if condition is not None:
            told = condition.parts["low"].value.unsqueeze(1)
            score = score.masked_fill(((told - self.low).abs() > 1e-6).flatten(2).any(2), -math.inf)
        x0 = torch.einsum("bn,n...->b...", score.softmax(1), self.points)
        return Prediction("x0", x0, z, alpha, sigma)


def stage(points, shares, low=None, **more):
    schedule = Linear(-10.0, 7.0)
    objective, bound = Objective("x0", Weight()), Bound(schedule, Categorical(LEVELS))
    given = OPTIONS | {"shape": tuple(points.shape[1:]), "discrete": True, "seed": 3}
    return Diffusion(
        Exact(points, shares, low), schedule, objective, bound, levels=LEVELS, **given | more
    )


@pytest.fixture(scope="module")
def models():
    """Return (cascade, single model, batch, -log p(x) of each item in nats)."""
    x, low = to_unit(PICTURES, LEVELS), to_unit(LOW, LEVELS)
    lows, which = low.unique(dim=0, return_inverse=True)
    of_low = torch.zeros(len(lows)).index_add_(0, which, SHARES)
    assert len(lows) == 2
    stages = [stage(lows, of_low), stage(x, SHARES, low, conditional=["low"])]
    given = OPTIONS | {"shape": (1, 2, 2), "discrete": True, "seed": 3}
    cascade = Cascade(stages, known_as=["low"], levels=LEVELS, **given)
    drawn = torch.multinomial(SHARES, 3000, True, generator=torch.Generator().manual_seed(0))
    batch = Batch(x[drawn], Condition(low=low[drawn]), torch.arange(3000))
    return cascade, stage(x, SHARES), batch, -SHARES[drawn].log()


def totals(model, batch, repeats=4):
    with torch.no_grad():
        found = [model.elbo(batch, repeat, repeats) for repeat in range(repeats)]
    return torch.stack([e.total for e in found]).double().mean(0), found


def test_cascade_bound_matches_single_model_bound(models):
    cascade, single, batch, truth = models
    ours, theirs = totals(cascade, batch)[0], totals(single, batch)[0]
    for found in (ours, theirs):
        excess = found - truth
        stderr = excess.std() / math.sqrt(len(excess))
        assert -3 * stderr < excess.mean() < 0.05, "a bound, and next to tight"
    difference = ours - theirs
    assert difference.mean().abs() < 3 * difference.std() / math.sqrt(len(difference)) + 1e-3


def test_cascade_terms_are_sums_over_stages(models):
    cascade, _, batch, _ = models
    low = Batch(batch.condition.parts["low"].value, None, batch.index)
    for repeat, whole in enumerate(totals(cascade, batch)[1]):
        parts = [cascade.stages[0].elbo(low, repeat, 4), cascade.stages[1].elbo(batch, repeat, 4)]
        for term in ("prior", "reconstruction", "diffusion", "total"):
            of_each = [getattr(part, term) for part in parts]
            torch.testing.assert_close(getattr(whole, term), of_each[0] + of_each[1])


def test_cascade_samples_match_data_probabilities(models):
    cascade, _, _, _ = models
    x = cascade.sample(2000, DDIM(60), torch.Generator().manual_seed(1))
    nearest = (x.unsqueeze(1) - to_unit(PICTURES, LEVELS)).flatten(2).square().sum(2)
    assert (nearest.min(1).values < 0.1).float().mean() > 0.99
    found = torch.bincount(nearest.argmin(1), minlength=5) / 2000
    assert (found - SHARES).abs().max() < 4 * (0.25 / 2000) ** 0.5 + 0.02


def test_conditioning_on_low_reduces_bound_by_its_entropy(models):
    """bound(x) - bound(x | low) is I(x; low), which is H(low), as low is a function of x."""
    cascade, single, batch, _ = models
    saved = totals(single, batch)[0] - totals(cascade.stages[1], batch)[0]
    first = SHARES[(LOW[0] == LOW).flatten(1).all(1)].sum()
    entropy = -(first * first.log() + (1 - first) * (1 - first).log())
    assert (saved.mean() - entropy).abs() < 3 * saved.std() / len(saved) ** 0.5 + 0.01


def test_opening_cascade_stages_keeps_number_of_threads(monkeypatch):
    """Runs of a sweep had one thread each, and the cascade must be measured with its own number."""
    data = {"_target_": "triptych.data.digits.Digits"}
    model = SimpleNamespace(requires_grad_=lambda _: None)
    stage = SimpleNamespace(config={"data": data}, data=SimpleNamespace(levels=2), model=model)
    monkeypatch.setattr(reopen, "open_stages", lambda *_: torch.set_num_threads(2) or [stage])
    config = {"model": {"stages": ["a"]}, "data": data, "threads": 1}
    reopen.open_model_stages(config, SimpleNamespace(splits={}))
    assert torch.get_num_threads() == 1
