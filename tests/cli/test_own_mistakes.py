"""Mistakes in user code: one line with file and line number before the first step.

None of them trains silently.
"""

import copy
import json
import random
import secrets
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.refusal import refused as one_refused
from tests.run.accidents import stopped
from triptych.config.build import build
from triptych.config.trust import import_class
from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.data.build import check_splits_match_declaration
from triptych.diffusion.condition import Condition
from triptych.errors import UserError
from triptych.models.contract import check_output, isolated_evaluation
from triptych.run.command_errors import one_line_errors
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute

OWN = '''
import numpy as np
import torch
from pytorch_lightning import Callback
from torch import nn
from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.diffusion.condition import Condition
from triptych.diffusion.denoiser import Output
from triptych.diffusion.loss import Elbo
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.schedule import Schedule
from triptych.diffusion.wrappers import Wrapper
from triptych.models.metric import OfSamples, PerItem
from triptych.data.augment import Augmentation
from triptych.networks.ladder import Ladder

class Net(nn.Module):
    def __init__(self, shape, outputs=1, conditions=None, spacing=None, fault=""):
        super().__init__()
        if fault == "init":
            self.width = widht
        self.last, self.fault, self.calls = nn.Linear(2, 2), fault, 0
        self.drop, self.norm = nn.Dropout(0.1), nn.BatchNorm1d(2)

    def forward(self, z, gamma, condition):
        raw = self.drop(self.norm(self.last(z)))
        self.calls += self.training
        if self.fault == "late" and self.calls == 5:
            raise KeyError("fifth")
        if self.fault == "name":
            return raw * widht
        if self.fault == "inside":
            return self.last(z[:, :1])
        return raw[:, :1] if self.fault == "mean" else raw

class Mean(Output):
    def forward(self, raw, z, alpha, sigma):
        return super().forward(raw.mean(1, keepdim=True), z, alpha, sigma)

class Weight(Elbo):
    def weight(self, at):
        return torch.ones(len(at.gamma), len(at.gamma))

class Summed(Elbo):
    def nats(self, at, squared, dims):
        return squared.sum()

class Half(Augmentation):
    def __call__(self, x, uniform):
        return x[..., ::2]

class Same(Augmentation):
    pass

class Bent(Schedule):
    def _curve(self, u):
        return u**3

class Nothing(nn.Module):
    def __init__(self, shape, outputs=1, conditions=None):
        super().__init__()
        self.last = nn.Linear(2, 2)

class Steps(Ladder):
    def __init__(self, shape, outputs, fault=""):
        super().__init__()
        self.encoders = nn.ModuleList([nn.Linear(2, 6)])
        self.decoders, self.top = nn.ModuleList(), (4,) if fault == "top" else (3,)
        self.head = Head(outputs)

class Head(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.last = nn.Linear(3, outputs)

    def forward(self, z):
        return self.last(z)[..., None]

class Points(DataModule):
    name, shape, num_classes = "own", (2,), 3

    def __init__(self, fault="", **loading):
        super().__init__(**loading)
        self.fault = fault

    def load(self):
        x, y = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
        if self.fault == "name":
            x = x * scael
        if self.fault == "nan":
            x[7, 1] = torch.nan
        split = Split(x, Condition(label=y))
        empty = Split(x[:0], Condition(label=y[:0]))
        return {"train": split, "val": split, "test": empty if self.fault == "test empty" else split}

class Seeded(Net):
    def __init__(self, shape, outputs=1):
        torch.manual_seed(7)
        super().__init__(shape, outputs)

class Bare(Elbo):
    def weight(self, gamma):
        return torch.sigmoid(gamma)

class Column(PerItem):
    def values(self, model, batch):
        return batch.x[:, :1]

class Wide(OfSamples):
    def figure(self, samples):
        return samples.x.widht

class Best(Callback):
    def state_dict(self):
        return {"best": np.float64(0)}

class Sign(torch.optim.Optimizer):
    def __init__(self, lr: float = 1e-3):
        super().__init__([], {})

class Guide(Wrapper):
    def __init__(self, denoiser, fault=""):
        super().__init__(denoiser)
        self.fault = fault

    def forward(self, z, gamma, condition=None, *_):
        guess = self.denoiser(z, gamma, condition)
        if self.fault == "tensor":
            return guess.epsilon
        if self.fault is None:  # 0 / 0 of a network that gives 0
            self.before = guess.value + getattr(self, "before", 0)
            return guess.moved("epsilon", guess.value / guess.value.std() * guess.epsilon)
        if self.fault == "name":
            return guess.moved("epsilon", guess.epsilonn)
        return guess.moved("epsilon", guess.epsilon[:1])

class Keen(Sampler):
    """With a history of its own."""
    def step(self, z, at):
        at.history = [*(at.history or []), at.guess(z, at.gamma_t)]
        assert len(at.history) <= self.steps
        return at.history[-1].at(*at.process.alpha_sigma(at.gamma_s))

'''
TINY = (
    "data=ring data.train_size=60 data.val_size=20 data.test_size=20 denoiser=mlp samples.n=0"
).split()
LINE = {line.strip(): number for number, line in reversed([*enumerate(OWN.splitlines(), 1)])}


