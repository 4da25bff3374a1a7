"""Several processes train and evaluate as one does: one directory, and each item once."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.run.accidents import column
from tests.run.commands import command, end, problems
from tests.run.hooks import hook
from triptych.errors import UserError
from triptych.run.execute import execute

LOSS = "train/loss"
LONG = ["trainer.max_steps=50", "trainer.val_check_interval=25"]


def relative(one: float, other: float) -> float:
    return abs(one - other) / abs(one)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run on one process, shared by the tests below."""
    root = tmp_path_factory.mktemp("single")
    end(command("name=one", *LONG), root)
    return root / "logs" / "runs" / "one"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_ddp_loss_curve_matches_one_process(root, single, devices):
    end(command("name=many", "trainer=ddp_sim", f"trainer.devices={devices}", *LONG), root)
    folder = root / "logs" / "runs" / "many"
    assert [p.name for p in folder.parent.iterdir()] == ["many"]
    one, many = (column(path, LOSS) for path in (single, folder))
    assert len(one) == len(many) == 50
    worst = max(relative(a, b) for a, b in zip(one, many, strict=True))
    print(
        f"{devices} processes: largest relative difference of the loss {worst:.1e}", file=sys.stderr
    )
    assert worst < 1e-4
    first, second = (json.loads((p / "summary.json").read_text()) for p in (single, folder))
    assert (first["world_size"], second["world_size"]) == (1, devices)
    for split in ("train", "val", "test"):
        assert first[split]["bpd"]["n"] == second[split]["bpd"]["n"]
        assert relative(first[split]["bpd"]["mean"], second[split]["bpd"]["mean"]) < 1e-3


def check_bound(folder, root, devices: int, precision: float) -> None:
    """297 items are divisible by 3, not by 2; batches have 500 or 64 items."""
    known = json.loads((folder / "summary.json").read_text())["test"]
    line = [sys.executable, "-m", "triptych.cli.evaluate", f"ckpt={folder}/checkpoints/last.ckpt"]
    more = [
        f"devices={devices}",
        "batch_size=64",
        f"out={root}/out.json",
        f"items={root}/items.npz",
    ]
    end([*line, *more], root)
    found = json.loads((root / "out.json").read_text())
    for key, figure in known.items():
        assert found[key]["n"] == figure["n"] == 297
        assert relative(figure["mean"], found[key]["mean"]) < precision, key
        assert relative(figure["stderr"], found[key]["stderr"]) < precision, key
    with np.load(root / "items.npz") as here, np.load(folder / "items.npz") as there:
        assert (here["index"] == there["index"]).all() and {*here.files} == {*there.files}
        for name in here.files:
            np.testing.assert_allclose(here[name], there[name], rtol=20 * precision)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_evaluate_with_devices_matches_one_process(root, single, devices):
    check_bound(single, root, devices, 1e-6)


COUNT = """
import os
from triptych.data.order import TrainLoader
batch = TrainLoader.batch
def counted(loader, step):
    found = batch(loader, step)
    with open(f"{os.environ['COUNTS']}/{os.getpid()}", "a") as file:
        print(loader.world, step, *found.index.tolist(), file=file)
    return found
TrainLoader.batch = counted
"""


@pytest.mark.slow
def test_sweep_over_devices_trains_on_every_item(root):
    """Usual templates silently train the second of these runs on half of the data."""
    epoch = ["data.batch_size=54", "trainer.max_steps=25", "trainer.val_check_interval=25"]
    line = command("-m", "name=s", "trainer=ddp_sim", "trainer.devices=1,2", *epoch)
    (root / "counts").mkdir()
    end(line, root, COUNTS=str(root / "counts"), **hook(root, COUNT))
    found = {
        path.parent.name: json.loads(path.read_text())
        for path in (root / "logs").rglob("summary.json")
    }
    assert sorted(s["world_size"] for s in found.values()) == [1, 2] and len(found) == 2
    assert len(list((root / "logs" / "sweeps").iterdir())) == 1
    seen: dict[int, list[list[int]]] = {}  # {number of processes: the items that each has seen}
    for path in (root / "counts").iterdir():
        steps = [[int(word) for word in line.split()] for line in path.read_text().splitlines()]
        world = steps[-1][0]  # the first line is of the check before training, which has no shares
        items = {step: items for shared, step, *items in steps if shared == world and step < 25}
        seen.setdefault(world, []).append([item for one in items.values() for item in one])
    assert sorted(seen) == [1, 2] and len(seen[1]) == 1 and len(seen[2]) == 2
    for shares in seen.values():
        assert sorted(item for share in shares for item in share) == list(range(1350))
    assert not set(seen[2][0]) & set(seen[2][1])


