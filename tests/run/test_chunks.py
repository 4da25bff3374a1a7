"""Measured samples, chunk by chunk: equal on any number of processes, and each drawn once."""

import json
import math
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.run.commands import command, end, environment
from tests.run.hooks import hook
from triptych.diffusion.draws import hash_seed
from triptych.diffusion.measures import Moments
from triptych.diffusion.reverse_variance import Optimal
from triptych.diffusion.sampler import base
from triptych.errors import Interrupted
from triptych.run import chunks
from triptych.run.chunks import FOLDER, Chunks, chunk_seed
from triptych.run.drawing import Drawing
from triptych.run.execute import execute
from triptych.run.measure import _cache_key
from triptych.run.provenance_file import Provenance
from triptych.run.reference import ImageReference, PointReference

from .test_measures_of_runs import RING

SETS = ("measures.n=50", "measures.repeats=2", "measures.over=evaluations", "measures.values=[2,3]")
TRAINED = [key for key in RING if key != "model=oracle"]
CHUNKS = 4 * math.ceil(50 / 16)  # of samples, by 16 points
SMALL = "from triptych.diffusion.sampler import base; base.NUMBERS = 32"


@pytest.fixture
def small(monkeypatch):
    """Make chunks of 32 numbers."""
    monkeypatch.setattr(base, "NUMBERS", 32)


@pytest.fixture
def drawn(monkeypatch):
    """Record the number of items of each call of ``Drawing.samples`` by a measure."""
    sizes, samples = [], Drawing.samples

    def counted(self, n, seed, items=None, *label):
        sizes.extend([n] if items is not None else [])
        return samples(self, n, seed, items, *label)

    monkeypatch.setattr(Drawing, "samples", counted)
    return sizes


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_chunk_is_read_by_one_process_and_all_are_those_of_one(
    small, tmp_path, monkeypatch, world
):
    def items(rows, chunk):
        calls.append(chunk)
        generator = torch.Generator().manual_seed(chunk_seed(chunk, 1, 2))
        return torch.randn(len(rows), 2, generator=generator)

    read, calls, shares = (lambda x: {"x": x}), [], []
    for rank in range(world):
        monkeypatch.setattr(chunks, "rank_world", lambda rank=rank: (rank, world))
        ours, before = Chunks(tmp_path, (2,), read), len(calls)
        sets = [ours.fill(name, n, items) for name, n in (("a", 70), ("b", 5), ("c", 5), ("d", 33))]
        shares.append(len(calls) - before)
    assert sum(shares) == 5 + 1 + 1 + 3 and max(shares) - min(shares) <= 1
    expected = [torch.randn(16, 2, generator=torch.Generator().manual_seed(hash_seed(1, 2)))]
    for chunk, size in enumerate((16, 16, 16, 6), 1):
        expected.append(
            torch.randn(size, 2, generator=torch.Generator().manual_seed(hash_seed(1, 2, chunk)))
        )
    whole = torch.cat(expected)
    assert torch.equal(sets[0]["x"], whole)
    some = torch.tensor([69, 3, 3, 17])
    assert torch.equal(sets[0].subset(some)["x"], whole[some])
    parts = torch.cat([*sets[0].subset(some).iterate_chunks("x")])
    assert torch.equal(parts, whole[torch.tensor([3, 3, 17, 69])])
    for rows in ([17, 18, 19], [3, 4, 69]):  # chunks of which no item is among them
        found = Moments.of(sets[0].subset(torch.tensor(rows)).iterate_chunks("x"))
        torch.testing.assert_close(found.covariance, whole[rows].double().T.cov())