@pytest.fixture
def lab(trusting) -> Path:
    """Write the file of a user package."""
    return trusting("own_faults", OWN)


@pytest.fixture(scope="module")
def composed() -> list[dict]:
    """Compose the configuration that all tests change, once, because composing is slow."""
    return []


@pytest.fixture
def changed(prepared, lab, tmp_path, composed):
    """``changed(change)``: make a run whose configuration has this change."""
    if not composed:
        composed.append(prepared(*TINY).config())

    def make(change) -> RunDirectory:
        made, config = RunDirectory(tmp_path / secrets.token_hex(4)), copy.deepcopy(composed[0])
        change(config)
        made.write("config.yaml", config)
        return made

    return make


@pytest.fixture
def refused(changed, capfd):
    """``refused(change)``: return the error line of the command, which ``summary.json`` has, too.

    Nothing is trained.
    """

    def run(change) -> str:
        made = changed(change)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended, one_line_errors("train"):
            execute(made)
        said = [
            line for line in capfd.readouterr().err.splitlines() if not line.startswith("data: ")
        ]
        assert ended.value.code == 1
        assert len(said) == 1 and said[0].startswith("error: "), said
        line = said[0].removeprefix("error: ").strip()
        summary = json.loads((made / "summary.json").read_text())
        assert (summary["status"], summary["stage"]) == ("failed", "build")
        assert summary["error"] == line[:1000]
        assert not (made / "metrics.csv").exists() and not made.checkpoints()
        return line

    return run


def own(place: str, name: str, **keys):
    """Return a change of a configuration: the user's class ``name`` at ``place``."""

    def change(config: dict) -> None:
        node, *path = config, *place.split(".")
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = {"_target_": f"own_faults.{name}", **keys}

    return change


def drawn(change):
    """Return the same change for a run that draws samples."""

    def both(config: dict) -> None:
        change(config)
        config["samples"]["n"] = 3

    return both


def has(line: str, lab: Path, at: str, *words: str) -> None:
    for word in (f"({lab}:{LINE[at]}", *words):
        assert word in line, line


NET, POINTS, ENDS = "denoiser.network", "data", {"gamma_min": -6.0, "gamma_max": 6.0}
FORWARD = "def forward(self, z, gamma, condition):"
MISTAKES = [
    (
        own(NET, "Net", fault="mean"),
        FORWARD,
        "denoiser.network: Net returns shape (4, 1); must be (4, 2)",
    ),
    (
        own(NET, "Net", fault="name"),
        "return raw * widht",
        "name 'widht' is not defined",
        ", in forward)",
    ),
    (
        own(NET, "Net", fault="inside"),
        "return self.last(z[:, :1])",
        "RuntimeError: ",
        "mat1 and mat2",
    ),
    (
        own(NET, "Net", fault="init"),
        "self.width = widht",
        "denoiser.network: name 'widht'",
        ", in __init__)",
    ),
    (
        own("schedule", "Bent", **ENDS),
        "class Bent(Schedule):",
        "Can't instantiate abstract class Bent",
    ),
    (own(NET, "Nothing"), "class Nothing(nn.Module):", 'missing the required "forward" function'),
    (
        own("objective.output", "Mean", space="v"),
        "def forward(self, raw, z, alpha, sigma):",
        "objective.output: Mean returns shape (4, 1); must be (4, 2)",
    ),
    (own("objective.loss", "Weight"), "def weight(self, at):", "shape (4, 4); must be (4,) or ()"),
    (
        own("objective.loss", "Summed"),
        "def nats(self, at, squared, dims):",
        "shape (); must be (4,)",
    ),
    (
        own("objective.loss", "Bare"),
        "return torch.sigmoid(gamma)",
        "objective.loss: TypeError: ",
        "must be Tensor, not Level",
    ),
    (
        own("callbacks.best", "Best"),
        "class Best(Callback):",
        "Best.state_dict(): not plain data; return ",
    ),
    (
        drawn(own("guidance", "Guide", fault="tensor")),
        "class Guide(Wrapper):",
        "guidance: Guide returns a Tensor; must be a Prediction, as guess.moved(space, value)",
    ),
    (
        drawn(own("guidance", "Guide")),
        "def forward(self, z, gamma, condition=None, *_):",
        "guidance: Guide returns shape (1, 2); must be (2, 2)",
    ),
    (
        drawn(own("guidance", "Guide", fault="name")),
        'return guess.moved("epsilon", guess.epsilonn)',
        "guidance: AttributeError: 'Prediction' object has no attribute 'epsilonn' (",
    ),
    (
        own(POINTS, "Points", fault="nan"),
        "def load(self):",
        "data own: train: values: a value from item 0 on is not finite",
    ),
    (
        own(POINTS, "Points", fault="name"),
        "x = x * scael",
        "data: NameError: name 'scael' is not",
        ", in load)",
    ),
]