@pytest.mark.slow
def test_torchrun_makes_one_directory(root, single):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    line = [*torchrun, "-m", *command("name=many", "trainer=ddp_sim", *LONG)[2:]]
    done = end(line, root)
    assert done.stdout.count("test bound") == 1
    folder = root / "logs" / "runs" / "many"
    assert [p.name for p in folder.parent.iterdir()] == ["many"]
    assert json.loads((folder / "summary.json").read_text())["world_size"] == 2
    assert (
        max(relative(a, b) for a, b in zip(column(single, LOSS), column(folder, LOSS), strict=True))
        < 1e-4
    )
    again = end(line, root)
    assert "finished before" in again.stdout
    nameless = [*torchrun, "-m", *command("trainer=ddp_sim")[2:]]
    assert (
        "name=null: all processes need one shared directory" in end(nameless, root, code=1).stderr
    )


OF_THE_BATCH = {  # (overrides, relative difference of the loss at most)
    "interior": (["schedule=learned"], 1e-5),
    # Some levels have free bits at some steps and not at others.
    "hierarchical VAE": (["model=hierarchical_vae", "model.importance_samples=0"], 1e-5),
    "adaptive times": (["objective/times=adaptive", "objective.times.bins=4"], 1e-4),
    "latents": (["model=latent_diffusion"], 1e-4),
    # 3 items a process, so that most hold none of some member's
    "members": (
        ["+denoiser.network.members=8", "data.batch_size=9", "trainer.accumulate_grad_batches=2"],
        1e-4,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OF_THE_BATCH)
def test_ddp_losses_of_whole_batch_match_one_process(root, kind, devices=3):
    """The mean of one rank alone gave the interior a gradient that was wrong by 14%."""
    options, precision = OF_THE_BATCH[kind]
    for several in (["name=one"], ["name=many", "trainer=ddp_sim", f"trainer.devices={devices}"]):
        line = command(*several, *LONG, "samples.n=0", "data.batch_size=60", *options)
        if kind in ("hierarchical VAE", "latents"):  # the tiny network's keys are another's
            line.append("model.network.width=8")
        other = ("denoiser.", "sampler.steps") if kind == "hierarchical VAE" else ()
        end([o for o in line if not o.startswith(other)], root)
    one, many = (column(root / "logs" / "runs" / name, LOSS) for name in ("one", "many"))
    assert len(one) == len(many) == 50
    worst = max(relative(a, b) for a, b in zip(one, many, strict=True))
    print(f"{kind}, {devices} processes: {worst:.1e}", file=sys.stderr)
    assert worst < precision
    if kind == "latents":
        check_bound(root / "logs" / "runs" / "one", root, devices, 1e-5)


@pytest.mark.slow
def test_ddp_prints_only_the_result(root):
    done = end(command("name=many", "trainer=ddp_sim"), root)
    said = [*done.stdout.splitlines(), *problems(done.stderr)]
    data, bound, run = said
    assert (
        data.startswith("data: ") and bound.startswith("test bound") and run.startswith("run: ")
    ), said


@pytest.mark.parametrize(
    "override, match",
    [
        (
            "data.batch_size=64",
            r"data\.batch_size=64: must be a multiple of the number of processes, 3",
        ),
        ("data.val_size=2", r"trainer\.devices: 3 processes for 2 val items; use fewer processes"),
    ],
)
def test_indivisible_batch_or_split_is_refused_before_ddp_launch(
    prepared, monkeypatch, override, match
):
    """A process without a validation batch would skip sums for which the others wait."""
    run, launched = (
        prepared("trainer=ddp_sim", "trainer.devices=3", "data.batch_size=63", override),
        [],
    )
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: launched.append(a))
    with pytest.raises(UserError, match=match):
        execute(run)
    assert not launched
