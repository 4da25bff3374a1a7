"""The key ``draws``: a run records its stream of random numbers, and keeps to it everywhere."""

import json

import pytest
import torch

from tests import forked
from tests.run.accidents import Accident, at_call, column, stumble, table
from tests.run.commands import command, environment, evaluated
from triptych.data import order
from triptych.diffusion.block_draws import STREAMS
from triptych.run.checkpoints import save_checkpoint
from triptych.run.draws import choose_draws
from triptych.run.execute import execute
from triptych.run.untrusted import read_checkpoint

LOSS = "train/loss"
BLOCKS = "draws=blocks"
FLIP = "augmentation=flip"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# Evaluation of latents differs between the streams on the CPU, too.
LATENTS = ("model=vae", "model.network.width=8", "model.importance_samples=4")


def last(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("key", "device", "name"),
    [
        ("auto", CPU, "batch"),
        ("auto", CUDA, "blocks"),
        ("batch", CUDA, "batch"),
        ("blocks", CPU, "blocks"),
    ],
)
def test_key_and_device_choose_the_stream(prepared, key, device, name):
    run = prepared(f"draws={key}")
    config = run.config()
    assert choose_draws(run, config, None, device) is STREAMS[name]
    for recorded in STREAMS.values():
        assert choose_draws(run, config, recorded, device) is recorded
    if key == "auto":
        del config["draws"]  # a configuration of an earlier version
        assert choose_draws(run, config, None, device) is STREAMS[name]


def test_evaluation_of_a_run_has_the_stream_of_its_training(prepared):
    run, usual = prepared(*LATENTS, BLOCKS, path="run"), prepared(*LATENTS, path="usual")
    found, other = execute(run), execute(usual)
    assert (found["draws"], other["draws"]) == ("blocks", "batch")
    assert (last(run)["triptych"]["draws"], last(usual)["triptych"]["draws"]) == (
        "blocks",
        "batch",
    )
    assert not set(column(run, LOSS)) & set(column(usual, LOSS))
    assert evaluated(run.path) == found["test"]
    again = execute(prepared(f"trained={run.path}", "samples.n=0", path="again", tiny=False))
    assert again["test"] == found["test"] and again["draws"] == "blocks"
    # Without a record, as in checkpoints of earlier versions, it is the stream of that time.
    content = last(run)
    del content["triptych"]["draws"]
    save_checkpoint(content, run.path.parent / "older.ckpt")
    assert evaluated(run.path.parent / "older.ckpt") != found["test"]


def test_a_killed_run_goes_on_with_its_stream(prepared, monkeypatch):
    """On the CPU ``auto`` would choose the other stream."""
    drawn = record_flips(monkeypatch)
    whole, broken = (prepared(BLOCKS, FLIP, path=path) for path in ("whole", "broken"))
    execute(whole)
    with monkeypatch.context() as patch:
        at_call(patch, "training_step", 6, stumble)
        with pytest.raises(Accident):
            execute(broken)
    assert last(broken)["global_step"] == 3
    resumed = prepared("draws=batch", "retry=true", FLIP, path="broken")
    assert execute(resumed)["draws"] == "blocks"
    assert table(resumed) == table(whole)
    line = "draws=batch: not used, as the checkpoint was trained with draws=blocks; pass force=true"
    assert line in (resumed / "train.log").read_text()
    states = [last(run)["state_dict"] for run in (whole, resumed)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert {*drawn} == {"blocks"}


def record_flips(patch):
    """Return a list that gets the name of the stream of each augmented batch."""
    augment, names = order.augment_batch, []

    def recorded(*arguments):
        names.append(arguments[-1].name)
        return augment(*arguments)

    patch.setattr(order, "augment_batch", recorded)
    return names


def run_on(devices: int, root):
    """Train with draws in blocks, 24 items a step, on so many processes."""
    line = command(f"name=on{devices}", BLOCKS, FLIP, "data.batch_size=24")
    if devices > 1:
        line += ["trainer=ddp_sim", f"trainer.devices={devices}"]
    forked.run(line, environment(root), check=True)
    folder = root / "logs" / "runs" / f"on{devices}"
    assert json.loads((folder / "summary.json").read_text())["world_size"] == devices
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return run_on(1, tmp_path_factory.mktemp("single"))


@pytest.mark.parametrize("devices", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 4))])
def test_losses_bound_and_samples_are_those_of_one_process(root, single, devices):
    """Shares of 12, 8 and 6 items begin and end within blocks."""
    several = run_on(devices, root)
    losses = column(single, LOSS), column(several, LOSS)
    assert len(losses[0]) == 6 and losses[1] == pytest.approx(losses[0], rel=1e-5)
    bounds = [
        json.loads((run / "summary.json").read_text())["test"]["bpd"] for run in (single, several)
    ]
    assert bounds[0]["n"] == bounds[1]["n"]
    assert bounds[1]["mean"] == pytest.approx(bounds[0]["mean"], rel=1e-5)
    samples = [torch.load(run / "samples" / "final.pt")["x"] for run in (single, several)]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-3, atol=1e-4)
