"""User-defined metrics: beside the bound in every record, without any effect on training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import triptych
from tests.refusal import refused
from tests.run.accidents import rows
from triptych.callbacks.metrics import Metrics, _item_metric
from triptych.config.check import check_metric_names
from triptych.config.file import read_config
from triptych.data.batch import Batch
from triptych.data.build import build_data
from triptych.diffusion.condition import Condition
from triptych.diffusion.draws import Stream, hash_seed
from triptych.errors import UserError
from triptych.models.metric import PerItem
from triptych.run.directory import write_atomic
from triptych.run.execute import execute
from triptych.run.untrusted import read_checkpoint

SIZES = "data.train_size=60 data.val_size=20 data.test_size=30 data.eval_batch_size=8"
RING = f"data=ring denoiser=mlp {SIZES}".split()
LAB = """
import torch
from torchmetrics import MeanMetric
from triptych.models.metric import PerItem

class Squares(PerItem):
    higher_is_better = False
    def values(self, model, batch):
        return batch.x.square().sum(1)

class Largest(MeanMetric):
    def update(self, model, batch):
        super().update(batch.x.amax(1))

class Half(PerItem):
    def values(self, model, batch):
        return torch.where(batch.index % 2 == 0, batch.x[:, 0], torch.nan)

class Excess(PerItem):
    def values(self, model, batch):
        return model.elbo(batch, 0, 1).total

class Careless(PerItem):
    '''Draws, and seeds the generator that dropout draws from.'''
    def values(self, model, batch):
        drawn = torch.randn(len(batch.x))
        torch.manual_seed(0)
        return drawn
"""


@pytest.fixture
def lab(trusting):
    return trusting("metric_lab", LAB)


def test_own_metrics_are_recorded_and_do_not_change_training(lab, prepared):
    dropout = "denoiser.network.dropout=0.5"
    plain = prepared(*RING, dropout, path="plain")
    run = prepared(*RING, dropout, path="measured")
    named = {
        name: name.capitalize() for name in ("squares", "largest", "careless", "half", "excess")
    }
    config = read_config(run / "config.yaml")
    config["metrics"] = {name: {"_target_": f"metric_lab.{kind}"} for name, kind in named.items()}
    write_atomic(run / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    without, said = execute(plain), execute(run)
    assert said["test"]["half"]["n"] == 15

    data = build_data(config)
    for split, n in (
        ("train", 30),
        ("val", 20),
        ("test", 30),
    ):  # of the training items as many as test
        x = data.splits[split].values[:n].double().numpy()
        squares = np.square(x).sum(1)
        figure = said[split]["squares"]
        assert figure["n"] == n and figure["mean"] == pytest.approx(squares.mean(), rel=1e-6)
        assert figure["stderr"] == pytest.approx(squares.std(ddof=1) / np.sqrt(n), rel=1e-6)
        assert said[split]["largest"] == {
            "mean": pytest.approx(x.max(1).mean(), rel=1e-5), "stderr": None, "n": n
        }  # fmt: skip
    assert said["metrics"] == {
        "squares": "lower",
        "largest": "",
        "careless": "",
        "half": "",
        "excess": "",
    }
    table = rows(run)
    validated = [
        float(row["val/squares"]) for row in table if row["val/squares"]
    ]  # at steps 3 and 6
    assert validated == pytest.approx([said["val"]["squares"]["mean"]] * 2, rel=1e-6)
    assert float(table[-1]["test/squares"]) == pytest.approx(
        said["test"]["squares"]["mean"], rel=1e-6
    )

    assert said["test"]["nats_per_dim"] == without["test"]["nats_per_dim"]
    assert (said["noise_levels"], said["estimator"]) == (
        without["noise_levels"],
        without["estimator"],
    )
    ours, theirs = (
        read_checkpoint(r / "checkpoints" / "last.ckpt")["state_dict"] for r in (run, plain)
    )
    assert all(ours[name].equal(value) for name, value in theirs.items())

    again = triptych.load(run.path).evaluate("test")
    assert {name: again[name] for name in named} == {name: said["test"][name] for name in named}


def updated(**metrics):
    """Evaluate two linear layers on a batch of ones with Lightning; return each metric's sum."""
    model = torch.nn.Linear(2, 2).eval()
    model.device, model.global_rank, model.seed = torch.device("cpu"), 0, 0
    with torch.inference_mode():
        batch = Batch(torch.ones(3, 2), Condition(label=torch.ones(3).long()), torch.arange(3))
        Metrics(metrics).on_validation_batch_end(None, model, None, batch, 0)
    return {name: metric.sums[0, 1].item() for name, metric in metrics.items()}


