"""Averages of bounds and figures, compared with plain formulas."""

import math
from types import SimpleNamespace

import pytest
import torch

from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.control import DrawError
from triptych.models.accounting import Accounting
from triptych.models.base import BoundModel


def some_terms(n: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(50 * torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(3))


@pytest.mark.parametrize("batch", [1, 7, 64, 297])
@pytest.mark.parametrize("discrete", [True, False])
def test_accounting_is_independent_of_batch_size(batch, discrete):
    prior, reconstruction, diffusion = some_terms(297)
    accounting = Accounting(dims=64, discrete=discrete)
    for start in range(0, 297, batch):
        part = slice(start, start + batch)
        accounting.update(BoundTerms(prior[part], reconstruction[part], diffusion[part]))
    found = accounting.compute().figures
    unit, scale = ("bpd", 1 / (64 * math.log(2))) if discrete else ("nats_per_dim", 1 / 64)
    total = (prior + reconstruction + diffusion) * scale
    assert found[unit]["n"] == 297
    assert found[unit]["mean"] == pytest.approx(total.mean().item(), rel=1e-12)
    assert found[unit]["stderr"] == pytest.approx(total.std().item() / math.sqrt(297), rel=1e-9)
    for name, term in (
        ("prior", prior),
        ("reconstruction", reconstruction),
        ("diffusion", diffusion),
    ):
        assert found[f"{unit}_{name}"]["mean"] == pytest.approx(
            (term * scale).mean().item(), rel=1e-12
        )


def test_the_gap_is_paired_item_by_item():
    """Its error is that of the paired difference, far below that of either side."""
    _, _, diffusion = some_terms(100)
    exact = diffusion - 1.5
    zero = torch.zeros_like(diffusion)
    accounting = Accounting(dims=2, discrete=False)
    accounting.update(BoundTerms(zero, zero, diffusion), exact)
    gap = accounting.compute().figures["gap"]
    assert gap["mean"] == pytest.approx(0.75) and gap["stderr"] < 1e-6 and gap["n"] == 100


def test_noise_levels_are_binned_by_gamma():
    accounting = Accounting(dims=4, discrete=True, edges=torch.tensor([-2.0, 0.0, 2.0]))
    nats = torch.tensor([1.0, 2.0, 3.0, 6.0])
    accounting.update_levels(
        torch.tensor([-1.5, -0.5, 1.0, 2.0]),
        torch.tensor([4.0, 8.0, 40.0, 80.0]),
        nats,
        torch.ones(4).double(),
        nats,
    )
    assert accounting.compute().estimator == {"mean": 3.0, "variance": 3.5}
    found = accounting.compute().noise_levels
    assert found["gamma"] == [-1.0, 1.0]
    assert found["epsilon_mse"] == pytest.approx([1.5, 15.0])
    assert found["stderr"] == pytest.approx([0.5, 5.0])


def test_level_figures_average_noise_levels_in_gamma_bands():
    """Five bands divide [-10, 10], each named after its ends; an empty band has no figure."""
    levels = {"gamma": [-11.0, -9.0, 1.0, 7.0, 12.0], "epsilon_mse": [1.0, 2.0, 3.0, 4.0, 8.0]}
    found = BoundModel._level_figures(
        SimpleNamespace(_levels=torch.linspace(-10.0, 10.0, 21)), levels
    )
    means = {"-10.0_to_-6.0": 1.5, "-2.0_to_2.0": 3.0, "6.0_to_10.0": 6.0}
    assert found == {f"val_levels/epsilon_mse_gamma_{band}": mean for band, mean in means.items()}


def test_accounting_of_single_item_has_no_stderr():
    accounting = Accounting(dims=4, discrete=True)
    assert accounting.compute().figures == {}
    accounting.update(BoundTerms(*some_terms(1)), error=DrawError(*torch.full((2, 1), math.nan)))
    figure = accounting.compute().figures["bpd"]
    assert "draw_stderr" not in figure
    assert figure["n"] == 1 and math.isfinite(figure["mean"]) and math.isnan(figure["stderr"])
