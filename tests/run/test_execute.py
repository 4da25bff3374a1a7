"""A run from its directory: the contract, reproducibility, resuming."""

import json
import signal
from unittest import mock

import pytest
import torch
from torch._inductor.exc import InductorError

import triptych
from tests.refusal import refused
from tests.run.accidents import stop_after
from triptych.data.build import build_data
from triptych.errors import ForeignCheckpoint, Interrupted, UserError
from triptych.models.base import BoundModel
from triptych.models.diffusion import Diffusion
from triptych.run import training as module
from triptych.run.checkpoints import CheckpointSaver
from triptych.run.chunks import FOLDER
from triptych.run.directory import RunDirectory
from triptych.run.drawing import Drawing
from triptych.run.execute import execute
from triptych.run.model import build_model
from triptych.run.reopen import reopen
from triptych.run.untrusted import OWN, read_checkpoint


def test_run_directory_holds_documented_files_and_figures(prepared):
    run = prepared("objective=v", "seed=3")
    summary = execute(run)
    names = ("config.yaml", "provenance.json", "metrics.csv", "summary.json", "samples/final.png")
    for name in (*names, "samples/trajectory.png", "samples/real.png"):
        assert (run / name).is_file(), name
    assert json.loads((run / "summary.json").read_text()) == json.loads(json.dumps(summary.record))
    assert summary["status"] == "finished" and summary["schema"] == 1
    assert (
        summary["overrides"] == ["objective=v", "seed=3"] and summary["choices"]["objective"] == "v"
    )
    # Torch alone takes more than the lower limit, and no test more than the upper one.
    assert 50 * 2**20 < summary["cost"]["memory"] < 64 * 2**30
    sampler = run.config()["sampler"]
    assert summary["cost"]["evaluations"] == sampler["steps"]  # ancestral: one call a step
    assert summary["seed"] == 3 and summary["steps"] == 6 and summary["weights"] == "ema"
    for split, n in (("test", 297), ("val", 150), ("train", 297)):
        figures = summary[split]
        assert figures["bpd"]["n"] == n
        parts = sum(
            figures[f"bpd_{term}"]["mean"] for term in ("prior", "reconstruction", "diffusion")
        )
        assert figures["bpd"]["mean"] == pytest.approx(parts, rel=1e-12)
    assert (
        len(summary["noise_levels"]["gamma"]) == len(summary["noise_levels"]["epsilon_mse"]) == 20
    )
    assert "tweedie" not in summary  # whose truth is not known
    assert torch.full((1,), 1e-40).mul(1).item() == 0, (
        "levels' small probabilities would slow a CPU down"
    )


def test_final_samples_are_drawn_on_training_device(prepared, monkeypatch):
    """Lightning moves the model to the CPU after a test; samples need the run's device."""
    events, samples = [], Drawing.samples
    for name in ("to", "cpu"):
        moved = getattr(BoundModel, name)
        monkeypatch.setattr(BoundModel, name, lambda *a, n=name, f=moved: events.append(n) or f(*a))
    monkeypatch.setattr(
        Drawing, "samples", lambda *a, **k: events.append("draw") or samples(*a, **k)
    )
    execute(prepared("samples.pictures=0"))
    assert events[events.index("draw") - 1] == "to"


def test_density_data_report_nats_per_dim_entropy_and_gap(prepared):
    # The draws of the bound have control variates and those of the gap do not: with few draws the
    # two would differ by noise.
    sizes = ("data.train_size=2000", "data.test_size=2000", "data.val_size=50")
    run = prepared(
        "experiment=ring", "bound.repeats=8", *sizes, "callbacks.ema.others=[]", "samples.n=0"
    )
    test = execute(run)["test"]
    assert test["nats_per_dim"]["n"] == 2000 and "bpd" not in test
    assert test["entropy"]["mean"] == pytest.approx(
        1.123 / 2, abs=0.01
    )  # separated modes, per dimension
    # bound = exact negative log-likelihood + gap, and the mean of the former is the entropy, up to
    # sampling.
    known = test["nats_per_dim"]["mean"] - test["gap"]["mean"]
    assert known == pytest.approx(test["entropy"]["mean"], abs=0.03)
    assert test["gap"]["mean"] > 0


def test_conditional_bound_reports_no_gap_or_entropy(prepared):
    sizes = ("data.train_size=60", "data.test_size=20", "data.val_size=20", "samples.n=0")
    summary = execute(prepared("experiment=ring", "model.conditional=true", *sizes))
    assert summary["test"]["nats_per_dim"]["n"] == 20
    assert not {"gap", "entropy"} & {*summary["test"], *summary["val"]}


def test_seed_changes_test_figures(prepared, finished):
    """test_resume shows with each accident that equal seeds give equal figures."""
    assert execute(prepared("seed=2", path="other"))["test"] != finished().summary()["test"]


def test_objectives_start_from_the_same_weights(prepared):
    states = []
    for objective in ("x0", "epsilon", "score", "v", "velocity", "edm", "levels"):
        config = prepared(f"objective={objective}", path=objective).config()
        torch.manual_seed(config["seed"])
        states.append(build_model(config, build_data(config)).denoiser.network.state_dict())
    for state in states[1:]:
        for name, value in states[0].items():
            if name.startswith(
                "last."
            ):  # one output a dimension or one a level: zero in either case
                assert not state[name].any() and not value.any()
            else:
                assert torch.equal(state[name], value), name


def test_reopen_needs_only_the_checkpoint(finished):
    run = finished("objective=levels")
    source = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert source["triptych"]["config"] == run.config()
    average = source["callbacks"]["EMA"]["average"]
    for weights, expected in (("raw", source["state_dict"]), ("ema", average)):
        opened = reopen(str(run / "checkpoints" / "last.ckpt"), weights)
        for name, value in opened.model.denoiser.named_parameters():
            assert torch.equal(value, expected[f"denoiser.{name}"])


