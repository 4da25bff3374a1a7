"""``trained=DIR``: the model of a finished run, drawn from in other ways, and never trained again."""

import json

import pytest
import torch

from triptych.errors import UserError
from triptych.run.execute import execute

RING = (
    "data=ring denoiser=mlp objective=v schedule=cosine process=ve data.test_size=200 data.train_size=500 "
    "data.val_size=50"
).split()


@pytest.fixture
def source(finished):
    """A finished run of a small network on the ring."""
    return finished(*RING, path="source")


def test_model_and_bound_are_the_other_runs_and_the_drawing_is_its_own(source, prepared, inside, root):
    own = ("sampler=heun", "sampler.steps=4", "measures.n=50")
    run = prepared(f"trained='{source.path}'", *own, path="other")
    theirs, ours = source.summary(), execute(run)
    assert ours["test"] == theirs["test"] and ours["steps"] == theirs["steps"] == 6
    said = [ours["choices"][group] for group in ("data", "objective", "schedule", "process", "sampler")]
    assert said == ["ring", "v", "cosine", "ve", "heun"]
    assert theirs["choices"]["sampler"] != "heun" and ours["measures"]["sliced_wasserstein"]["n"] == 50
    assert not (run / "metrics.csv").exists() or "train/loss" not in (run / "metrics.csv").read_text()
    again = torch.load(run / "samples" / "final.pt", weights_only=True)["x"]
    assert not torch.equal(again, torch.load(source / "samples" / "final.pt", weights_only=True)["x"])
    # and it stands alone: its own checkpoint gives its figures, also when the other run is gone
    source.path.rename(source.path.with_name("gone"))
    done = inside("triptych.cli.evaluate", f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "out=e.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "e.json").read_text()) == ours["test"]


def test_refusals(source, prepared, root):
    told, other = f"trained='{source.path}'", prepared(path="unfinished")
    for typed, words in (
        (
            [told, "objective=x0"],
            "objective=x0: the model is that of trained=.*; beside it pass keys of sampler",
        ),
        ([told, "bound.repeats=3"], "bound.repeats=3: the model is that of trained="),
        (["trained=/nowhere"], "trained=/nowhere: no run; pass the directory of a finished run"),
        ([f"trained='{other.path}'"], "trained=.*unfinished: the run there is interrupted; "),
    ):
        with pytest.raises(UserError, match=f"^{words}"):
            prepared(*typed, path="x")
    last = source / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"^trained=.*last.ckpt: damaged, truncated"):
        prepared(told, path="x")
    assert not (root / "logs" / "runs" / "x").exists()