def test_in_place_change_by_metric_does_not_reach_other_metrics():
    class Blank(PerItem):
        def values(self, model, batch):
            batch.condition.label.mul_(0)
            return batch.x.mul_(0)[:, 0]

    class Sum(PerItem):
        def values(self, model, batch):
            return batch.x[:, 0] + batch.condition.label

    assert updated(a=Blank(), b=Sum()) == {"a": 0, "b": 6}


class Touch(PerItem):
    def __init__(self, touch):
        super().__init__()
        self.touch = touch

    def values(self, model, batch):
        self.touch(model)
        return batch.x[:, 0]


def test_training_mode_that_a_metric_sets_is_not_seen_by_others():
    modes = []

    def touch(model):
        modes.append(model.training)
        model.train()

    updated(x=Touch(touch), y=Touch(touch))
    assert modes == [False, False]


class Given(PerItem):
    """A metric with the values that a test gives."""

    def __init__(self, *found):
        super().__init__()
        self.found = list(found)

    def values(self, model, batch):
        return torch.tensor(self.found.pop(0))


def seen(metric, *sizes):
    for n in sizes:
        metric.update(None, Batch(torch.zeros(n, 2), None, torch.arange(n)))
    return metric.compute()


def test_per_item_metric_ignores_nan_and_batch_size():
    nan = float("nan")
    whole = seen(Given([1.0, 2.0, nan, 6.0]), 4)
    assert whole == {
        "mean": 3.0,
        "stderr": pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3)),
        "n": 3,
    }
    assert seen(Given([1.0], [2.0, nan, 6.0]), 1, 3) == whole
    assert seen(Given([nan]), 1) == {"mean": None, "stderr": None, "n": 0}


def test_per_item_metric_refuses_wrong_shape():
    words = "Given.values returned shape (2,); must be a tensor of shape (3,), one number per item"
    refused(lambda: seen(Given([1.0, 2.0]), 3), words, error=ValueError)


@pytest.mark.parametrize("name", ["bpd", "nats_per_dim_ode", "gap", "a.b", ""])
def test_invalid_or_reserved_metric_name_is_refused(name):
    with pytest.raises(UserError, match=f"metrics.{name}: (must be|a built-in metric)"):
        check_metric_names([name])
    with pytest.raises(UserError, match=f"metrics.{name}: "):
        Metrics({name: Given()})


@pytest.mark.parametrize("found", [torch.zeros(2), None, {"mean": 1.0}])
def test_metric_compute_refuses_non_numeric_result(found):
    refused(
        lambda: _item_metric("x", found, 3),
        "metrics.x: compute() returned ",
        "; must be a number, or a dict of",
    )


def test_metric_noise_differs_by_rank_and_rank_zero_matches_one_process():
    class Drawn(PerItem):
        def values(self, model, batch):
            return torch.randn(len(batch.x))

    found, batch = [], Batch(torch.zeros(5, 2), None, torch.arange(5))
    for rank in (0, 1, 2):
        metrics = Metrics({"drawn": Drawn()})
        about = {"device": torch.device("cpu"), "eval": lambda: None, "modules": list}
        module = SimpleNamespace(seed=7, global_rank=rank, **about)
        metrics.on_validation_batch_end(None, module, None, batch, 3)
        found.append(metrics.metrics["drawn"].sums[0, 1].item())
    assert len(set(found)) == 3
    torch.manual_seed(hash_seed(7, Stream.METRICS, 3))
    assert found[0] == pytest.approx(torch.randn(5).double().sum().item())
