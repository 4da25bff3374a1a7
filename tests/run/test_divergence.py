"""A run with values that are not finite is stopped, recorded as diverged and reported."""

import json
import math

import pytest
import torch

from tests.refusal import refused
from tests.run.commands import command, end, evaluated, problems
from tests.run.hooks import at_the_fifth_loss
from triptych.api import load
from triptych.errors import Diverged
from triptych.models.diffusion import Diffusion
from triptych.run import stopping
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.untrusted import read_checkpoint


def strict(path) -> dict:
    """Parse JSON strictly, without JavaScript's NaN and Infinity."""

    def refuse(word: str):
        raise ValueError(word)

    return json.loads(path.read_text(), parse_constant=refuse)


def spoil(monkeypatch, method: str, at: int, value: float = math.nan) -> None:
    """Multiply result number ``at`` of the model's ``method``, and all later ones, by ``value``."""
    original, calls = getattr(Diffusion, method), []

    def spoilt(self, *arguments):
        calls.append(1)
        found = original(self, *arguments)
        if len(calls) < at:
            return found
        if method == "elbo":
            found.diffusion.mul_(value)
            return found
        return found * value

    monkeypatch.setattr(Diffusion, method, spoilt)


def is_finite(run) -> bool:
    state = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    return all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    ("value", "extra"),
    [(math.nan, ()), (math.inf, ("data.val_size=0",))],
    ids=["validated", "not validated"],
)
def test_non_finite_loss_stops_run_as_diverged(prepared, monkeypatch, value, extra):
    run = prepared("trainer.max_steps=50", *extra)
    spoil(monkeypatch, "loss", 5, value)
    with pytest.raises(Diverged, match="diverged at step 5: the loss is not finite"):
        execute(run)
    summary = strict(run / "summary.json")
    assert (summary["status"], summary["step"], run.status) == ("diverged", 5, "diverged")
    assert "the loss" in summary["error"] and "test" not in summary
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 3 and is_finite(run)


def test_weights_that_are_not_finite_are_never_saved(prepared, monkeypatch):
    """The loss of the step is finite, but its weights are not, and a checkpoint would be due."""
    run = prepared("data.val_size=0", "trainer.val_check_interval=2")
    original = torch.optim.AdamW.step

    def step(self, *arguments, **keywords):
        found = original(self, *arguments, **keywords)
        taken = next(iter(self.state.values()))["step"]
        if int(taken) == 4:
            self.param_groups[0]["params"][0].data.fill_(math.inf)
        return found

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(Diverged, match="diverged at step 4: a weight"):
        execute(run)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] == 2 and is_finite(run)


def test_non_finite_validation_or_test_bound_is_divergence(prepared, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, "elbo", 1)  # of the first validation, after three steps
        with pytest.raises(Diverged, match="step 3: the validation bound"):
            execute(prepared(path="a"))
    with monkeypatch.context() as patch:
        spoil(patch, "elbo", 2, math.inf)
        run = prepared("data.val_size=0", path="b")
        with pytest.raises(Diverged, match="step 6: the bound of the test set"):
            execute(run)
    assert strict(run / "summary.json")["stage"] == "test" and is_finite(run)


def test_divergence_step_is_exact_when_loss_is_read_rarely(prepared, monkeypatch):
    """The loss is read at logged steps alone, as on a GPU.

    The reported step is still the first whose loss was not finite.
    """
    read: list[int] = []
    original = stopping.Stop._note_non_finite

    class Elsewhere(torch.Tensor):
        @property
        def device(self):
            return torch.device("meta")

        def __int__(self):
            read.append(1)
            return int(self.as_subclass(torch.Tensor))

    def note(self, finite, step, kind=0):
        original(self, finite, step, kind)
        self._first_bad = self._first_bad.as_subclass(Elsewhere)

    monkeypatch.setattr(stopping.Stop, "_note_non_finite", note)
    spoil(monkeypatch, "loss", 5)
    run = prepared("data.val_size=0", "trainer.val_check_interval=100", "trainer.log_every_n_steps=8",
                   "trainer.max_steps=50")  # fmt: skip
    with pytest.raises(Diverged, match="diverged at step 5: the loss"):
        execute(run)
    assert len(read) == 1, "once, at step 8"


def test_repeated_command_of_diverged_run_suggests_force_or_retry(prepared, monkeypatch):
    with monkeypatch.context() as patch:
        spoil(patch, "loss", 5)
        with pytest.raises(Diverged):
            execute(prepared())
    with pytest.raises(
        Diverged, match=r"diverged before at step 5: the loss.*force=true.*retry=true"
    ):
        prepared()
    assert (
        execute(prepared("retry=true"))["status"] == "finished"
    )  # from step 3, this time undisturbed


def test_json_records_have_null_for_non_finite_values(tmp_path):
    run = RunDirectory(tmp_path)
    run.write(
        "summary.json", {"a": math.nan, "b": [math.inf, (1.5, -math.inf)], "c": {"d": math.nan}}
    )
    assert strict(tmp_path / "summary.json") == {
        "a": None,
        "b": [None, [1.5, None]],
        "c": {"d": None},
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_diverged_run_and_sweep_exit_with_code_3(root):
    """With a real weight decay, the weights leave the range of floats within a few steps."""
    wild = command("-m", "name=s", "optimizer.weight_decay=1e36,0.01", "seed=1,2")
    done = end(wild, root, code=3)
    assert "2 of 2 seeds" in done.stdout and "diverged" in done.stdout, done.stdout
    again = end(wild, root, code=3)
    assert (again.stdout + again.stderr).count("is not finite") == 2  # as it is read, and below
    line = command("name=one", "optimizer.weight_decay=1e36")
    for said in ("diverged at step", "diverged before at step"):
        [problem] = problems(end(line, root, code=3).stderr)
        assert said in problem
    for path in root.rglob("summary.json"):
        strict(path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_divergence_on_one_rank_stops_all_processes(root):
    spoil = 'if rank == 1: return original(self, batch, step, rank, world) * float("nan")'
    line = command("name=many", "trainer=ddp_sim", "trainer.devices=2", "trainer.max_steps=50")
    assert (
        "diverged at step 5: the loss"
        in end(line, root, code=3, **at_the_fifth_loss(root, spoil)).stderr
    )
    run = RunDirectory(root / "logs" / "runs" / "many")
    assert (run.summary() or {})["step"] == 5 and is_finite(run)


def test_evaluate_and_sample_refuse_non_finite_checkpoint(finished, tmp_path):
    """No run of ours saves such weights, but an untrusted checkpoint may have them."""
    content = read_checkpoint(finished().path / "checkpoints" / "last.ckpt")
    for value, what in ((math.nan, "a weight"), (1e30, "the bound of the val set")):
        for name, weight in content["state_dict"].items():
            content["state_dict"][name] = torch.full_like(weight, value)
        torch.save(content, tmp_path / "last.ckpt")
        step = content["global_step"]
        with pytest.raises(
            Diverged, match=f"diverged at step {step}: {what} is not finite"
        ) as told:
            evaluated(tmp_path / "last.ckpt", "weights=raw", "split=val")
        assert told.value.exit_code == 3
    refused(lambda: load(tmp_path / "last.ckpt", weights="raw").sample(2), "a sample is not finite")