def test_a_finished_run_is_returned_and_not_run_again(prepared, finished):
    run = finished()
    first, stamp = run.summary(), (run / "summary.json").stat().st_mtime_ns
    assert execute(prepared()).record == first.record
    assert (run / "summary.json").stat().st_mtime_ns == stamp


def test_changed_configuration_needs_force_which_keeps_old_run(prepared, finished):
    run = finished()
    refused(lambda: prepared("seed=2"), "seed: 1 -> 2")
    fresh = prepared("seed=2", "force=true")
    assert fresh.status == "interrupted" and fresh.config()["seed"] == 2
    aside = [p for p in run.path.parent.iterdir() if p != run.path]
    assert len(aside) == 1 and (aside[0] / "summary.json").is_file()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["trainer.accelerator=gpu"], "gpu backend"),
        (["denoiser.network.width=999999999"], "denoiser.network: "),
    ],
)
def test_a_run_refused_before_its_first_step_leaves_no_directory(
    root, tiny, monkeypatch, asked, words
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    keys = {one.split("=")[0] for one in asked}
    own = [one for one in tiny if one.split("=")[0] not in keys]
    refused(lambda: triptych.train([*own, "logger=csv", "name=n", *asked]), words)
    assert not (root / "logs" / "runs" / "n").exists()


def test_refused_run_keeps_existing_files_of_its_directory(root, tiny):
    folder = root / "logs" / "runs" / "n"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "wandb" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="callbacks.ema=null .*pass weights=raw"):
        triptych.train([*tiny, "logger=csv", "name=n", "callbacks.ema=null"])
    kept = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert kept == {"notes.txt", "wandb", "wandb/mine"}


def test_force_puts_earlier_run_back_if_new_one_cannot_be_built(prepared, monkeypatch):
    run = prepared()
    execute(run)
    earlier = (run / "summary.json").read_bytes()
    run = prepared("force=true")
    assert run.status == "interrupted"
    monkeypatch.setenv(OWN, str(run.path))
    monkeypatch.setattr(module, "build_experiment", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute(run)
    assert (run / "summary.json").read_bytes() == earlier
    assert [*run.path.parent.iterdir()] == [run.path]


@pytest.mark.parametrize("error", [UserError("no"), ForeignCheckpoint("no"), Interrupted(15)])
def test_failed_rebuild_leaves_run_with_checkpoint_as_it_was(prepared, monkeypatch, error):
    run = stop_after(prepared(), 4)
    before = contents(run)
    prepared("threads=7")
    assert run.config()["threads"] == 7
    monkeypatch.setenv(OWN, str(run.path))

    monkeypatch.setattr(module, "build_experiment", mock.Mock(side_effect=error))
    with pytest.raises(type(error)):
        execute(run)
    assert run.status == "interrupted"
    assert contents(run) == before


def contents(run):
    """Return the content of each file of a run, except its lock."""
    files = (path for path in run.path.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in files}


def test_signal_during_compilation_is_interruption(prepared, monkeypatch):
    """A terminal's Ctrl-C also reaches g++.

    Then torch raises an error of its own before the end of the step.
    """

    def loss(self, *_):
        signal.raise_signal(signal.SIGINT)
        raise InductorError(RuntimeError("C++ compile error"), None)

    monkeypatch.setattr(Diffusion, "loss", loss)
    run = prepared()
    with pytest.raises(Interrupted, match="SIGINT"):
        execute(run)
    assert run.summary() is None


def test_signal_while_result_is_written_does_not_interrupt_run(prepared, monkeypatch):
    """The run has ended: its stored features are removed, and nothing is left to resume."""
    write = RunDirectory.write

    def write_and_signal(run, name, value):
        write(run, name, value)
        if name == "summary.json":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "write", write_and_signal)
    run = prepared("samples.n=0")
    (run / FOLDER).mkdir()
    before = signal.getsignal(signal.SIGTERM)
    assert execute(run).status == "finished"
    assert not (run / FOLDER).exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_checkpoint_best_without_validation_items_is_refused(prepared):
    """The user's data may call their number of validation items by any name."""
    run = prepared("data=ring", "denoiser=mlp", "checkpoint=best")
    config = run.config()
    config["data"]["val_size"] = 0
    run.write("config.yaml", config)  # JSON is YAML
    refused(
        lambda: execute(run), "checkpoint=best: this run has no validation; pass checkpoint=last"
    )


def test_run_prints_warmup_validation_and_resume_messages(prepared, capfd, monkeypatch):
    """Warnings of warm-up alone, progress without a terminal, where and how the run resumes."""
    run = prepared("data.val_size=8")
    monkeypatch.delenv("TRIPTYCH_SWEEP", raising=False)
    after_a_step = CheckpointSaver.on_train_batch_end

    def then_signal(keep, trainer, *rest):
        if trainer.global_step == 4:
            keep.stop.received = signal.SIGTERM
        after_a_step(keep, trainer, *rest)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as stopped:
        patch.setattr(CheckpointSaver, "on_train_batch_end", then_signal)
        execute(run)
    lines = capfd.readouterr().err.splitlines()
    assert "lr_schedule.warmup_steps=100: all 6 training steps are warm-up; lower it" in lines
    assert any(line.startswith("step 3/6: validation bound ") for line in lines)
    assert str(stopped.value).endswith(f"; resume with triptych-train resume={run.path}")
    execute(run)
    log = (run / "train.log").read_text().splitlines()
    assert "resumed at step 4" in log and "warm-up" not in "".join(
        log[log.index("resumed at step 4") :]
    )