@pytest.mark.parametrize(
    "change, at, words", [(change, at, words) for change, at, *words in MISTAKES]
)
def test_error_in_user_code_names_file_and_line(refused, lab, change, at, words):
    """The place is in the user's file even if torch, which it called, raised the error."""
    has(refused(change), lab, at, *words)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            own(NET, "Seeded"),
            "seed=1: your code calls torch.manual_seed(7) in a constructor; use",
        ),
        (
            own(POINTS, "Points", fault="test empty"),
            "test=true: data own has no test items to report; set data.val_size with test=false",
        ),
    ],
)
def test_error_without_source_line_names_config_key(refused, change, line):
    assert refused(change).startswith(line)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(8), "shape (8,); must be (4, 2)"),
        (torch.zeros(4, 1, 2), "shape (4, 1, 2); must be (4, 2)"),
        (torch.full((4, 2), torch.nan), "numbers that are not finite"),
        ((torch.zeros(4, 2),) * 2, "a tuple; must be a tensor of shape (4, 2)"),
    ],
)
def test_check_output_refuses_wrong_shape_dtype_or_nan(value, words):
    part = nn.Identity()
    output = ("denoiser.network", part.forward, value, (4, 2))
    one_refused(lambda: check_output(*output), f"denoiser.network: Identity returns {words}")


def test_metrics_are_tried_before_the_first_step(refused, lab):
    def measured(config):
        config["measures"] |= {"n": 16}
        own("metrics.x", "Wide")(config)

    line = (
        "metrics.x: ValueError: Column.values returned shape (4, 1); must be a tensor of shape (4,)"
    )
    has(refused(own("metrics.x", "Column")), lab, "class Column(PerItem):", line)
    has(
        refused(measured),
        lab,
        "return samples.x.widht",
        "metrics.x: AttributeError: ",
        ", in figure)",
    )


@pytest.mark.parametrize(
    "change",
    [
        drawn(own("guidance", "Guide", fault=None)),
        drawn(own("sampler", "Keen", steps=2)),
    ],
)
def test_valid_user_guidance_and_sampler_are_accepted(changed, lab, change):
    """Valid code is accepted: guidance of 0 / 0 with a momentum, a history in ``at``."""
    assert execute(changed(change)).status == "finished"


def test_vae_network_with_wrong_shape_is_refused(refused, lab):
    def vae(config, fault=""):
        config["model"] = {"_target_": "triptych.models.latent.VAE"}
        config |= {"objective": {}, "denoiser": {}, "schedule": {}, "process": {}}
        own("model.network", "Steps", fault=fault)(config)

    words = "model.network.head: Head returns shape (4, 2, 1); must be (4, 2, 2)"
    has(refused(vae), lab, "def forward(self, z):", words)
    line = refused(lambda config: vae(config, "top"))
    assert "model.network.encoders: Linear returns shape (4, 3); must be (4, 4)" in line


def test_augmentation_that_changes_shape_is_refused(refused, lab):
    def halved(config):
        config["data"] = {"_target_": "triptych.data.digits.Digits"}
        config["denoiser"] = {"_target_": "triptych.diffusion.denoiser.Denoiser"}
        config["denoiser"]["network"] = {"_target_": "triptych.networks.resnet.ResNet", "width": 8}
        config["augmentation"] = {"half": {"_target_": "own_faults.Half"}}

    def bare(config):
        halved(config)
        own("augmentation.half", "Same")(config)

    at = "def __call__(self, x, uniform):"
    has(
        refused(halved),
        lab,
        at,
        "augmentation: Half returns shape (4, 1, 8, 4); must be (4, 1, 8, 8)",
    )
    has(
        refused(bare),
        lab,
        "class Same(Augmentation):",
        "NotImplementedError: apply() is not defined",
    )


