"""Averages of weights: formula, several lengths at once, snapshots, the swap for validation."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.lightning import trainer
from triptych.callbacks.ema import EMA, power_exponent


class Module(pl.LightningModule):
    """A module with one weight that grows by one a step; validation records the weight it has."""

    def __init__(self, stumble: bool = False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("counter", torch.zeros((), dtype=torch.long))
        self.seen: list[float] = []
        self.stumble = stumble

    def training_step(self, batch, batch_idx):
        self.counter += 1
        return -self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.seen.append(self.weight[0].item())
        if self.stumble:
            raise RuntimeError("in validation")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(module, *callbacks, steps=6, path=None):
    """Fit a module that is validated after every third batch."""
    loader, few = (torch.utils.data.DataLoader(torch.zeros(n, 1)) for n in (100, 1))
    trainer(path, steps, val_check_interval=3, callbacks=[*callbacks]).fit(module, loader, few)


def power(sigma_rel: float, values: list[float]) -> float:
    """Return sum_i values_i times the integral of the power function over step i."""
    edges = (np.arange(len(values) + 1) / len(values)) ** (power_exponent(sigma_rel) + 1)
    return float(np.diff(edges) @ values)


def halving(half_life: float, values: list[float]) -> float:
    weight = 2.0 ** (np.arange(len(values)) / half_life)
    return float(weight @ values / weight.sum())


WEIGHTS = [1.0, 2, 3, 4, 5, 6]


def test_ema_matches_power_function_and_validation_uses_it():
    module, ema = Module(), EMA(0.05)
    fit(module, ema)
    assert module.weight[0].item() == 6, "the raw weights are back after validation and at the end"
    assert ema.average["weight"][0].item() == pytest.approx(power(0.05, WEIGHTS))
    assert module.seen == pytest.approx([power(0.05, WEIGHTS[:3]), power(0.05, WEIGHTS)])
    assert ema.updates == module.counter == 6 and set(ema.average) == {"weight"}, (
        "buffers are not averaged"
    )


def test_averages_follow_names_if_callback_reorders_parameters():
    """A layer that is registered again comes last, with the same shape as another."""

    class Reorders(pl.Callback):
        def on_train_start(self, trainer, module):
            weight = module.weight
            del module.weight
            module.weight = weight

    module, ema = Module(), EMA(0.05)
    module.still = torch.nn.Parameter(torch.full((3,), 9.0))
    fit(module, Reorders(), ema)
    assert [*dict(module.named_parameters())] == ["still", "weight"]
    assert ema.average["weight"][0].item() == pytest.approx(power(0.05, WEIGHTS))
    assert (ema.average["still"] == 9).all()
    assert module.seen == pytest.approx([power(0.05, WEIGHTS[:3]), power(0.05, WEIGHTS)])


def test_validation_uses_raw_weights_if_validates_is_false():
    module, ema = Module(), EMA(0.2)
    ema.validates = False
    fit(module, ema)
    assert module.seen == [3, 6] and ema.average["weight"][0].item() == pytest.approx(
        power(0.2, WEIGHTS)
    )


def test_ema_others_average_independently():
    ema = EMA(None, half_life=3, others=[0.1, 0.2, 0.1])
    fit(Module(), ema)
    found = {name: average["weight"][0].item() for name, average in ema.averages.items()}
    assert list(found) == ["half_life_3", "sigma_rel_0.1", "sigma_rel_0.2"]
    expected = [halving(3, WEIGHTS), power(0.1, WEIGHTS), power(0.2, WEIGHTS)]
    assert list(found.values()) == pytest.approx(expected)


def test_ema_snapshots_store_averages_at_their_steps(tmp_path):
    ema = EMA(0.1, others=[0.2], snapshots=4)
    fit(Module(), ema, steps=10, path=str(tmp_path))
    files = sorted((tmp_path / "averages").iterdir())
    stored = [torch.load(path, weights_only=True) for path in files]
    assert [s["step"] for s in stored] == [2, 5, 8, 10] == [int(path.stem) for path in files]
    for snapshot in stored:
        values = list(range(1, snapshot["step"] + 1))
        for name, sigma_rel in snapshot["sigma_rel"].items():
            found = snapshot["averages"][name]["weight"][0].item()
            assert found == pytest.approx(power(sigma_rel, values))


def test_error_in_validation_restores_raw_weights():
    module, ema = Module(stumble=True), EMA(0.1)
    with pytest.raises(RuntimeError, match="in validation"):
        fit(module, ema)
    assert module.weight[0].item() == 3
