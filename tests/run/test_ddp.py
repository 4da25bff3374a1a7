"""Several processes: the same training and the same bound as one, one directory, every item once."""

import csv
import json
import subprocess
import sys

import pytest

from tests.run import counting
from tests.run.commands import command, environment

LONG = ["trainer.max_steps=50", "trainer.val_check_interval=25"]


def run(line: list[str], root, **more: str) -> subprocess.CompletedProcess:
    done = subprocess.run(line, capture_output=True, text=True, env=environment(root, **more), timeout=280)
    assert done.returncode == 0, done.stderr
    return done


def curve(path) -> list[float]:
    with open(path / "metrics.csv", newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def relative(one: float, other: float) -> float:
    return abs(one - other) / abs(one)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run on one process, shared by the tests below."""
    root = tmp_path_factory.mktemp("single")
    run(command("name=one", *LONG), root)
    return root / "logs" / "runs" / "one"


@pytest.mark.slow
def test_times_that_learn_of_losses_are_those_of_one_process(root):
    learning = ["objective/times=adaptive", "objective.times.bins=4", "trainer.max_steps=12"]
    learning += ["trainer.val_check_interval=12"]
    run(command("name=one", *learning), root)
    run(command("name=many", "trainer=ddp_sim", "trainer.devices=2", *learning), root)
    folder = root / "logs" / "runs"
    one, many = curve(folder / "one"), curve(folder / "many")
    assert len(one) == len(many) == 12
    assert max(relative(a, b) for a, b in zip(one, many, strict=True)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_the_loss_curve_is_that_of_one_process(root, single, devices):
    run(command("name=many", "trainer=ddp_sim", f"trainer.devices={devices}", *LONG), root)
    folder = root / "logs" / "runs" / "many"
    assert [p.name for p in folder.parent.iterdir()] == ["many"]
    one, many = curve(single), curve(folder)
    assert len(one) == len(many) == 50
    worst = max(relative(a, b) for a, b in zip(one, many, strict=True))
    print(f"{devices} processes: largest relative difference of the loss {worst:.1e}", file=sys.stderr)
    assert worst < 1e-4
    first, second = (json.loads((p / "summary.json").read_text()) for p in (single, folder))
    assert (first["world_size"], second["world_size"]) == (1, devices)
    for split in ("train", "val", "test"):
        assert first[split]["bpd"]["n"] == second[split]["bpd"]["n"]
        assert relative(first[split]["bpd"]["mean"], second[split]["bpd"]["mean"]) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_the_bound_is_that_of_one_process(root, single, devices):
    """297 items divide by 3 and not by 2; with 500 a batch, and with 64."""
    known = json.loads((single / "summary.json").read_text())["test"]
    line = [sys.executable, "-m", "triptych.cli.evaluate", f"ckpt={single}/checkpoints/last.ckpt"]
    run([*line, f"devices={devices}", "batch_size=64", f"out={root}/out.json"], root)
    found = json.loads((root / "out.json").read_text())
    for key, figure in known.items():
        assert found[key]["n"] == figure["n"] == 297
        assert relative(figure["mean"], found[key]["mean"]) < 1e-6, key
        assert relative(figure["stderr"], found[key]["stderr"]) < 1e-6, key


@pytest.mark.slow
def test_a_diffusion_model_of_latents_is_that_of_one_process(root):
    """Encoder, decoder and denoiser in training, and the bound of x of each item."""
    latents = ["model=latent_diffusion", "model.network.width=8", "trainer.max_steps=12"]
    latents += ["trainer.val_check_interval=12"]
    run(command("name=one", *latents), root)
    run(command("name=many", "trainer=ddp_sim", "trainer.devices=2", *latents), root)
    folder = root / "logs" / "runs"
    one, many = curve(folder / "one"), curve(folder / "many")
    assert len(one) == len(many) == 12
    assert max(relative(a, b) for a, b in zip(one, many, strict=True)) < 1e-4
    line = [sys.executable, "-m", "triptych.cli.evaluate", f"ckpt={folder}/one/checkpoints/last.ckpt"]
    run([*line, "devices=2", "batch_size=64", f"out={root}/out.json"], root)
    known = json.loads((folder / "one" / "summary.json").read_text())["test"]
    found = json.loads((root / "out.json").read_text())
    for key, figure in known.items():
        assert found[key]["n"] == figure["n"] == 297
        assert relative(figure["mean"], found[key]["mean"]) < 1e-5, key


@pytest.mark.slow
def test_a_sweep_over_the_number_of_processes_sees_every_item(root):
    """Today's templates train the second of these on half of the data, without a word."""
    epoch = ["data.batch_size=54", "trainer.max_steps=25", "trainer.val_check_interval=25"]
    hook = counting.install(root / "hook")
    line = command("-m", "name=s", "trainer=ddp_sim", "trainer.devices=1,2", *epoch)
    run(line, root, **hook)
    found = {path.parent.name: json.loads(path.read_text()) for path in (root / "logs").rglob("summary.json")}
    assert sorted(s["world_size"] for s in found.values()) == [1, 2] and len(found) == 2
    assert len(list((root / "logs" / "sweeps").iterdir())) == 1
    seen = counting.counts(root / "hook")
    assert sorted(seen) == [1, 2] and len(seen[1]) == 1 and len(seen[2]) == 2
    for shares in seen.values():
        assert sorted(item for share in shares for item in share) == list(range(1350))
    assert not set(seen[2][0]) & set(seen[2][1])


@pytest.mark.slow
def test_torchrun_makes_one_directory(root, single):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*torchrun, "-m", *command("name=many", "trainer=ddp_sim", *LONG)[2:]]
    done = run(line, root)
    assert done.stdout.count("test bound") == 1
    folder = root / "logs" / "runs" / "many"
    assert [p.name for p in folder.parent.iterdir()] == ["many"]
    assert json.loads((folder / "summary.json").read_text())["world_size"] == 2
    assert max(relative(a, b) for a, b in zip(curve(single), curve(folder), strict=True)) < 1e-4
    again = run(line, root)
    assert "finished before" in again.stdout
    nameless = [*torchrun, "-m", *command("trainer=ddp_sim")[2:]]
    refused = subprocess.run(nameless, capture_output=True, text=True, env=environment(root), timeout=200)
    assert refused.returncode != 0 and "a name is needed here" in refused.stderr


