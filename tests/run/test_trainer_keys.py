"""Keys of Lightning's trainer are obeyed or refused, but never recorded and overridden."""

import inspect
import io
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.profilers import SimpleProfiler

import triptych
from tests.run.accidents import rows, stop_after
from triptych.models import base
from triptych.models.diffusion import Diffusion
from triptych.run import trainer
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.progress import Progress
from triptych.run.trainer import build_trainer, count_steps


def test_a_profiler_writes_into_the_runs_directory(prepared):
    run = prepared("trainer.profiler=simple")
    trainer = build_trainer(run.config(), run, [])
    assert isinstance(trainer.profiler, SimpleProfiler)
    trainer.profiler.setup("fit", local_rank=0)
    with trainer.profiler.profile("a step of ours"):
        pass
    trainer.profiler.summary()
    trainer.profiler.describe()
    [file] = (run / "profile").iterdir()
    assert "a step of ours" in file.read_text()


def test_enable_progress_bar_false_hides_bar(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    trainer = type("T", (), {"is_global_zero": True, "max_steps": 5, "global_step": 1})()
    for bar in (True, False):
        monkeypatch.setattr("sys.stderr", screen := Terminal())
        progress = Progress(RunDirectory(tmp_path), bar=bar)
        progress.on_train_start(trainer, None)
        progress.on_train_end(trainer, None)
        assert ("fit" in screen.getvalue()) == bar


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 1}, 10),  # 1000 items in batches of 100
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 1, "batch_size": 300}, 4),  # 3.3 batches: each item once, no fewer
        ({"max_epochs": 3, "batch_size": 300}, 10),  # end to end, and not 3 * 4
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 5),
        ({"max_epochs": 2, "limit_train_batches": 0.1}, 2),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6),
        ({"max_epochs": 2, "limit_train_batches": 1}, 2),  # one batch ...
        ({"max_epochs": 2, "limit_train_batches": 1.0}, 20),  # ... and the whole
        ({"max_epochs": 2, "limit_train_batches": 50}, 20),  # there are no more
        ({"max_epochs": 5, "overfit_batches": 2}, 10),
    ],
)
def test_steps_of_converts_max_epochs_to_steps(keys, steps):
    trainer = {"max_steps": None, "accumulate_grad_batches": 1, "overfit_batches": 0} | keys
    config = {"trainer": trainer, "data": {"batch_size": keys.get("batch_size", 100)}}
    assert count_steps(config, 1000) == steps


