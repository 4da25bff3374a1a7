"""A run's figures are its checkpoint's, whatever own parts keep in the model or do to it."""

import sys

import pytest
import torch

from tests.refusal import refused
from tests.run.commands import evaluated
from triptych.run.execute import execute
from triptych.run.model import set_up_process
from triptych.run.untrusted import read_checkpoint

RING = (
    "data=ring data.train_size=60 data.val_size=20 data.test_size=30 denoiser=mlp samples.n=0"
).split()
LAB = """
import pytorch_lightning as pl
import torch
from torch import nn
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

class Buffer(Net):
    def start(self): self.register_buffer("mean", torch.ones(2), persistent=False)
    def learn(self, z): self.mean = self.mean + z.abs().mean(0)
    def scale(self): return self.mean

class Listed(Net):
    def start(self): self.means = [torch.ones(2)]
    def learn(self, z): self.means.append(z.abs().mean(0))
    def scale(self): return sum(self.means)

class Counted(Net):
    calls = 0
    def scale(self):
        self.calls += 1
        return 1 + 1e-4 * self.calls

class Constant(Net):
    def start(self): self.table = torch.randn(2)
    def scale(self): return self.table

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

class Changes(PerItem):
    def values(self, model, batch):
        if model.trainer.testing:
            next(model.parameters()).data.add_(1)
        return batch.x[:, 0]

"""
PLACES = {
    "denoiser.network": "Buffer Listed Counted Constant Lazy",
    "callbacks.mine": "Rounds Replaces",
    "metrics.mine": "Changes",
}
REFUSED = {
    "Lazy": "model: a newly built model cannot load its state",
}


def choose(run, place: str, name: str) -> None:
    """Put a class of LAB into the configuration of a run."""
    config = run.config()
    *parents, key = place.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[key] = {"_target_": f"hidden_lab.{name}"}
    run.write("config.yaml", config)


@pytest.mark.parametrize(
    ("place", "name"), [(p, n) for p, names in PLACES.items() for n in names.split()]
)
def test_bound_of_run_with_user_state_matches_its_checkpoint(prepared, trusting, place, name):
    trusting("hidden_lab", LAB)
    run = prepared(*RING, path=name)
    choose(run, place, name)
    if name in REFUSED:
        refused(lambda: execute(run), REFUSED[name])
        assert not {"test", "val", "train"} & {*run.summary().record}
        return
    result = execute(run)
    del sys.modules["hidden_lab"]  # as in a process of its own
    assert evaluated(run / result["checkpoint"], "split=test") == result["test"]


SETTINGS = """
import torch
from torch.utils.data import random_split
from triptych.data.base import DataModule
from triptych.data.batch import Split

torch.set_num_threads(2)
torch.set_flush_denormal(False)
torch.set_float32_matmul_precision("medium")

class Unseeded(DataModule):
    name, shape, levels, num_classes = "unseeded", (2,), None, 0

    def load(self):
        points = torch.arange(200.0).view(100, 2) / 100 - 1
        parts = random_split(range(100), [60, 20, 20])
        named = zip(("train", "val", "test"), parts, strict=True)
        return {name: Split(points[list(part)]) for name, part in named}
"""


def test_unseeded_split_of_user_data_is_the_same_in_evaluation(prepared, trusting):
    trusting("hidden_settings", SETTINGS)
    run = prepared(*RING, path="unseeded")
    config = run.config()
    config["data"] = {"_target_": "hidden_settings.Unseeded"}
    run.write("config.yaml", config)
    result = execute(run)
    torch.manual_seed(5)  # as another process starts from another state
    for split in ("test", "val", "train"):
        assert evaluated(run / result["checkpoint"], f"split={split}") == result[split]


def test_torch_settings_of_imported_user_module_are_not_used(prepared, trusting):
    trusting("hidden_settings", SETTINGS)
    config = prepared(*RING).config()
    config["data"] = {"_target_": "hidden_settings.Unseeded"}
    set_up_process(config)
    assert torch.get_num_threads() == config["threads"] == 1
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.tensor(1e-39) * 1 == 0


def test_evaluate_uses_objective_teacher_for_gradient_noise(prepared):
    """The loss's gradient, and so its noise, depends on the teacher's predictions."""
    teacher = prepared("experiment=ring", *RING, path="teacher")
    execute(teacher)
    metric = ["metrics=gradient_noise", "metrics.gradient_noise.batch=8", "objective.steps=2"]
    student = prepared(
        "experiment=ring", *RING, *metric, f"objective.teacher='{teacher.path}'", path="student"
    )
    recorded = execute(student)["test"]["gradient_noise"]
    assert evaluated(student.path)["gradient_noise"] == recorded
    content = read_checkpoint(student / "checkpoints" / "last.ckpt")
    content["triptych"]["config"]["objective"]["teacher"] = None
    torch.save(content, student.path.parent / "alone.ckpt")
    assert evaluated(student.path.parent / "alone.ckpt")["gradient_noise"] != recorded
