"""A run's figures are its checkpoint's, whatever its parts and callbacks keep elsewhere."""

import sys

import pytest

from tests.refusal import refused
from tests.run.commands import evaluated
from triptych.run.execute import execute

RING = "data=ring data.train_size=60 data.val_size=20 data.test_size=30 denoiser=mlp samples.n=0".split()
LAB = """
import pytorch_lightning as pl
import torch
from torch import nn
from triptych.callbacks.ema import EMA
from triptych.diffusion.loss import Loss
from triptych.diffusion.schedule import Linear
from triptych.models.metric import PerItem

class Net(nn.Module):
    def __init__(self, shape, outputs=1, conditions=None, spacing=None):
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.start()

    def start(self): pass
    def learn(self, z): pass
    def scale(self): return 1.0

    def forward(self, z, gamma, condition):
        if self.training:
            self.learn(z.detach())
        return self.last(z) * self.scale()

class Tensor(Net):
    def start(self): self.mean = torch.ones(2)
    def learn(self, z): self.mean = self.mean + z.abs().mean(0)
    def scale(self): return self.mean

class Buffer(Tensor):
    def start(self): self.register_buffer("mean", torch.ones(2), persistent=False)

class Number(Tensor):
    def start(self): self.mean = 1.0
    def learn(self, z): self.mean += z.abs().mean().item()

class Listed(Net):
    def start(self): self.means = [torch.ones(2)]
    def learn(self, z): self.means.append(z.abs().mean(0))
    def scale(self): return sum(self.means)

class Shared(Net):
    means = [torch.ones(2)]
    learn, scale = Listed.learn, Listed.scale

class Counted(Net):
    calls = 0
    def scale(self):
        self.calls += 1
        return 1 + 1e-4 * self.calls

class Noisy(Net):
    def scale(self): return 1 + torch.randn(())

class Constant(Net):
    def start(self): self.table = torch.randn(2)
    def scale(self): return self.table

class Cached(Net):
    cache = None
    def forward(self, z, gamma, condition):
        if self.training:
            return super().forward(z, gamma, condition)
        if self.cache is None or len(self.cache) != len(z):
            self.cache = super().forward(z, gamma, condition)
        return self.cache.clone()

class Lazy(Net):
    def scale(self):
        if not hasattr(self, "more"):
            self.more = nn.Parameter(torch.ones(2))
        return self.more

class Rounds(pl.Callback):
    def on_test_start(self, trainer, module):
        for p in module.parameters():
            p.data.round_()

class Replaces(pl.Callback):
    def on_fit_end(self, trainer, module):
        module.denoiser.network = module.denoiser.network.__class__((2,), width=8, blocks=1)

class Averages(pl.Callback):
    def on_fit_end(self, trainer, module):
        for value in next(one for one in trainer.callbacks if isinstance(one, EMA)).average.values():
            value.zero_()

class Items(pl.Callback):
    def on_fit_end(self, trainer, module):
        trainer.datamodule.splits["test"].values.mul_(0.5)

class Patches(pl.Callback):
    def on_fit_end(self, trainer, module):
        kind, forward = Net, Net.forward
        kind.forward = lambda self, *given: 2 * forward(self, *given)

class Changes(PerItem):
    def values(self, model, batch):
        if model.trainer.testing:
            next(model.parameters()).data.add_(1)
        return batch.x[:, 0]

class Trains(PerItem):
    def values(self, model, batch):
        model.train()
        return batch.x[:, 0]

class Grows(Loss):
    calls = 0
    def weight(self, at):
        self.calls += 1
        return at.gamma.exp().neg().exp() * self.calls

class Moves(Linear):
    shift = 0.0
    def gamma(self, t):
        self.shift += 0.01 * self.training
        return super().gamma(t) + self.shift
"""
PLACES = {
    "denoiser.network": "Tensor Buffer Number Listed Shared Counted Noisy Constant Cached Lazy",
    "callbacks.mine": "Rounds Replaces Averages Items Patches",
    "metrics.mine": "Changes Trains",
    "objective.loss": "Grows",
    "schedule": "Moves",
}
REFUSED = {
    "Shared": "model: after the fit a new model of the initial weights has another bound than before it",
    "Patches": "model: after the fit a new model of the initial weights has another bound than before it",
    "Lazy": "model: a new one does not take its state",
    "Items": "data: items of test are no longer those that the run began with",
}


@pytest.mark.parametrize(("place", "name"), [(p, n) for p, names in PLACES.items() for n in names.split()])
def test_a_runs_bound_is_that_of_its_checkpoint_or_it_is_refused(prepared, trusting, place, name):
    trusting("hidden_lab", LAB)
    run = prepared(*RING, path=name)
    config = run.config()
    *parents, key = place.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    ends = (
        {k: v for k, v in config["schedule"].items() if k.startswith("gamma_")} if place == "schedule" else {}
    )
    node[key] = {"_target_": f"hidden_lab.{name}", **ends}
    if name == "Patches":
        config["denoiser"]["network"] = {"_target_": "hidden_lab.Net"}
    run.write("config.yaml", config)
    if name in REFUSED:
        refused(lambda: execute(run), REFUSED[name])
        assert not {"test", "val", "train"} & {*run.summary().record}
        return
    result = execute(run)
    del sys.modules["hidden_lab"]  # as in a process of its own
    for split in ("test", "val", "train"):
        assert evaluated(run / result["checkpoint"], f"split={split}") == result[split]