def test_sanity_steps_and_lightning_callbacks_do_not_change_figures(root, tiny):
    """A run with these options under another name reports the same figures as without them."""
    small = [
        *tiny,
        "logger=csv",
        "callbacks=[default,early_stopping]",
        "callbacks.early_stopping.patience=1",
    ]
    few = [
        "trainer.val_check_interval=1",
        "optimizer.lr=1e-9",
    ]  # the average falls behind: it stops early
    plain = triptych.train(["name=plain", *small, *few])
    callbacks = [
        "LearningRateMonitor", "ModelSummary", "EarlyStopping +callbacks.EarlyStopping.monitor=val/bound"
    ]  # fmt: skip
    own = " ".join(
        f"+callbacks.{c.split()[0]}._target_=pytorch_lightning.callbacks.{c}" for c in callbacks
    )
    more = "trainer.num_sanity_val_steps=2 trainer.deterministic=true trainer.max_time=01:00:00:00"
    try:
        checked = triptych.train(["name=checked", *small, *few, *own.split(), *more.split()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert checked.status == "finished" and checked.test["bpd"] == plain.test["bpd"]
    assert checked.steps == plain.steps


def test_torch_lr_scheduler_resumes_from_checkpoint(root, tiny):
    """The rate is multiplied by gamma at each milestone, in steps; checkpoints keep its state."""
    line = ["name=one", *tiny, "logger=csv"]
    line += [
        "lr_schedule._target_=torch.optim.lr_scheduler.MultiStepLR",
        "lr_schedule.milestones=[2,4]",
    ]
    line += ["optimizer=sgd", "optimizer.lr=0.01"]
    run = triptych.train(line)
    steps, rates = run.history("train/lr")
    assert rates == pytest.approx([0.01 * 0.1 ** ((step >= 2) + (step >= 4)) for step in steps])
    (run.dir / "summary.json").unlink()  # as if it had been killed before its end
    assert triptych.train(line).bound == run.bound


def test_max_epochs_determines_number_of_steps(root, tiny):
    """A tenth of two epochs of 1347 training digits in batches of 64 is 4.2 batches."""
    line = [one for one in tiny if "max_steps" not in one and "val_check" not in one]
    epochs = [
        "trainer.max_epochs=2",
        "trainer.limit_train_batches=0.1",
        "trainer.limit_val_batches=1",
    ]
    run = triptych.train(["name=epochs", *line, "logger=csv", *epochs])
    assert run.status == "finished" and run.steps == 5
    assert run.val["bpd"].n == 150, "the reported figures are of the whole split"
    assert triptych.train(["name=epochs", *line, "logger=csv", *epochs]).bound == run.bound


def test_slurm_ntasks_without_srun_is_one_process(prepared, monkeypatch):
    """In a batch script (`sbatch --ntasks=2`) without srun, the command is one process."""
    for name, value in {"JOB_ID": "5", "NTASKS": "2", "PROCID": "0", "JOB_NAME": "x.sh"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run = prepared()
    assert build_trainer(run.config(), run, []).world_size == 1


def test_overfit_batches_with_accumulation_makes_full_steps(prepared, monkeypatch):
    """If an epoch had three batches, every second step of two would get one batch only.

    Validation would then be at odd steps.
    """
    seen, loss = [], Diffusion.loss
    monkeypatch.setattr(
        Diffusion,
        "loss",
        lambda model, batch, *rest: seen.append(batch.index) or loss(model, batch, *rest),
    )
    two = (
        "trainer.overfit_batches=3",
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=2",
    )
    run = prepared(*two, "trainer.max_steps=4", "samples.n=0", "test=false")
    execute(run)
    assert len(seen) == 8 and all(map(torch.equal, seen[:5], seen[3:]))
    assert [row["step"] for row in rows(run) if row["val/bpd"]] == ["2", "4"]


def test_images_per_second_counts_all_batches_since_resume(prepared, monkeypatch):
    """With a clock that counts images, the speed is about one image per second."""
    seen, loss = [0.0], Diffusion.loss

    def counted(model, batch, *rest):
        seen[0] += len(batch.x)
        return loss(model, batch, *rest)

    monkeypatch.setattr(Diffusion, "loss", counted)
    monkeypatch.setattr(base, "time", SimpleNamespace(perf_counter=lambda: seen[0]))
    often = (
        "trainer.max_steps=8",
        "trainer.accumulate_grad_batches=2",
        "trainer.log_every_n_steps=2",
    )
    run = prepared(*often, "samples.n=0", "test=false")
    stop_after(run, 5)
    execute(run)
    speeds = [float(s) for row in rows(run) if (s := row["train/images_per_second"])]
    # The first interval of a start has n steps, and the batch with which the next step begins.
    assert speeds == pytest.approx([2 / 3, 1, 4 / 5, 1])


@pytest.mark.parametrize(
    ("accelerator", "may_skip", "searches"),
    [("cpu", False, True), ("auto", False, True), ("gpu", True, True), ("gpu", False, False)],
)
def test_ddp_searches_for_unused_weights_on_cpus_or_if_there_may_be_some(
    accelerator, may_skip, searches, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    node = {"accelerator": accelerator, "devices": 2, "num_nodes": 1, "strategy": "ddp"}
    assert trainer._strategy(node, may_skip) == (
        "ddp_find_unused_parameters_true" if searches else "ddp"
    )
    assert trainer._strategy(node | {"strategy": "auto", "devices": 1}, may_skip) == "auto"


def test_ranks_send_no_sigterm_at_each_step(prepared):
    """The trainer replaces a method that Lightning calls at each step."""
    run = prepared()
    loop = build_trainer(run.config(), run, []).fit_loop.epoch_loop
    assert "_broadcast_sigterm_tensor" in vars(type(loop)), "Lightning has renamed the method"
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)
    assert loop._broadcast_sigterm_tensor() is None
    assert loop._broadcast_sigterm_tensor.__module__ == trainer.__name__