BATCH_MEANS = {
    "interior": ["schedule=learned", "data.batch_size=60"],
    # free bits that some levels have at some steps and not at others
    "hierarchical VAE": [
        "model=hierarchical_vae", "model.free_bits=3", "model.importance_samples=0", "model.network.width=8",
        "data.batch_size=60",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The loss curve of each kind on one process, run when it is first asked for."""
    curves: dict[str, list[float]] = {}

    def of(kind: str) -> list[float]:
        if kind not in curves:
            root = tmp_path_factory.mktemp("alone")
            run(_line(kind, "name=one"), root)
            curves[kind] = curve(root / "logs" / "runs" / "one")
        return curves[kind]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("kind", BATCH_MEANS)
def test_what_depends_on_the_batch_s_mean_is_that_of_one_process(root, alone, kind, devices):
    """A rank's own mean gave the interior a gradient that was off by 14%."""
    run(_line(kind, "name=many", "trainer=ddp_sim", f"trainer.devices={devices}"), root)
    one, many = alone(kind), curve(root / "logs" / "runs" / "many")
    assert len(one) == len(many) == 50
    worst = max(relative(a, b) for a, b in zip(one, many, strict=True))
    print(f"{kind}, {devices} processes: {worst:.1e}", file=sys.stderr)
    assert worst < 1e-5


def _line(kind: str, *arguments: str) -> list[str]:
    """The tiny network's keys are another's."""
    line = command(*arguments, *LONG, *BATCH_MEANS[kind], "samples.n=0")
    return [o for o in line if kind == "interior" or not o.startswith(("denoiser.", "sampler.steps"))]


@pytest.mark.slow
def test_several_processes_say_nothing_but_the_result(root):
    done = run(command("name=many", "trainer=ddp_sim"), root)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert len(said) == 2 and said[0].startswith("test bound") and said[1].startswith("run: "), said


def test_a_batch_without_equal_parts_is_refused_before_there_are_processes(prepared, monkeypatch):
    from triptych.errors import UserError
    from triptych.run.execute import execute

    run, launched = prepared("trainer=ddp_sim", "trainer.devices=3"), []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: launched.append(a))
    with pytest.raises(UserError, match=r"data\.batch_size=64: must be a multiple of the 3 processes"):
        execute(run)
    assert not launched
