"""A run's figures come from its checkpoint, whatever components and callbacks keep elsewhere."""

import json
import sys

import pytest
import torch

import triptych
from tests import forked
from tests.refusal import refused
from tests.run.commands import end, evaluated
from triptych.run.build import build_drawing
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.model import set_up_process
from triptych.run.new_process import call_in_new_process, remember_environment
from triptych.run.other_runs import OtherRuns
from triptych.run.reopen import reopen
from triptych.run.untrusted import read_checkpoint

RING = (
    "data=ring data.train_size=60 data.val_size=20 data.test_size=30 denoiser=mlp samples.n=0"
).split()
LAB = """
import os
import random
import numpy as np
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

class Environment(Net):
    def learn(self, z): os.environ["HIDDEN_LAB"] = "2"
    def scale(self): return float(os.environ.get("HIDDEN_LAB", 1))

class Drawn(Net):
    def scale(self): return 1 + random.random() + np.random.rand()

LEVELS = []

class Remembers(Net):
    def scale(self):
        LEVELS.append(self.training)
        return 1 + 1e-3 * LEVELS.count(True)

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

class Normed(PerItem):
    largest = [0.0]
    def values(self, model, batch):
        self.largest[0] = max(self.largest[0], batch.x.abs().max().item())
        return batch.x[:, 0] / self.largest[0]

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
    "denoiser.network": "Tensor Buffer Number Listed Counted Noisy Constant Cached Drawn Lazy",
    "callbacks.mine": "Rounds Replaces Averages Items",
    "metrics.mine": "Changes Trains",
    "objective.loss": "Grows",
    "schedule": "Moves",
}
REFUSED = {
    "Lazy": "model: a newly built model cannot load its state",
}


# Their state outlives the model within a process.
KEPT = {
    "denoiser.network.Remembers": (),
    "denoiser.network.Shared": pytest.mark.slow,
    "denoiser.network.Environment": pytest.mark.slow,
    "callbacks.mine.Patches": pytest.mark.slow,
    "metrics.mine.Normed": pytest.mark.slow,
}


def choose(run, place: str, name: str) -> None:
    """Put a class of LAB into the configuration of a run."""
    config = run.config()
    *parents, key = place.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    ends = {
        k: v
        for k, v in config["schedule"].items()
        if place == "schedule" and k.startswith("gamma_")
    }
    node[key] = {"_target_": f"hidden_lab.{name}", **ends}
    if name == "Patches":
        config["denoiser"]["network"] = {"_target_": "hidden_lab.Net"}
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
    for split in ("test", "val", "train"):
        assert evaluated(run / result["checkpoint"], f"split={split}") == result[split]


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


def samples(path) -> torch.Tensor:
    """Draw three samples of an opened run."""
    opened = reopen(str(path), None, None)
    drawing = build_drawing(opened.config, opened.model, opened.data, OtherRuns(opened.config))
    return drawing.samples(3, seed=0)


def finish(path) -> tuple[dict, torch.Tensor]:
    """Execute a run; return its figures and samples, each computed again in a new process."""
    execute(RunDirectory(path))
    splits = ("test", "val", "train")
    again = {name: call_in_new_process(evaluated, path, f"split={name}") for name in splits}
    return again, call_in_new_process(samples, path)


def train_and_evaluate(path) -> dict:
    """Execute a run, and evaluate it in the same Python session."""
    execute(RunDirectory(path))
    return triptych.load(path).evaluate("test")


@pytest.mark.parametrize("part", [pytest.param(part, marks=marks) for part, marks in KEPT.items()])
def test_figures_do_not_depend_on_process_state(prepared, trusting, part):
    trusting("hidden_lab", LAB)
    run = prepared(*RING, "samples.n=3", path="run")
    place, _, name = part.rpartition(".")
    choose(run, place, name)
    figures, again = forked.start_call(finish, run.path)()
    result = run.summary()
    assert len(figures) == 3
    for split, figure in figures.items():
        assert figure == result[split]
    at_the_end = torch.load(run / "samples" / "final.pt")["x"]
    assert torch.equal(again, at_the_end)


def test_loaded_run_is_evaluated_without_state_of_the_session(prepared, trusting):
    """A class of the user's module has counted the training steps in this process."""
    trusting("hidden_lab", LAB)
    run = prepared(*RING, path="run")
    choose(run, "denoiser.network", "Remembers")
    figures = forked.start_call(train_and_evaluate, run.path)()
    assert figures == run.summary()["test"]


# A user edits a file while a run that has imported it is training.
EDITED = """
FACTOR = 1.0

class Edited(Net):
    def scale(self): return FACTOR

class Edits(pl.Callback):
    def on_train_end(self, trainer, module):
        with open(__file__, "r+") as file:
            text = file.read().replace("FACTOR = 1.0", "FACTOR = 3.25", 1)
            file.seek(0)
            file.write(text)
"""


def test_figures_come_from_code_that_has_trained_the_model(prepared, trusting):
    file = trusting("hidden_lab", LAB + EDITED)
    run = prepared(*RING, path="run")
    choose(run, "denoiser.network", "Edited")
    choose(run, "callbacks.edits", "Edits")
    forked.start_call(execute, run)()
    assert "FACTOR = 3.25" in file.read_text()
    remember_environment()  # An earlier test's server does not trust the module.
    other = call_in_new_process(evaluated, run.path, "split=test")
    file.write_text(LAB + EDITED)
    again = call_in_new_process(evaluated, run.path, "split=test")
    assert again == run.summary()["test"] != other


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_figures_do_not_depend_on_state_of_several_processes(root, prepared, trusting, devices):
    """Each rank has counted its own training steps in a class of the user's module."""
    trusting("hidden_lab", LAB)
    processes = ["trainer=ddp_sim", f"trainer.devices={devices}", "data.batch_size=30"]
    run = prepared(*RING, *processes)
    choose(run, "denoiser.network", "Remembers")
    line = [sys.executable, "-m", "triptych.cli.train", f"resume={run.path}"]
    end(line, root, PYTHONPATH=str(root))
    again = [f"ckpt={run.path}", f"devices={devices}", f"out={root}/out.json"]
    end([sys.executable, "-m", "triptych.cli.evaluate", *again], root, PYTHONPATH=str(root))
    assert json.loads((root / "out.json").read_text()) == run.summary()["test"]


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