def test_error_during_training_names_file_and_line(changed, lab, capfd):
    """A step has been made by then, and the same command resumes if asked to."""
    run = changed(own(NET, "Net", fault="late"))
    with pytest.raises(SystemExit), one_line_errors("train"):
        execute(run)
    *_, line = capfd.readouterr().err.splitlines()
    has(line, lab, 'raise KeyError("fifth")', "error: KeyError: 'fifth'", ", in forward)")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stage"] == "fit" and summary["error"] == line.removeprefix("error: ")
    assert 'raise KeyError("fifth")' in (run / "train.log").read_text()


def test_undisturbed_restores_weights_modes_and_random_state(lab):
    """Weights, running means, modes and the random states of three libraries stay the same."""
    model = import_module("own_faults").Net((2,))
    model.drop.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)

    with isolated_evaluation(model):
        random.random(), np.random.rand(), torch.rand(1)
        check_output("network", model.forward, model(torch.randn(4, 2), None, None), (4, 2))
    drawn = float(torch.rand(())), random.random(), float(np.random.rand())
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(3)
    assert drawn == (float(torch.rand(())), random.random(), float(np.random.rand()))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_resume_skips_check_first_step(prepared, monkeypatch):
    run = stopped(prepared(*TINY, "denoiser.network.width=8"))
    monkeypatch.setattr("triptych.run.fit.check_first_start", None)
    assert execute(run)["status"] == "finished"


class Held(DataModule):
    name, shape, num_classes, load = "own", (2,), 3, None


X, Y = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3


def splits(x=X, label=Y, levels=None, **others) -> dict:
    split = Split(x, None if label is None else Condition(label=label), levels)
    return dict.fromkeys(("train", "val", "test"), split) | others


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (
            splits(X * 1e6),
            ["train: values: absolute values up to ", "e+05; must be at most 100", "`largest`"],
        ),
        (splits((255 * X).byte()), ["must be at most 100"]),
        (
            splits((17 * X).long() + 1, levels=17),
            ["values: range 1 to 17; must be whole numbers from 0 to 16"],
        ),
        (
            splits(X, levels=17),
            ["float32; must be whole numbers from 0 to 16 as torch.int64 or torch.uint8"],
        ),
        (splits(X.numpy()), ["values: a ndarray; must be a torch.Tensor"]),
        (splits(X[:, :1]), ["values: shape (40, 1); must be (40, 2)"]),
        (splits(label=Y + 1), ["label: range 1 to 3; must be whole numbers from 0 to 2"]),
        (splits(label=Y.float()), ["label: torch.float32; must be whole numbers from 0 to 2"]),
        (splits(label=Y.byte()), ["label: torch.uint8; must be whole numbers from 0 to 2 as"]),
        (splits(label=Y[:-1]), ["label: shape (39,); must be (40,)"]),
        (splits(label=Y.numpy()), ["label: a ndarray; must be a torch.Tensor"]),
        (splits(label=None), ["no label; each item needs one"]),
        ({"train": splits()["train"]}, ["val: load() returns no Split of this name"]),
        (splits(val=X), ["val: load() returns no Split of this name"]),
        (splits(train=Split(X[:0], Condition(label=Y[:0]))), ["train: no items"]),
    ],
)
def test_check_contract_refuses_malformed_splits(held, words):
    data = Held()
    data.splits = held
    data.levels = held["train"].levels
    one_refused(lambda: check_splits_match_declaration(data), "data own: ", *words)


def test_a_mistyped_class_of_ones_own_is_refused(lab):
    with pytest.raises(UserError, match=r"own_faults defines no class of that name$"):
        import_class("own_faults.Pointss", "model.network")
    node = {"_target_": "triptych.diffusion.loss.Squared", "space": {"_target_": "own_faults.Blur"}}
    with pytest.raises(
        UserError, match=r"^objective\.loss\.space\._target_=own_faults\.Blur: own_faults"
    ):
        build(node, "objective.loss")


def test_user_module_with_syntax_error_names_file_and_line(refused, lab):
    lab.write_text("import torch\n\ndef broken(:\n")
    line = refused(own("denoiser.network", "Net"))
    assert (
        "denoiser.network._target_=own_faults.Net: cannot be imported: " in line
        and f"({lab}:3)" in line
    )
