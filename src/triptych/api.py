"""Use Triptych from Python: in a notebook, a debugger or a script.

The functions do the same as the commands. A run that was trained in Python is a directory like any
other: Python can resume the runs of the commands, and the commands those of Python.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import hydra_overrides, without_hyphens
from triptych.config import compose as composing
from triptych.declare import type_error_line
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.directory import RunDirectory
from triptych.run.read import Run, read_run, read_runs
from triptych.run.single import prepare_run, request_single
from triptych.run.untrusted import OWN, find_checkpoint
from triptych.study.results import results

_training = threading.Lock()  # held while a run trains in this process
OFF_VALUES = ("null", "false")  # values at which a key of ``UNUSED_KEYS`` may be passed
UNUSED_KEYS = {  # {command: its keys that have no effect in Python}
    "train": ("resume", "plan"),
    "sample": ("weights", "data_root", "out", "trajectory", "cascade", "stages", "noise"),
    "evaluate": ("out", "items"),
}


def compose(overrides: Sequence[str] | str = ()) -> DictConfig:
    """Compose the configuration with which ``triptych-train OVERRIDES`` trains.

    ``overrides`` is one override or a list of them. Values of the returned configuration may be
    changed by assignment.

    Raises:
        UserError: the command would refuse the overrides, or one of them has several values.
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    config = _compose_overrides("train", {}, overrides)
    OmegaConf.set_struct(config, False)  # ``train`` reports an unknown key with the nearest name
    return config


def train(config: DictConfig | Sequence[str] | str = ()) -> Run:
    """Train a run of a composed configuration, or of overrides, and return the run.

    If a run of this name exists and has ended, it is only read; otherwise it is resumed. The random
    seeds and the number of threads of this process are set.

    Raises:
        UserError: a value is not allowed, several processes are requested, or the run of this name
            has another configuration.
        Busy, Diverged, Interrupted, StorageError: see ``run.execute.execute``.
    """
    # Two runs at once would share random generators and threads.
    if not _training.acquire(blocking=False):
        raise UserError("another run is training in this process; wait until it ends")
    try:
        return _train(_recompose(config))
    finally:
        _training.release()


def _train(config: DictConfig) -> Run:
    """Prepare the run's directory, execute the run unless it has finished, and read its result."""
    request = request_single(config)
    check_one_process(config)
    run = prepare_run(request)
    if run.status != "finished":
        _execute(run)
    return read_run(run.path)


def _execute(run: RunDirectory) -> None:
    """Execute a prepared run in this process, marked as composed by this user."""
    from triptych.run.execute import execute

    os.environ[OWN] = str(run.path)
    try:
        execute(run)
    finally:
        os.environ.pop(OWN, None)
        run.clear_owner()  # release the lock of an interrupted run, as this process continues


def check_one_process(config: DictConfig) -> None:
    """Raise UserError if several processes are requested, which only the command can start."""
    trainer = config.trainer
    if (trainer.devices, trainer.num_nodes) != (1, 1) or processes.launch_id():
        raise UserError(
            f"trainer.devices={trainer.devices}, num_nodes={trainer.num_nodes}: must be 1 in "
            "Python; use triptych-train for several processes"
        )


def _recompose(config: DictConfig | Sequence[str] | str) -> DictConfig:
    """Compose a configuration again from its overrides and assigned values; check every value."""
    if not isinstance(config, DictConfig):
        return compose(config)
    typed = OmegaConf.select(config, "hydra.overrides")
    if typed is None:
        raise UserError("config: must be what triptych.compose returned, or a list of overrides")
    overrides = [*typed.hydra, *typed.task]
    composed = compose(overrides)
    changes = list(
        composing.overrides_between(
            composing.settable_config(composed), composing.settable_config(config)
        )
    )
    if not changes:
        return composed
    return compose([*overrides, *changes])


