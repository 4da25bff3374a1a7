"""Another run's model: ``init_from=`` trains on from its weights, ``trained=`` only samples."""

import json
import shutil

import pytest
import torch
import yaml
from torch import nn

from tests.refusal import refused
from tests.run.accidents import stop_after
from triptych.cli.arguments import read_command_line
from triptych.config.compose import compose_command, unresolved_config
from triptych.data.build import Fingerprint
from triptych.errors import UserError
from triptych.run.averaging import averages
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.initialization import initialise, read_other_checkpoint
from triptych.run.leakage import data_record
from triptych.run.untrusted import read_checkpoint

STILL = (
    "optimizer.lr=1e-30",
    "optimizer.weight_decay=0",
)  # so small that no single precision weight moves
FEW = ("trainer.max_steps=2", "trainer.val_check_interval=2", "bound.repeats=1", "samples.n=0")
RING = (
    "data=ring",
    "denoiser=mlp",
    "data.test_size=50",
    "data.train_size=500",
    "data.val_size=50",
    *FEW,
)


def test_init_partial_takes_matching_tensors_and_reports_the_rest(tmp_path, capsys):
    """Schedule and loss stay the run's own; a constant without parameters is not copied."""

    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("beta", torch.full((3,), value))

    class Learned(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(value))

    def model(value, width, **more):
        layers = {
            "a": nn.Linear(2, 3),
            "b": nn.Linear(3, width),
            "norm": nn.BatchNorm1d(3, affine=True),
        }
        return nn.ModuleDict(
            layers | {"process": Constant(value), "schedule": Learned(value)} | more
        )

    theirs = model(1.0, 5, old=nn.Linear(1, 1))
    ours = model(2.0, 4, new=nn.Linear(1, 1), loss_module=Learned(2.0))
    theirs["norm"].running_mean.fill_(7.0)
    average = {"a.weight": torch.full((3, 2), 9.0)}
    found = {
        "state_dict": theirs.state_dict(),
        "callbacks": {"EMA": {"name": "sigma_rel_0.05", "average": average, "others": {}}},
        "global_step": 12,
        "triptych": {"config": {"weights": "ema"}},
    }
    run = RunDirectory(tmp_path)
    with pytest.raises(
        UserError, match=r"^init_from=/x: only 7 of 11 tensors match.*init_partial=true"
    ):
        initialise(run, {"init_from": "/x"}, ours, found)
    assert not (ours["a"].weight == 9).any()
    initialise(run, {"init_from": "/x", "init_partial": True}, ours, found)
    assert (ours["a"].weight == 9).all() and torch.equal(ours["a"].bias, theirs["a"].bias)
    assert (ours["norm"].running_mean == 7).all() and (ours["process"].beta == 2).all()
    assert ours["schedule"].shift == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        "init_from=/x: 7 of 11 tensors copied (step 12, weights sigma_rel_0.05); "
        "not copied: b.weight, b.bias, new.weight and 1 more"
    )
    told = run.provenance.record["init_from"]
    assert len(told["taken"]) == 7 and told["step"] == 12
    # The source is known by all its weights, whichever of them match.
    first = run.provenance.source_digest
    initialise(run, {"init_from": "/x", "init_partial": True}, model(3.0, 9), found)
    assert (run.provenance.source, run.provenance.source_digest) == ("/x", first)
    average["a.weight"][0, 0] = 8.0  # The other run has been trained again.
    initialise(run, {"init_from": "/x", "init_partial": True}, ours, found)
    assert run.provenance.source_digest != first
    other = nn.ModuleDict({"a": nn.Linear(7, 7)})
    with pytest.raises(UserError, match=r"^init_from=/x: only 0 of 2 tensors match.*same network"):
        initialise(run, {"init_from": "/x", "init_partial": True}, other, found)


def test_init_from_uses_reported_weights_of_other_run(prepared, capsys):
    execute(source := prepared(*RING, "trainer.max_steps=4", path="source"))
    average = next(iter(averages(read_checkpoint(source / "checkpoints" / "last.ckpt")).values()))
    capsys.readouterr()
    run = prepared(*RING, *STILL, f"init_from='{source.path}'", "seed=2", path="whole")
    execute(run)
    found = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in average.items())
    n = len(average)
    line = capsys.readouterr().err.splitlines()[0]
    assert (
        line
        == f"init_from={source.path}: {n} of {n} tensors copied (step 4, weights sigma_rel_0.05)"
    )
    # The checkpoint in init_from is part of a run's identity.
    refused(
        lambda: prepared(*RING, *STILL, "seed=2", path="whole"), "holds another run ", "init_from: "
    )


