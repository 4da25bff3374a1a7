"""The information in a condition: the mutual information where known, and unsuitable models."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.refusal import refused
from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import Condition, Labels, Vectors
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.mixture import GaussianMixture, Oracle
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.models.condition_bits import ConditionBits

N, STD, PROCESS = 3000, 0.3, VariancePreserving()


def mixture(apart):
    """A mixture with a third on the left and two thirds on the right."""
    return GaussianMixture([1 / 3, 2 / 3], [[-apart], [apart]], [[[STD**2]], [[STD**2]]])


def oracle(apart, steps=None):
    denoiser, schedule = Oracle(mixture(apart), PROCESS), Linear(-8.0, 9.0)
    bound = Bound(schedule, GaussianDensity(), steps)
    return SimpleNamespace(
        denoiser=denoiser, bound=bound, condition_of=lambda batch: batch.condition
    )


def drawn(apart):
    draws = torch.Generator().manual_seed(3)
    label = (torch.rand(N, generator=draws) > 1 / 3).long()
    x = apart * (2.0 * label - 1) + STD * torch.randn(N, generator=draws)
    return x.unsqueeze(1), label


@pytest.mark.parametrize(
    ("apart", "steps"), [(0.0, None), (0.2, None), (0.4, None), (2.0, None), (0.4, 300)]
)
def test_condition_bits_matches_mutual_information(apart, steps):
    """I(x; y) = E log p(x | y) / p(x): 0 for equal components, H(y) for disjoint ones."""
    x, label = drawn(apart)
    means = torch.tensor([-apart, apart])
    parts = -0.5 * ((x - means) / STD).square() + torch.tensor([1 / 3, 2 / 3]).log()
    own = (parts - torch.tensor([1 / 3, 2 / 3]).log()).gather(1, label.unsqueeze(1)).squeeze(1)
    truth = (own - parts.logsumexp(1)) / math.log(2)
    metric = ConditionBits(draws=32)
    torch.manual_seed(0)
    metric.update(oracle(apart, steps), Batch(x, Condition(label=label), torch.arange(N)))
    found = metric.compute()
    assert found["n"] == N and found["stderr"] < 0.03
    # With the same items, two errors remain: that of the draws, which the metric covers, and that
    # of the steps.
    assert abs(found["mean"] - truth.mean().item()) < 3 * found["stderr"] + (
        0.01 if steps else 1e-6
    )
    entropy = -(math.log2(1 / 3) / 3 + 2 * math.log2(2 / 3) / 3)
    if apart in (0.0, 2.0):
        assert truth.mean().item() == pytest.approx(entropy if apart else 0.0, abs=0.05)


def told(dropout, conditional=True):
    rest = {"of_latents": False, "conditional": conditional, "label_dropout": dropout}
    parts = {"label": Labels(2), "more": Vectors(2)}
    return SimpleNamespace(denoiser=nn.Identity(), conditions=parts, **rest)


def test_condition_bits_accepts_model_trained_with_label_dropout():
    for model in (told(0.1), told({"label": 0.5, "more": 0.2})):
        ConditionBits().check(model)
    ConditionBits(parts=["label"]).check(told({"label": 0.5}))


@pytest.mark.parametrize(
    ("parts", "model", "said"),
    [
        (None, told(0.1, conditional=False), "set model.conditional=true"),
        (["text"], told(0.1), "condition has no text; use label, more"),
        (None, told(0.0), "never trained without label, more, as label_dropout=0.0"),
        (None, told({"label": 0.5}), "never trained without more, as label_dropout={"),
        (["more"], told({"label": 0.5}), "never trained without more, as label_dropout={"),
    ],
)
def test_condition_bits_refuses_model_trained_without_label_dropout(parts, model, said):
    refused(lambda: ConditionBits(parts=parts).check(model), said)


def test_condition_bits_parts_drops_named_parts_only():
    seen = []

    class Answer(nn.Module):
        process = PROCESS

        def forward(self, z, gamma, condition=None):
            seen.append(() if condition is None else tuple(condition.parts))
            return Oracle(mixture(0.2), PROCESS)(z, gamma)

    x, label = drawn(0.2)
    model = oracle(0.2)
    model.denoiser = Answer()
    condition = Condition(label=label, more=torch.zeros(N, 2))
    ConditionBits(draws=1, parts=["label"]).update(model, Batch(x, condition, torch.arange(N)))
    assert set(seen) == {("more",), ("label", "more")}
