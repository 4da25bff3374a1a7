"""Use Triptych from Python: in a notebook, a debugger or a script.

The commands take the same path: a run that Python trained is a directory like any other, and either goes on
with what the other has begun.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import as_hydra_wants, without_hyphens
from triptych.config import compose as composing
from triptych.config.identity import in_root
from triptych.declare import FilePath, refusal
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.prepare import prepare
from triptych.run.provenance import finished_before
from triptych.run.read import Run, read_run, read_runs
from triptych.run.untrusted import OWN, find_checkpoint
from triptych.study.prerequisites import check_single
from triptych.study.results import results

_training = threading.Lock()
ONE_EACH = "several values; pass one, and call once for each"
UNREAD = {  # keys of the commands that an opened run has no use for
    "sample": ("weights", "data_root", "out", "trajectory", "cascade", "stages", "noise"),
    "evaluate": ("out", "items"),
}


def compose(overrides: Sequence[str] | str = ()) -> DictConfig:
    """Compose the configuration of ``triptych-train OVERRIDES``, a list or one; values may be set afterwards.

    Raises:
        UserError: what the command would refuse, in the same words; several values for one key.
    """
    config = _composed("train", [overrides] if isinstance(overrides, str) else overrides)
    OmegaConf.set_struct(config, False)  # ``train`` refuses an unknown key, with the nearest name
    return config


def train(config: DictConfig | Sequence[str] | str = ()) -> Run:
    """Train a composed configuration, or overrides, and return the run.

    A run with a name goes on where it was, or is read if it has ended. Sets seeds and threads of the process.

    Raises:
        UserError: a value that is refused, several processes, a run of that name of another configuration.
        Busy, Diverged, Interrupted, StorageError: as ``run.execute.execute``.
    """
    if not _training.acquire(blocking=False):  # they would share seeds and threads
        raise UserError("another run is trained in this process; wait for it")
    try:
        return _train(_settled(config))
    finally:
        _training.release()


def _train(config: DictConfig) -> Run:
    job = config.hydra
    check_single(config)
    trainer = config.trainer
    if (trainer.devices, trainer.num_nodes) != (1, 1) or processes.launch():
        several = f"trainer.devices={trainer.devices}, num_nodes={trainer.num_nodes}"
        raise UserError(f"{several}: Python trains in one process; use triptych-train for several")
    choices: Any = OmegaConf.to_container(job.runtime.choices)
    run = prepare(composing.without_hydra(config), Path(job.run.dir), list(job.overrides.task), choices)
    if run.status != "finished":
        from triptych.run.execute import execute

        os.environ[OWN] = str(run.path)
        try:
            execute(run)
        finally:
            os.environ.pop(OWN, None)
            run.leave()  # an interrupted run is at work no more, though this process lives on
    elif line := finished_before(run):
        from triptych.run.directory import log_line

        log_line(None, f"{run.path.name}: {line}")
    return read_run(run.path)


def _settled(config: DictConfig | Sequence[str] | str) -> DictConfig:
    """Recompose a configuration from its overrides and the values set by hand, so that all are checked."""
    if not isinstance(config, DictConfig):
        return compose(config)
    typed = OmegaConf.select(config, "hydra.overrides")
    if typed is None:
        raise UserError("config: must be what triptych.compose returned, or a list of overrides")
    overrides = [*typed.hydra, *typed.task]
    was = compose(overrides)
    changed = list(composing.edits(composing.settings(was), composing.settings(config)))
    return compose([*overrides, *changed]) if changed else was


@dataclass(frozen=True)
class Trained:
    """A trained run or checkpoint, opened as ``load`` says; its model is in evaluation mode."""

    path: Path
    weights: str | None
    data_root: str | None
    config: dict[str, Any]  # the run's, resolved, plain
    data: Any  # with ``splits["train" | "val" | "test"]``
    model: Any  # the whole one; for a diffusion model the three below are its parts

    @property
    def denoiser(self) -> Any:
        """(z (B, *event), gamma (B,), condition) -> Prediction, with .x0, .epsilon, .score, .v."""
        return self.model.denoiser

    @property
    def schedule(self) -> Any:
        """t in [0, 1] -> gamma = -log SNR."""
        return self.model.schedule

    @property
    def process(self) -> Any:
        """gamma -> alpha, sigma of z = alpha x + sigma eps."""
        return self.denoiser.process

    def bound(self, x: Any, condition: Any = None) -> Any:
        """Draw the bound of a batch once: its terms prior, reconstruction and diffusion, nats (B,).

        Args:
            x: items (B, *event) in data units; times and noise are those of the first B items of a split.
            condition: of the items, where the model has one.

        Raises:
            UserError: no such items, as images off the data's levels; no condition, or no bound.
        """
        import torch

        from triptych.data.batch import Batch, to_level, to_unit
        from triptych.diffusion.condition import Condition

        shape = tuple(self.data.shape)
        if not isinstance(x, torch.Tensor) or tuple(x.shape[1:]) != shape or not len(x):
            raise UserError(f"bound(x): x is no tensor of shape {('B', *shape)}; pass one")
        most, levels = x.abs().max().item(), self.data.levels
        if levels and not most <= 1 + 1e-6:  # also where it is not a number
            raise UserError(f"bound(x): x reaches {most:.4g}; pass images in [-1, 1]")
        if levels and not (x - to_unit(to_level(x, levels), levels)).abs().max() <= 1e-6:
            fix = f"pass triptych.data.batch.to_unit(to_level(x, {levels}), {levels})"
            raise UserError(f"bound(x): x is not on the data's {levels} levels; {fix}")
        kind: Any = Condition if self.model.conditional else Condition | None
        if not isinstance(condition, kind):
            raise UserError(f"bound(x): condition={condition!r}; pass condition=BATCH.condition")
        if not self.model.draws:
            raise UserError(f"{self.path}: its model, a {type(self.model).__name__}, has no bound")
        with torch.no_grad():
            return self._calibrated.elbo(
                Batch(x.float(), condition, torch.arange(len(x))), repeat=0, repeats=1
            )

    @cached_property
    def _calibrated(self) -> Any:
        self.model.before_accounting()
        return self.model

    def sample(self, n: int = 16, *overrides: str, seed: int = 0, label: int | None = None) -> Any:
        """Draw n samples (n, *event) in data units, as ``triptych-sample n=... OVERRIDES`` does.

        Args:
            overrides: as ``"sampler=ddim", "sampler.steps=20", "guidance=classifier_free"``.
            label: a class for every sample; None: all classes in turn, where the model knows them.

        Raises:
            UserError: what the command would refuse.
        """
        own = [f"n={n}", f"seed={seed}", f"label={'null' if label is None else label}"]
        values = _checked("sample", [f"ckpt={self.path}", *own], overrides)
        from triptych.run.experiment import Experiment
        from triptych.run.sample import SAMPLES, draw_all, drawing_of

        opened, device = Experiment(self.config, self.data, self.model), self.model.device
        try:
            return draw_all(drawing_of(opened, values), values)[SAMPLES]
        finally:  # it draws on a GPU
            self.model.to(device)

    def evaluate(self, split: str = "test", *overrides: str) -> dict[str, Any]:
        """Return {"bpd": {"mean", "stderr", "n"}, ...} over a split, as ``triptych-evaluate`` does.

        Reads the checkpoint again, while ``sample`` and ``bound`` use ``model`` as it is in memory.

        Raises:
            UserError: what the command would refuse.
        """
        typed = {"ckpt": self.path, "weights": self.weights, "data_root": self.data_root}
        typed["split"] = composing.typed(split)  # quoted: it may be no split's name
        values = _checked("evaluate", [f"{k}={v}" for k, v in typed.items() if v], overrides)
        if values["devices"] != 1:
            raise UserError(f"devices={values['devices']}: must be 1 in Python; use triptych-evaluate")
        from triptych.run.evaluate import evaluate_checkpoint

        return evaluate_checkpoint(values)


def load(
    run: Run | str | os.PathLike[str], weights: str | None = None, data_root: str | None = None
) -> Trained:
    """Open a run, its directory or a checkpoint, without executing untrusted code.

    Args:
        weights: "ema", "raw" or an average's name, as "sigma_rel_0.1"; None: those that the run reported.
        data_root: where its data lie now, if they have moved.

    Raises:
        UserError: it is missing, truncated or foreign, or names what may not be built.
    """
    place = run.dir if isinstance(run, Run) else run
    _check_argument("run", FilePath, place)
    path = Path(place).absolute()
    find_checkpoint(path)  # before torch is imported
    from triptych.run.reopen import reopen

    opened = reopen(str(path), weights, data_root)
    return Trained(path, weights, data_root, opened.config, opened.data, opened.model)


def table(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return all runs beneath a folder, a dictionary each, as in ``results.csv``: for ``pandas.DataFrame``.

    Keys: status, seed, settings that differ, and each figure of test, val and train as ``test/bpd``,
    ``test/bpd_stderr``, ``test/bpd_n``.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    _check_argument("folder", FilePath, folder)
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory{in_root(path)}")
    rows = results(read_runs(path))
    if not rows:
        raise UserError(f"{path}: no run in it (a run's directory holds config.yaml or summary.json)")
    return rows


def _check_argument(name: str, kind: Any, value: Any) -> None:
    if problem := refusal(name, kind, value):
        raise UserError(problem)


def _composed(command: str, overrides: Sequence[str], own: Sequence[str] = ()) -> DictConfig:
    """Compose our ``own`` and a user's overrides as ``triptych-COMMAND`` does; UserError for its options."""
    _check_argument("overrides", Sequence[str], overrides)
    for one in overrides:
        key, value = _key(one), one.partition("=")[2]
        if key.startswith("-") or key == "resume" or (key, value.lower()) == ("plan", "true"):
            raise UserError(f"{one}: is for the command triptych-{command}; from Python, use KEY=VALUE alone")
    return composing.compose_command(command, as_hydra_wants([*own, *overrides], command), ONE_EACH)


def _key(override: str) -> str:
    return without_hyphens(override).lstrip("+").partition("=")[0]


def _checked(command: str, own: list[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Check the values of ``command``; UserError for an override of a Python argument."""
    cfg = _composed(command, overrides, own)
    keys = {one.partition("=")[0] for one in own}
    for one in overrides:
        if (key := _key(one)) in keys:
            raise UserError(f"{one}: {key} is set already, by an argument here or in load()")
        if key in UNREAD[command] and one != "trajectory=null":  # which it is
            raise UserError(f"{one}: is for the command triptych-{command}; weights and data_root are load's")
    return composing.checked_values(composing.without_hydra(cfg), command)
