"""The builder: components by the names of arguments, built once, and user-supplied classes."""

import resource
import sys
from types import SimpleNamespace

import pytest
import torch

from tests import forked
from tests.refusal import refused
from triptych.config.build import PARTS, build
from triptych.config.file import copy_plain
from triptych.data.build import build_data
from triptych.errors import UserError
from triptych.run import other_runs as guides
from triptych.run.build import build_experiment
from triptych.run.execute import execute
from triptych.run.model import build_model, injection_table, set_up_torch

RING = "data=ring data.train_size=60 data.val_size=20 data.test_size=20 denoiser=mlp".split()
LAB = '''
import torch
from torch import nn
from triptych.diffusion.decoder import GaussianDensity
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.reverse_variance import Beta
from triptych.diffusion.sampler import DDIM
from triptych.diffusion.schedule import Linear
from triptych.diffusion.loss import Elbo

class Halved(Beta):
    def log_ratio(self, *step):
        return 0.5 * super().log_ratio(*step)

class Doubled(nn.Module):
    """epsilon is twice what the network gives; it is asked for two numbers and reads the first"""
    space, per_dim = "epsilon", 2
    def forward(self, raw, z, alpha, sigma):
        return Prediction("epsilon", 2 * raw[:, 0], z, alpha, sigma)

class Sharp(GaussianDensity):
    def __init__(self, shape, levels):
        self.shape, self.levels = shape, levels

class Weight(Elbo):
    def __init__(self, shape, strength=1.0):
        self.told = shape, strength

class Schedule(Linear): pass
class Sampler(DDIM): pass

class Rate(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer, half=10):
        super().__init__(optimizer, lambda step: 0.5 ** (step / half))
'''


def test_user_classes_are_built_at_every_config_node(trusting, prepared):
    trusting("own_lab", LAB)
    bound = ("bound.variance=own_lab.Halved", "bound.steps=3", "bound.decoder=own_lab.Sharp")
    config = prepared(*RING, *bound).config()
    config["objective"]["output"] = {"_target_": "own_lab.Doubled"}
    config["objective"]["loss"] = {"_target_": "own_lab.Weight", "strength": 2.0}
    config["schedule"]["_target_"] = "own_lab.Schedule"
    config["sampler"] = {"_target_": "own_lab.Sampler", "steps": 3}
    config["lr_schedule"] = {"_target_": "own_lab.Rate", "half": 1}
    made = build_experiment(config, download=False)
    model = made.model
    assert model.denoiser.network.outputs == 2 and model.objective.space == "epsilon"
    assert model.objective.loss.told == ((2,), 2.0)  # what it asked for by name, and its own key
    assert (model.bound.decoder.shape, model.bound.decoder.levels) == ((2,), None)
    kinds = [model.bound.variance, model.schedule, made.drawing.sampler]
    assert [type(kind).__name__ for kind in kinds] == ["Halved", "Schedule", "Sampler"]
    assert (
        model.objective.variance is model.bound.variance and model.bound.schedule is model.schedule
    )
    model.trainer = SimpleNamespace(max_steps=4, precision="32-true")
    scheduler = model.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert type(scheduler).__name__ == "Rate" and scheduler.lr_lambdas[0](1) == 0.5


def test_learned_variance_adds_one_network_output(prepared):
    steps = ("bound.steps=3", "objective.steps=3")
    config = prepared(*steps, "objective=levels", "bound.variance=learned").config()
    model = build_model(config, build_data(config))
    assert model.denoiser.network.outputs == 17 + 1 == model.denoiser.output.per_dim
    assert model.denoiser(torch.zeros(2, 1, 8, 8), torch.zeros(2)).fraction is not None


def test_unknown_variance_name_or_class_is_refused(prepared):
    with pytest.raises(UserError, match="bound.variance='betta': must be beta_tilde, beta"):
        prepared("bound.steps=3", "bound.variance=betta")
    config = prepared("bound.steps=3", "bound.variance=triptych.diffusion.loss.Elbo").config()
    refused(
        lambda: build_model(config, build_data(config)), "bound.variance=", "must be a subclass of"
    )


def test_parts_are_built_once_and_config_keys_override_dependencies(prepared):
    config = prepared(*RING).config()
    table = injection_table(config, build_data(config))
    assert table["schedule"] is table["schedule"]
    assert build(config["bound"], "bound", table).schedule is table["schedule"]
    network = config["denoiser"]["network"] | {"shape": [3]}
    assert build(network, "elsewhere", table, outputs=1).shape == (3,)
    # An argument that the program passes precedes the configuration and the table.
    assert build(network | {"outputs": 7}, "elsewhere", table, outputs=1).outputs == 1
    assert "likelihood" not in list(table) and {"schedule", "denoiser"} <= {*table} <= {
        *PARTS,
        *table.facts,
    }


def test_every_checkpoint_is_opened_once_before_the_fit_and_after_it(prepared, monkeypatch):
    execute(prepared("model=classifier", "measures.n=0", path="noisy"))
    execute(prepared("model=classifier", "model.noise=false", "measures.n=0", path="clean"))
    root = prepared("model=classifier", path="x").path.parent
    opened, reopen = [], guides.reopen
    monkeypatch.setattr(
        guides, "reopen", lambda ckpt, **more: opened.append(ckpt) or reopen(ckpt, **more)
    )
    run = prepared(
        "guidance=classifier",
        f"guide='{root / 'noisy' / 'checkpoints' / 'last.ckpt'}'",
        f"measures.classifier='{root / 'clean' / 'checkpoints' / 'last.ckpt'}'",
        *(
            "measures.n=8 measures.repeats=1 measures.over=guidance.scale "
            "measures.values=[0.0,1.0,2.0]"
        ).split(),
        path="guided",
    )
    rows = execute(run)["measures_over"]["rows"]
    assert [row["value"] for row in rows] == [0.0, 1.0, 2.0]
    assert len(opened) == 4 and len(set(opened)) == 2, "before the fit and after it, each once"


@pytest.mark.parametrize("key", ["bound.steps", "data.seed", "seed", "sampler", "sampler.stops"])
def test_measures_over_refuses_keys_other_than_sampling(prepared, key):
    measures = [
        "measures.n=8",
        "measures.repeats=1",
        f"measures.over={key}",
        "measures.values=[1,2]",
    ]
    config = prepared(*RING, *measures).config()
    refused(
        lambda: build_experiment(config, download=False), f"measures.over={key}: ", "sampler.steps"
    )


def test_obsolete_key_at_neutral_value_is_dropped():
    recorded = {
        "model": {"beta_warmup": 0, "free_bits": 0.5},
        "data": {"cache": True, "val_size": 9},
    }
    assert copy_plain(recorded, "config.yaml") == {
        "model": {"free_bits": 0.5},
        "data": {"val_size": 9},
    }


def pages_taken() -> list[int]:
    """Return the pages of memory taken in each of six rounds, which make and drop tensors."""
    set_up_torch(1)
    taken = []
    for rounds in (
        2,
        *[10] * 5,
    ):  # the first ones take it; a loaded machine may take some back once
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(rounds):
            [torch.ones(1_000_000) for _ in range(10)]
        taken.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    return taken


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_tensor_memory_is_reused():
    """Memory pages that are freed and allocated again cost a sixth of a training step."""
    # What other tests have left of this process's memory counts, too.
    taken = forked.start_call(pages_taken)()
    assert min(taken[1:]) < 5_000, "of 100 thousand pages that the tensors lay on"
