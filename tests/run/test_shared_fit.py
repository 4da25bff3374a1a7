"""Runs of a sweep that train the same network share one fit, with equal results."""

import json
from dataclasses import replace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.run.accidents import Accident, at_call, stumble, table
from triptych.models.diffusion import Diffusion
from triptych.run import initialization, shared_fit
from triptych.run.checkpoints import save_checkpoint
from triptych.run.execute import execute
from triptych.run.provenance_file import Provenance
from triptych.run.read import read_run
from triptych.run.untrusted import OWN, read_checkpoint
from triptych.study.rounds import split_by_fit

BASE = ("callbacks.ema.others=[0.1]", "callbacks.ema.snapshots=2", "checkpoint=best")
DDIM = (*BASE, "sampler=ddim", "sampler.steps=3", "samples.pictures=1")
SMALL = (
    *(
        "experiment=ring",
        "data.train_size=64",
        "data.val_size=10",
        "data.test_size=10",
        "data.batch_size=32",
    ),
    *("samples.n=0", "bound.repeats=1", "denoiser.network.width=8"),
)  # enough to see whether a run trains
TIMES = {"seconds", "cost", "ended", "started", "id"}


@pytest.fixture
def sweep(prepared, monkeypatch):
    """``sweep("a", ...)``: prepare a run of one sweep, and return it with the steps it trained."""
    steps = []
    original = Diffusion.training_step
    monkeypatch.setattr(Diffusion, "training_step", lambda *a: steps.append(1) or original(*a))

    def run(name: str, *overrides: str, begin: bool = True, **how: bool):
        small = () if any(one.startswith("callbacks") for one in overrides) else SMALL
        made = prepared(*small, *overrides, path=name, **how)
        (made.path.parent / "sweep.json").write_text("{}")
        monkeypatch.setenv(OWN, str(made.path))
        steps.clear()
        return (execute(made), made, len(steps)) if begin else made

    return run


def plain(result) -> dict:
    return {key: value for key, value in result.record.items() if key not in TIMES}


def test_shared_fit_gives_same_result_as_training(sweep, root):
    alone, there, steps = sweep("ddim", *DDIM)
    assert steps == 6
    there.path.rename(root / "alone")
    (root / "logs" / "runs" / ".fits").rename(root / "fits")
    assert sweep("ancestral", *BASE)[2] == 6
    shared, here, steps = sweep("ddim", *DDIM)
    assert steps == 0 and "ancestral" in (here / "train.log").read_text()
    assert here.provenance.fit_of == "ancestral" and shared.seconds["fit"] > 0
    own = shared.seconds["test"] + shared.seconds["samples"]
    assert read_run(here.path).computing_seconds == own > 0, "estimates of time count a fit once"
    assert plain(shared) == plain(alone)
    there.path = root / "alone"
    assert table(here) == table(there)
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        ours, theirs = read_checkpoint(here / name), read_checkpoint(there / name)
        assert ours["triptych"]["config"] == theirs["triptych"]["config"], (
            "it is sampled from by its own"
        )
        assert all(torch.equal(v, theirs["state_dict"][k]) for k, v in ours["state_dict"].items())
    drawn = [
        torch.load(run / "samples" / "final.pt", weights_only=True)["x"] for run in (here, there)
    ]
    assert torch.equal(*drawn)
    assert len([*(here / "averages").iterdir()]) == len([*(there / "averages").iterdir()]) > 0


@pytest.mark.parametrize("other", ["objective=v", "weights=raw"])
def test_other_objective_or_weights_do_not_share_fit(sweep, other):
    sweep("first")
    assert sweep("second", other)[2] == 6


def test_interrupted_copy_of_shared_fit_resumes_training(sweep, monkeypatch):
    sweep("first", *BASE)
    half = sweep("half", *DDIM, begin=False)
    with monkeypatch.context() as patch, pytest.raises(Accident):
        patch.setattr(shared_fit, "save_checkpoint", lambda *a: (save_checkpoint(*a), stumble()))
        execute(half)
    assert [path.name for path in half.checkpoints()] == ["best.ckpt"]
    assert plain(execute(half)) == plain(sweep("whole", *DDIM)[0])


@pytest.mark.parametrize("name", ["link", "../runs/first", "strange"])
def test_planted_fit_entry_is_not_followed(sweep, name):
    _, first, _ = sweep("first")
    runs = first.path.parent
    (runs / "link").symlink_to(first.path)
    (runs / "strange").mkdir()
    (runs / "strange" / "config.yaml").write_text("data: {_target_: .x}\n")
    [entry] = (runs / ".fits").iterdir()
    entry.write_text(json.dumps({"run": name}))
    second, here, steps = sweep("second", "sampler=ddim")
    assert steps == 6 and second.status == "finished" and not here.provenance.fit_of


def damage(first):
    (first / "checkpoints" / "last.ckpt").write_bytes(b"PK")