def test_init_from_refuses_missing_foreign_or_unfinished_run(prepared, root):
    torch.save({"state_dict": {}}, root / "foreign.ckpt")
    for path, words in (
        ("/nowhere", "no such file; pass a run's directory or"),
        (root / "foreign.ckpt", "not written by triptych"),
        (prepared(path="unfinished").path, "the run there is interrupted; finish"),
    ):
        with pytest.raises(UserError, match=f"^init_from={path}: {words}"):
            prepared(f"init_from='{path}'", path="x")
    assert not (root / "logs" / "runs" / "x").exists()


def test_init_from_refuses_weights_trained_on_test_items(monkeypatch):
    def data(name: str, **items: list[int]) -> Fingerprint:
        found = {split: torch.tensor(i) for split, i in items.items()}
        return Fingerprint(name, name, {split: len(i) for split, i in items.items()}, found)

    theirs = data("x", train=[1, 2, 3], val=[4], test=[5])
    found = {"triptych": {"data": data_record(theirs, None)}}
    monkeypatch.setattr("triptych.run.initialization.read_checkpoint", lambda *_: found)
    with pytest.raises(UserError, match=r"data: the model was trained on 1 of the 2 test items"):
        read_other_checkpoint("init_from", "/x", data("y", train=[1, 5], val=[4], test=[3, 6]), "")
    ours = data("z", train=[7, 8], val=[9], test=[10])
    assert read_other_checkpoint("init_from", "/x", ours, "")[0] is found
    # The items of the other run stay recorded, even after a resumed start.
    kept = data_record(ours, None) | {
        "items": data_record(ours, found["triptych"]["data"])["items"]
    }
    again = data_record(ours, kept)
    assert again["items"]["train"].tolist() == [1, 2, 3, 7, 8] and not again["changed"]


@pytest.mark.slow
def test_resume_does_not_need_init_from_source(prepared):
    execute(source := prepared(*RING, path="source"))
    asked = (*RING, f"init_from='{source.path}'", "trainer.max_steps=4")
    whole = execute(prepared(*asked, path="whole"))
    stop_after(prepared(*asked, path="stopped"), 3)
    shutil.rmtree(source.path)
    assert (
        execute(prepared(*asked, path="stopped"))["test"] == whole["test"]
    )  # the same command typed again


# trained=DIR: the model is never trained again.

SOURCE = (
    "data=ring denoiser=mlp objective=v schedule=cosine process=ve data.test_size=200 "
    "data.train_size=500 "
    "data.val_size=50"
).split()


@pytest.fixture
def source(finished):
    """A finished run of a small network on the ring."""
    return finished(*SOURCE, path="source")


def test_trained_run_keeps_model_and_bound_and_uses_own_sampler(source, prepared, inside, root):
    own = ("sampler=heun", "sampler.steps=4", "measures.n=50")
    run = prepared(f"trained='{source.path}'", *own, path="other")
    theirs, ours = source.summary(), execute(run)
    assert ours["test"] == theirs["test"] and ours["steps"] == theirs["steps"] == 6
    said = [
        ours["choices"][group] for group in ("data", "objective", "schedule", "process", "sampler")
    ]
    assert said == ["ring", "v", "cosine", "ve", "heun"]
    assert (
        theirs["choices"]["sampler"] != "heun" and ours["measures"]["sliced_wasserstein"]["n"] == 50
    )
    assert (
        not (run / "metrics.csv").exists() or "train/loss" not in (run / "metrics.csv").read_text()
    )
    again = torch.load(run / "samples" / "final.pt", weights_only=True)["x"]
    assert not torch.equal(
        again, torch.load(source / "samples" / "final.pt", weights_only=True)["x"]
    )
    # A start that was killed at its end resumes with the other run's model and fits nothing.
    (run / "summary.json").unlink()
    assert (
        execute(run)["test"] == ours["test"]
        and "train/loss" not in (run / "metrics.csv").read_text()
    )
    # The run is independent: its own checkpoint gives its figures even if the other run is gone.
    source.path.rename(source.path.with_name("gone"))
    done = inside(
        "triptych.cli.evaluate", f"ckpt={run / 'checkpoints' / 'last.ckpt'}", "out=e.json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((root / "e.json").read_text()) == ours["test"]


def test_cfg_shows_the_other_runs_model_beside_a_trained_model(source, capsys):
    """The output is what the run would record; no key of the other run counts as unused."""
    line = [f"trained='{source.path}'", "sampler=heun"]
    with pytest.raises(SystemExit):
        read_command_line([*line, "--cfg", "job"], "train")
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["denoiser"] == source.config()["denoiser"]
    assert shown["sampler"] == unresolved_config(compose_command("train", line))["sampler"]


def test_trained_refuses_training_keys_and_invalid_runs(source, prepared, root):
    told, other = f"trained='{source.path}'", prepared(path="unfinished")
    for typed, words in (
        (
            [told, "objective=x0"],
            "objective=x0: not allowed, as .*; change only keys of sampler",
        ),
        ([told, "bound.repeats=3"], "bound.repeats=3: not allowed, as trained="),
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
