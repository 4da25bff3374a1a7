"""Use Triptych from Python: in a notebook, a debugger or a script.

The commands take the same path: a run that Python trained is a directory like any other, and either goes on
with what the other has begun.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import as_hydra_wants, without_hyphens
from triptych.config import compose as composing
from triptych.config.names import in_root
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.prepare import prepare
from triptych.run.read import Run, read_run, read_runs
from triptych.run.untrusted import OWN, check_checkpoint
from triptych.study.results import results
from triptych.study.single import check_single

if TYPE_CHECKING:  # torch is imported where a model is trained or opened, so that a refusal comes at once
    from triptych.run.experiment import Experiment


def compose(overrides: Sequence[str] | str = ()) -> DictConfig:
    """Compose the configuration of ``triptych-train OVERRIDES``; its values may be set afterwards.

    Args:
        overrides: a list, or a text that is one override.

    Raises:
        UserError: what the command would refuse, in the same words; several values for one key.
    """
    return _composed("train", [overrides] if isinstance(overrides, str) else overrides)


def train(config: DictConfig | Sequence[str] | str = ()) -> Run:
    """Train a composed configuration, or overrides, and return the run.

    Typed again, a run with a name goes on where it was, or is read if it has ended. Seeds and the number of
    threads are set for the whole process.

    Raises:
        UserError: a value that is refused, several processes, a run of that name of another configuration.
        Busy, Diverged, Interrupted, StorageError: as ``run.execute.execute``.
    """
    config = _settled(config)
    job = config.hydra
    check_single(config)
    trainer = config.trainer
    if (trainer.devices, trainer.num_nodes) != (1, 1) or processes.launch():
        raise UserError(
            f"trainer.devices={trainer.devices}, num_nodes={trainer.num_nodes}: Python trains in one "
            "process; use triptych-train for several"
        )
    choices = OmegaConf.to_container(job.runtime.choices)
    # OmegaConf types a node as any of its kinds
    # Hydra's node is a DictConfig
    run = prepare(composing.without_hydra(config), Path(job.run.dir), list(job.overrides.task), choices)  # type: ignore[arg-type]
    if run.status != "finished":
        from triptych.run.execute import execute

        with _own(run.path):
            execute(run)
    return read_run(run.path)


def _settled(config: DictConfig | Sequence[str] | str) -> DictConfig:
    """Recompose a configuration from its overrides and the values set by hand, so that all are checked."""
    if not isinstance(config, DictConfig):
        return compose(config)
    overrides = OmegaConf.select(config, "hydra.overrides.task")
    if overrides is None:
        raise UserError("config: must be what triptych.compose returned, or a list of overrides")
    was = compose(list(overrides))
    changed = list(composing.edits(composing.unresolved(was), composing.unresolved(config)))
    return compose([*overrides, *changed]) if changed else was


def check_items(x: Any, shape: tuple[int, ...], levels: int | None) -> None:
    """Check that ``x`` is a batch of items (B, *shape) in data units; those with levels are in [-1, 1].

    Raises:
        UserError: another type or shape, no items, numbers that are not finite or out of range.
    """
    import torch

    if not isinstance(x, torch.Tensor) or tuple(x.shape[1:]) != shape or not len(x):
        held = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise UserError(f"bound(x): x is {held}; pass a tensor of shape {('B', *shape)}")
    if not x.is_floating_point():
        raise UserError(f"bound(x): x is of {x.dtype}; pass floating-point numbers in data units")
    most = x.abs().max().item()
    if not math.isfinite(most):
        raise UserError("bound(x): x is not finite; pass finite numbers in data units")
    if levels and most > 1 + 1e-6:
        raise UserError(f"bound(x): x reaches {most:.4g}; pass images in [-1, 1]")


@contextmanager
def _own(path: Path) -> Iterator[None]:
    """Mark the run at ``path`` as the user's own within the context."""
    before = os.environ.get(OWN)
    os.environ[OWN] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[OWN]
        else:
            os.environ[OWN] = before