def link(first):
    (first / "metrics.csv").unlink()
    (first / "metrics.csv").symlink_to("/etc/hostname")


@pytest.mark.parametrize("accident", [damage, link])
def test_damaged_or_linked_fit_is_not_copied(sweep, accident):
    accident(sweep("first")[1])
    second, here, steps = sweep("second", "sampler=ddim")
    assert steps == 6 and second.status == "finished" and not here.provenance.fit_of


def test_other_data_or_init_from_do_not_share_fit(sweep, finished, monkeypatch):
    begin = f"init_from='{finished(*SMALL, 'seed=7', path='before').path}'"
    sweep("first", begin)
    assert sweep("second", begin, "sampler=ddim")[2] == 6, "what lies there may be another by now"
    sweep("third")
    known = initialization.fingerprint
    monkeypatch.setattr(
        initialization, "fingerprint", lambda data: replace(known(data), data="others")
    )
    assert sweep("fourth", "sampler=ddim")[2] == 6


def test_fit_resumed_with_changed_data_is_not_shared(sweep, monkeypatch):
    first = sweep("first", begin=False)
    with monkeypatch.context() as patch, pytest.raises(Accident):
        at_call(patch, "training_step", 5, stumble)  # after a checkpoint
        execute(first)
    known = initialization.fingerprint
    monkeypatch.setattr(
        initialization, "fingerprint", lambda data: replace(known(data), data="others")
    )
    assert execute(first).data_changed
    assert sweep("second", "sampler=ddim")[2] == 6


def test_fit_entry_of_restarted_run_is_not_used(sweep, monkeypatch):
    git = {"commit": "1"}
    monkeypatch.setattr(Provenance, "code", property(lambda provenance: git))
    sweep("first")
    git["commit"] = "2"
    assert sweep("first", "force=true")[2] == 6, "by other code"
    git["commit"] = "1"
    assert sweep("second", "sampler=ddim")[2] == 6, "what lies there is of the other code"


def test_run_finishes_if_fit_entry_cannot_be_written(sweep):
    first = sweep("first", begin=False)
    (first.path.parent / ".fits").touch()
    assert execute(first).status == "finished"


def test_shared_fit_copies_memory_and_curves(sweep):
    sweep("first", "logger=tensorboard", csv=False)
    [entry] = (sweep("other", "seed=3", begin=False).path.parent / ".fits").iterdir()
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"memory": 2.0**50}))
    second, here, steps = sweep("second", "sampler=ddim", "logger=tensorboard", csv=False)
    assert steps == 0 and second.cost["memory"] == 2.0**50
    third, there, steps = sweep("third", "sampler=heun", "logger=tensorboard", csv=False)
    assert steps == 0 and third.cost["memory"] == 2.0**50 and there.provenance.fit_of == "first"
    events = EventAccumulator(str(here / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [*range(6)]
    assert [e.step for e in events.Scalars("val/nats_per_dim")] == [3, 6]


def test_fit_entry_is_not_written_through_link(sweep, root):
    (root / "outside").mkdir()
    first = sweep("first", begin=False)
    (first.path.parent / ".fits").symlink_to(root / "outside")
    execute(first)
    assert not [*(root / "outside").iterdir()]


def test_shared_fit_is_used_only_in_own_sweep(sweep, prepared, monkeypatch):
    sweep("first")
    run = sweep("second", "sampler=ddim", begin=False)
    monkeypatch.setenv(OWN, "elsewhere")  # as by triptych-train resume=DIR
    at_call(monkeypatch, "training_step", 1, stumble)
    with pytest.raises(Accident):
        execute(run)


def test_fits_first_orders_one_run_per_fit_first():
    jobs = [
        [f"sampler={s}", "model.width=3", f"seed={n}"]
        for n in (1, 2)
        for s in ("ddim", "heun", "edm")
    ]
    assert split_by_fit(jobs) == ([jobs[0], jobs[3]], [*jobs[1:3], *jobs[4:]])
    named = [[f"setting={name}", *brought, "seed=1"] for name, brought in (
        ("a", ["threshold=none", "+sampler.eta=1"]), ("b", ["measures.n=9"]), ("c", ["objective=v"])
    )]  # fmt: skip
    assert split_by_fit(named) == ([named[0], named[2]], [named[1]])
    other = [[f"objective={o}", f"seed={n}"] for n in (1, 2) for o in ("x0", "v")]
    assert split_by_fit(other) == (other, [])


def test_shared_fit_keeps_early_stop(sweep):
    early = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    early += ["optimizer.lr=5.0", "trainer.max_steps=30"]
    one, there, steps = sweep("first", *early)
    assert steps < 30
    other, here, steps = sweep("second", *early, "sampler=ddim")
    assert steps == 0 and other["steps"] == one["steps"] and table(here) == table(there)