@dataclass(frozen=True)
class Trained:
    """A trained run or checkpoint, opened by ``load``; its model is in evaluation mode."""

    path: Path
    weights: str | None
    data_root: str | None
    config: dict[str, Any]  # the run's resolved configuration as plain data
    data: Any  # the DataModule, with ``splits["train" | "val" | "test"]``
    model: Any  # the whole model; the three properties below are parts of a diffusion model

    @property
    def denoiser(self) -> Any:
        """The denoiser: (z (B, *event), gamma (B,), condition) -> Prediction, which has .x0 etc."""
        return self.model.denoiser

    @property
    def schedule(self) -> Any:
        """The noise schedule: t in [0, 1] -> gamma = -log SNR."""
        return self.model.schedule

    @property
    def process(self) -> Any:
        """The noise process: it maps gamma to the alpha and sigma of z = alpha x + sigma eps."""
        return self.denoiser.process

    def bound(self, x: Any, condition: Any = None) -> Any:
        """Estimate the three terms of each item's bound, nats (B,), from one random draw.

        The terms are prior, reconstruction and diffusion.

        Args:
            x: items (B, *event) in data units. Their random times and noise are those of the first
                B items of a split.
            condition: the items' condition, if the model is conditional.

        Raises:
            UserError: the items are not valid, for example images whose values are not levels of
                the data; or the condition is missing.
        """
        import torch

        from triptych.data.batch import Batch

        self._check_items(x)
        # Without a condition the result would be the unconditional bound.
        if self.model.conditional and condition is None:
            raise UserError("bound(x): condition=None; pass condition=BATCH.condition")
        batch = Batch(x.float(), condition, torch.arange(len(x)))
        with torch.no_grad():
            return self._calibrated_model.elbo(batch, repeat=0, repeats=1)

    def _check_items(self, x: Any) -> None:
        """Raise UserError for items of a wrong shape or range, whose bound would be wrong."""
        from triptych.data.batch import to_level, to_unit

        shape, levels = ("B", *self.data.shape), self.data.levels
        if tuple(x.shape[1:]) != shape[1:] or len(x) == 0:
            raise UserError(f"bound(x): x must be a tensor of shape {shape}")
        if not levels:
            return
        largest = x.abs().max().item()
        if not largest <= 1 + 1e-6:  # this form also refuses NaN
            raise UserError(f"bound(x): x has values up to {largest:.4g}; pass images in [-1, 1]")
        if not (x - to_unit(to_level(x, levels), levels)).abs().max() <= 1e-6:
            raise UserError(
                f"bound(x): x is not on the data's {levels} levels; pass "
                f"triptych.data.batch.to_unit(to_level(x, {levels}), {levels})"
            )

    @cached_property
    def _calibrated_model(self) -> Any:
        """The model, after its bound was prepared for the loaded weights, once."""
        self.model.before_accounting()
        return self.model

    def sample(self, n: int = 16, *overrides: str, seed: int = 0, label: int | None = None) -> Any:
        """Draw n samples (n, *shape) in data units, as ``triptych-sample n=... OVERRIDES`` does.

        Args:
            overrides: settings, for example ``"sampler=ddim", "sampler.steps=20"``.
            label: the class of all samples; None: all classes in turn, if the model has classes.

        Raises:
            UserError: the command would refuse these settings, or a sample is not finite.
        """
        arguments = {
            "ckpt": self.path,
            "n": n,
            "seed": seed,
            "label": "null" if label is None else label,
        }
        values = _checked_values("sample", arguments, overrides)
        from triptych.run.experiment import Experiment
        from triptych.run.sample import SAMPLES, build_run_drawing, draw_all_sources

        opened, device = Experiment(self.config, self.data, self.model), self.model.device
        try:
            return draw_all_sources(build_run_drawing(opened, values), values)[SAMPLES]
        finally:  # sampling may have moved the model to a GPU
            self.model.to(device)

    def evaluate(self, split: str = "test", *overrides: str) -> dict[str, Any]:
        """Evaluate a split as ``triptych-evaluate`` does, and return its bound and metrics.

        The result is {"bpd": {"mean", "stderr", "n"}, ...}. It is computed with a new
        model, loaded from the checkpoint, so changes to ``self.model`` have no effect.

        Raises:
            UserError: the command would refuse these settings.
        """
        split = composing.format_override_value(split)  # quoted, because it may be any text
        arguments = {
            "ckpt": self.path,
            "split": split,
            "weights": self.weights,
            "data_root": self.data_root,
        }
        values = _checked_values("evaluate", {k: v for k, v in arguments.items() if v}, overrides)
        if values["devices"] != 1:
            raise UserError(
                f"devices={values['devices']}: must be 1 in Python; use triptych-evaluate"
            )
        from triptych.run.evaluate import evaluate_checkpoint

        return evaluate_checkpoint(values)


def load(
    run: Run | str | os.PathLike[str], weights: str | None = None, data_root: str | None = None
) -> Trained:
    """Open a run (a ``Run`` or its directory) or a checkpoint, without executing untrusted code.

    Args:
        weights: "ema", "raw" or an average's name, as "sigma_rel_0.1"; None: the reported weights.
        data_root: the folder of the data, if they were moved.

    Raises:
        UserError: the checkpoint is missing, damaged or not of this project, or its configuration
            names a class that is not allowed.
    """
    if isinstance(run, Run):
        run = run.dir
    path = Path(run).absolute()
    find_checkpoint(path)  # before torch is imported
    from triptych.run.reopen import reopen

    opened = reopen(str(path), weights, data_root)
    return Trained(path, weights, data_root, opened.config, opened.data, opened.model)


def table(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return one dictionary per run beneath a folder, as rows for ``pandas.DataFrame``.

    The rows are those of ``results.csv``. Keys: status, seed, settings that differ between runs,
    and the metrics of test, val and train as ``test/bpd``, ``test/bpd_stderr``, ``test/bpd_n``.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory")
    rows = results(read_runs(path))
    if not rows:
        raise UserError(
            f"{folder}: no run in it (a run's directory holds config.yaml or summary.json)"
        )
    return rows


def _compose_overrides(
    command: str, arguments: Mapping[str, Any], overrides: Sequence[str]
) -> DictConfig:
    """Compose ``triptych-COMMAND``'s configuration from ``arguments`` and a user's overrides.

    ``arguments`` is {key: value}.
    """
    problem = type_error_line("overrides", Sequence[str], overrides)
    if problem:
        raise UserError(problem)
    for override in overrides:
        key, value = _key_and_value(override)
        if key.startswith("-") or (key in UNUSED_KEYS[command] and value.lower() not in OFF_VALUES):
            raise UserError(
                f"{override}: only for the command triptych-{command}; from Python, pass only "
                "KEY=VALUE (weights and data_root are arguments of load)"
            )
        if key in arguments:
            raise UserError(f"{override}: {key} is set already, by an argument here or in load()")
    own = [f"{key}={value}" for key, value in arguments.items()]
    return composing.compose_command(command, hydra_overrides([*own, *overrides], command))


def _key_and_value(override: str) -> tuple[str, str]:
    """Split an override, with or without leading "+" or "--", into its key and its value."""
    key, _, value = without_hyphens(override).lstrip("+").partition("=")
    return key, value


def _checked_values(
    command: str, arguments: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """Return all values of a command; raise UserError for an override without effect in Python."""
    config = _compose_overrides(command, arguments, overrides)
    return composing.checked_values(composing.without_hydra(config), command)