def test_an_interrupted_run_draws_what_it_has_not_drawn(small, drawn, prepared, monkeypatch):
    """The run is interrupted while it draws and while it measures; its figures stay the same."""
    whole = execute(prepared(*RING, *SETS, path="whole"))
    assert len(drawn) == CHUNKS and max(drawn) == 16
    run, save = prepared(*RING, *SETS, path="broken"), chunks.save_checkpoint

    def stopped(*_):
        raise Interrupted(9)

    def counted(content, path):
        (stopped if len(drawn) > CHUNKS + 7 else save)(content, path)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(chunks, "save_checkpoint", counted)
        execute(run)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(PointReference, "noise_floor", stopped)
        execute(run)
    assert len(drawn) == 2 * CHUNKS + 1  # the one that was drawn and not saved
    (chunk,) = [*run.path.glob(f"{FOLDER}/*/samples_1_0_2.pt")]
    chunk.write_bytes(chunk.read_bytes()[:-9])
    again = execute(run)
    assert len(drawn) == 2 * CHUNKS + 2  # and the damaged one
    rows, others = (one["measures_over"]["rows"] for one in (whole, again))
    assert [row["measures"] for row in rows] == [row["measures"] for row in others]
    assert not (run / FOLDER).exists()


def test_chunks_of_other_weights_are_drawn_again(small, drawn, prepared, monkeypatch):
    run = prepared(*TRAINED, "measures.n=50", "measures.repeats=1", path="run")
    monkeypatch.setattr(PointReference, "noise_floor", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(run)
    assert len(drawn) == 4
    (run / "summary.json").unlink()
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for average in checkpoint["callbacks"].values():
        for value in (average.get("average") or {}).values():
            value.mul_(1.001)
    torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
    with pytest.raises(ZeroDivisionError):
        execute(run)
    assert len(drawn) == 8 and len([*(run / FOLDER).iterdir()]) == 1


def test_a_guide_of_any_value_and_the_embedder_are_among_those_weights():
    one, weak, other, embedder = (nn.Linear(1, 1) for _ in range(4))
    measured = [
        (k, SimpleNamespace(model=one, denoiser=g, stages={})) for k, g in ((1, weak), (2, other))
    ]
    reference = SimpleNamespace(feature_networks=lambda: [embedder])
    experiment = SimpleNamespace(reference=reference, measured=measured)
    run = SimpleNamespace(provenance=Provenance())
    keys = [_cache_key(experiment, run)]
    for network in (other, embedder):
        nn.init.zeros_(network.weight)
        keys.append(_cache_key(experiment, run))
    assert len({*keys}) == 3 and keys[2] == _cache_key(experiment, run)


def test_images_are_dropped_once_their_features_are_read(prepared, monkeypatch):
    monkeypatch.setattr(base, "NUMBERS", 64 * 7)
    seer = prepared("model=classifier", "model.noise=false", "model.network.width=8", path="seer")
    execute(seer)
    monkeypatch.setattr(ImageReference, "noise_floor", lambda *_: 1 / 0)
    run = prepared(
        "measures.n=20", "measures.repeats=1", f"measures.classifier={seer.path}", path="run"
    )
    with pytest.raises(ZeroDivisionError):
        execute(run)
    for name, sizes in (
        ("samples_0_0", [7, 7, 6]),
        ("true", [7, 7, 6]),
        ("held_out", [7] * 5 + [5]),
    ):
        for chunk, size in enumerate(sizes):
            (path,) = (run / FOLDER).glob(f"*/{name}_{chunk}.pt")
            shapes = {key: tuple(x.shape) for key, x in chunks._read(path).items()}
            assert shapes == {"features": (size, 64), "logits": (size, 10)}, path


def test_an_optimal_variance_is_measured_once_for_all_chunks(small, drawn, prepared, monkeypatch):
    calls, measure = [], Optimal.measure
    monkeypatch.setattr(
        Optimal, "measure", lambda self, *a, **k: calls.append(1) or measure(self, *a, **k)
    )
    execute(
        prepared(
            *RING, "measures.n=50", "measures.repeats=2", "sampler.variance=optimal", path="once"
        )
    )
    assert len(drawn) == 8 and len(calls) == 1 + 2  # and for the pictures at the end


COUNT = """
import os, signal
from triptych.run.drawing import Drawing
samples = Drawing.samples
def counted(self, n, seed, items=None, *label):
    x = samples(self, n, seed, items, *label)
    if items is not None:
        with open(os.environ["COUNT"], "a") as file:
            print(os.environ.get("LOCAL_RANK", 0), seed, len(items), file=file)
    return x
Drawing.samples = counted
"""
KILLS = {
    "drawing": """
from triptych.run import chunks
save, saved = chunks.save_checkpoint, []
def killed(content, path):
    if path.name.startswith("samples"):
        saved.append(path)
        if len(saved) == 3 and os.environ.get("LOCAL_RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)
    save(content, path)
chunks.save_checkpoint = killed
""",
    "measuring": """
from triptych.run.reference import PointReference
PointReference.noise_floor = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
""",
}


def result(root, name):
    found = json.loads((root / "logs" / "runs" / name / "summary.json").read_text())
    return [row["measures"] for row in found["measures_over"]["rows"]], found["measured"]


def counted(root, name, line, hooked="", code=0):
    """Run the command to its end or a kill; return process, seed and size of each sampling call."""
    count = root / f"{name}.txt"
    done = end(line, root, code, COUNT=str(count), **hook(root, SMALL + COUNT + hooked))
    assert code == 0 or done.returncode in (137, -9), done.stderr
    return [row.split() for row in count.read_text().splitlines()]


def training(name, devices):
    """Return the command of a run that trains and draws on this number of processes."""
    several = ["trainer=ddp_sim", f"trainer.devices={devices}", "data.batch_size=12"]
    own = [o for o in RING if not o.startswith(("model", "denoiser"))]
    line = command(f"name={name}", *several, *own, "denoiser=mlp", *SETS, "samples.n=0")
    return [o for o in line if not o.startswith("denoiser.")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_process_loses_no_chunk(root, moment):
    line = training("one", 2)
    before = counted(root, "one", line, KILLS[moment], code=None)
    drawn = counted(root, "one", line)
    assert len(drawn) == CHUNKS + (moment == "drawing"), (
        "one was drawn, and not saved before the kill"
    )
    assert moment == "drawing" or drawn == before
    assert not (root / "logs" / "runs" / "one" / FOLDER).exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_samples_are_those_of_one_process(root):
    counted(root, "one", training("one", 1))
    known = result(root, "one")
    ours = ("denoiser.", "bound.", "trainer.max_steps", "trainer.val", "trainer.log")
    for devices in (2, 3, 4):
        several = ["trainer=ddp_sim", f"trainer.devices={devices}"]
        trained = f"trained={root / 'logs' / 'runs' / 'one'}"
        line = command(f"name=n{devices}", trained, *several, *SETS, "samples.n=0")
        drawn = counted(root, f"n{devices}", [o for o in line if not o.startswith(ours)])
        assert result(root, f"n{devices}") == known
        assert {rank for rank, *_ in drawn} == {str(rank) for rank in range(devices)} and len(
            drawn
        ) == CHUNKS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_number_of_samples(root):
    """1700 images of 64 pixels are 84 MB as floats, and so is the same number of noise images."""
    random = np.random.RandomState(0)
    for i in range(60):
        (folder := root / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(
            folder / f"{i}.png"
        )
    own = [
        "data=folder",
        f"data.root={root / 'photos'}",
        "data.size=64",
        "data.batch_size=8",
        "samples.n=0",
    ]
    own += ["trainer.max_steps=1", "trainer.val_check_interval=1"]

    def peak(name, *more):
        """Return the peak memory of a run's process, in MB."""
        line = command(f"name={name}", *own, *more)
        classifier = "model=classifier" in more
        line = [o for o in line if not (classifier and o.startswith("denoiser."))]
        pid = os.posix_spawn(line[0], line, environment(root))
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        return usage.ru_maxrss / 1024

    peak("seer", "model=classifier", "model.noise=false", "model.network.width=4")
    judge = f"measures.classifier={root / 'logs' / 'runs' / 'seer'}"
    small = (
        "denoiser.network.width=4",
        "sampler=ddim",
        "sampler.steps=1",
        "measures.repeats=1",
        judge,
    )
    few, many = (peak(f"n{n}", *small, f"measures.n={n}") for n in (170, 1700))
    print(f"{few:.0f} MB for 170 samples, {many:.0f} MB for 1700", file=sys.stderr)
    assert many < 2000 and many < few + 60