@dataclass(frozen=True)
class Trained:
    """A trained run or checkpoint, opened.

    Attributes:
        path: the checkpoint, or the run's directory.
        weights: "ema", "raw" or an average's name; None for those that the run reported.
        data_root: where its data lie now, if they have moved.
        experiment: its configuration, data and model, in evaluation mode.
    """

    path: Path
    weights: str | None
    data_root: str | None
    experiment: Experiment

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration, resolved, plain."""
        return self.experiment.config

    @property
    def data(self) -> Any:
        """Its data, with ``splits["train" | "val" | "test"]``."""
        return self.experiment.data

    @property
    def model(self) -> Any:
        """The whole model; for a diffusion model the four below are its parts."""
        return self.experiment.model

    @property
    def denoiser(self) -> Any:
        """(z (B, *event), gamma (B,), condition) -> Prediction, with .x0, .epsilon, .score, .v."""
        return self._part("denoiser")

    @property
    def schedule(self) -> Any:
        """t in [0, 1] -> gamma = -log SNR."""
        return self._part("schedule")

    @property
    def process(self) -> Any:
        """gamma -> alpha, sigma of z = alpha x + sigma eps."""
        return self.denoiser.process

    def bound(self, x: Any, *arguments: Any, condition: Any = None) -> Any:
        """Draw the bound of a batch once: its terms prior, reconstruction and diffusion, nats (B,).

        Args:
            x: items (B, *event) in data units; times and noise are those of the first B items of a split.
            arguments: for ``bound(denoiser, x, draw)``, the formula with a denoiser and draws of one's own.
            condition: of the items, where the model has one.

        Raises:
            UserError: as ``check_items``; the model wants a condition.
        """
        import torch

        from triptych.data.batch import Batch
        from triptych.diffusion.condition import Condition

        if arguments:
            return self._part("bound")(x, *arguments, condition=condition)
        check_items(x, tuple(self.data.shape), self.data.levels)
        if self.config["model"].get("conditional") and condition is None:
            raise UserError("bound(x): the model has a condition; pass condition=BATCH.condition")
        if condition is not None and not isinstance(condition, Condition):
            raise UserError(f"bound(x): condition={condition!r}; pass condition=BATCH.condition")
        if not self.model.draws:
            raise UserError(f"{self.path}: its model, a {type(self.model).__name__}, has no bound")
        with torch.no_grad():
            return self.model.elbo(Batch(x, condition, torch.arange(len(x))), repeat=0, repeats=1)

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
        if values["trajectory"] is not None:
            raise UserError(f"trajectory={values['trajectory']}: a file, which triptych-sample writes")
        from triptych.run.sampling.opened import SAMPLES, draw_all, drawing_of

        return draw_all(drawing_of(self.experiment, values), values)[SAMPLES]

    def evaluate(self, split: str = "test", *overrides: str) -> dict[str, Any]:
        """Return {"bpd": {"mean", "stderr", "n"}, ...} over a split, as ``triptych-evaluate`` does.

        Raises:
            UserError: what the command would refuse.
        """
        own = [f"ckpt={self.path}", f"split={split}"]
        own += [f"weights={self.weights}"] if self.weights else []
        own += [f"data_root={self.data_root}"] if self.data_root else []
        values = _checked("evaluate", own, overrides)
        if values["devices"] != 1:
            raise UserError(
                f"devices={values['devices']}: one process in Python; use triptych-evaluate for more"
            )
        from triptych.run.account import evaluate_checkpoint

        return evaluate_checkpoint(values)

    def _part(self, name: str) -> Any:
        part = getattr(self.model, name, None)
        if part is None:
            raise UserError(f"{self.path}: its model, a {type(self.model).__name__}, has no {name}")
        return part


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
    path = _path(run.dir if isinstance(run, Run) else run).absolute()
    check_checkpoint(str(path))
    from triptych.run.reopen import reopen

    return Trained(path, weights, data_root, reopen(str(path), weights, data_root))


def table(folder: str | os.PathLike[str]) -> Any:
    """Return all runs beneath a folder, one row each, as in ``results.csv``; with pandas a DataFrame.

    Without it a list of dictionaries. Columns: status, seed, settings that differ, and each figure of test,
    val and train as ``test/bpd``, ``test/bpd_stderr``, ``test/bpd_n``.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    path = _path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory{in_root(path)}")
    rows = results(read_runs(path))
    if not rows:
        raise UserError(f"{path}: no run in it (a run's directory holds config.yaml or summary.json)")
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def _path(value: Any) -> Path:
    """Return ``value`` as a path; UserError for anything else."""
    if not isinstance(value, str | os.PathLike) or value == "":
        raise UserError(f"{value!r}: must be the path of a directory or checkpoint")
    return Path(value)


def _composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose as ``triptych-COMMAND`` does; UserError for overrides that are not text, or are options."""
    if not isinstance(overrides, Sequence):
        raise UserError(f"overrides={overrides!r}: must be a list of texts, each 'KEY=VALUE'")
    for one in overrides:
        if not isinstance(one, str):
            raise UserError(f"overrides: {one!r} is no text; write each as 'KEY=VALUE'")
        if without_hyphens(one).startswith(("-", "resume=")):
            raise UserError(f"{one}: is for the command triptych-{command}; from Python, use KEY=VALUE alone")
    return composing.compose_command(command, as_hydra_wants([*overrides], command))


def _checked(command: str, own: list[str], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the checked values of ``command``; UserError for an override of a Python argument."""
    keys = {one.partition("=")[0] for one in own}
    for one in overrides:
        if isinstance(one, str) and (key := one.partition("=")[0]) in keys:
            raise UserError(f"{one}: {key} is set already, by an argument here or in load()")
    cfg = _composed(command, [*own, *overrides])
    return composing.checked_values(composing.without_hydra(cfg), command)
