"""The average: its formula, its warm-up, its swap around validation."""

import pytest
import pytorch_lightning as pl
import torch

from triptych.callbacks.ema import EMA


class Module(pl.LightningModule):
    """One weight that grows by one a step; validation records what it sees."""

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


def fit(module, ema, steps=6, **trainer):
    loader = torch.utils.data.DataLoader(torch.zeros(100, 1))
    pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        accelerator="cpu",
        callbacks=[ema],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    ).fit(module, loader, torch.utils.data.DataLoader(torch.zeros(1, 1)))


def expected(decay: float, values: list[float]) -> float:
    """The definition, one number at a time."""
    average = 0.0
    for n, value in enumerate(values):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * value
    return average


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.999])
def test_the_average_follows_its_definition_and_validation_sees_it(decay):
    module, ema = Module(), EMA(decay)
    fit(module, ema)
    weights = [1.0, 2, 3, 4, 5, 6]
    assert module.weight[0].item() == 6, "the raw weights are back after validation and at the end"
    assert ema.average["weight"][0].item() == pytest.approx(expected(decay, weights))
    assert module.seen == pytest.approx([expected(decay, weights[:3]), expected(decay, weights)])
    assert ema.updates == 6


def test_buffers_are_not_averaged():
    module, ema = Module(), EMA(0.9)
    fit(module, ema)
    assert set(ema.average) == {"weight"} and module.counter == 6


def test_accumulated_gradients_are_one_update():
    module, ema = Module(), EMA(0.9)
    fit(module, ema, steps=4, accumulate_grad_batches=2)
    assert ema.updates == 4


def test_an_accident_in_validation_leaves_the_raw_weights():
    module, ema = Module(stumble=True), EMA(0.9)
    with pytest.raises(RuntimeError, match="in validation"):
        fit(module, ema)
    assert module.weight[0].item() == 3


def test_state_round_trips():
    ema, other = EMA(0.9), EMA(0.9)
    fit(Module(), ema)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 6 and torch.equal(other.average["weight"], ema.average["weight"])


def test_a_decay_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"callbacks\.ema\.decay=1"):
        EMA(1.0)
