"""Checkpoints: plain data, written atomically, loaded without executing code; when a run saves which."""

import io
import math
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.nn.parameter import is_lazy

from triptych.callbacks.ema import POWER, SNAPSHOTS, combination, exponent
from triptych.config.keys import find_key
from triptych.config.own_code import defined_at, is_own
from triptych.declare import literal_values
from triptych.errors import Diverged, ForeignCheckpoint, Interrupted, UserError
from triptych.files import load_tensors
from triptych.run.directory import BEST, LAST, PRUNE, RunDirectory, log_line, write_atomic
from triptych.run.parsing import error_line
from triptych.run.stopping import Stop
from triptych.run.untrusted import is_averaging, read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save Lightning's checkpoints atomically: a kill leaves the old file or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomic(path, buffer.getvalue())


def newest_readable(paths: list[Path]) -> Path | None:
    """Return the readable checkpoint with the highest step; on a tie, "last". A line reports damaged ones.

    ForeignCheckpoint: all readable ones are another's; starting over would overwrite them.
    """
    known, damaged = [], []
    for path in paths:
        try:
            known.append((read_checkpoint(path)["global_step"], path.name == LAST, path))
        except (UserError, OSError) as error:
            damaged.append(error)
    foreign = [problem for problem in damaged if isinstance(problem, ForeignCheckpoint)]
    if foreign and not known:
        raise foreign[0]
    for problem in damaged:
        log_line(None, f"passed over: {problem}")
    return max(known)[2] if known else None


def averages(checkpoint: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return a checkpoint's averages by name, such as sigma_rel_0.1; the reported one first."""
    for state in checkpoint["callbacks"].values():
        if is_averaging(state):
            return {state["name"]: state["average"]} | state["others"]
    return {}


def load_weights(
    module: torch.nn.Module, checkpoint: dict[str, Any], weights: str, run: Path | None = None
) -> None:
    """Load the raw or averaged weights of a checkpoint into ``module``; UserError if it has none such.

    Diverged: one is not finite, as in a file that no run of ours wrote.

    ``weights``: "ema", the reported average; "raw"; "chosen", by a run with weights=chosen; or an average by
    name. One that was not stored, as sigma_rel_0.07, is made from the snapshots of ``run``.
    """
    average = average_of(checkpoint, weights, run)
    if average is not None:
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        if lacking := [name for name in trained if name not in average]:
            problem = f"the average lacks {lacking[0]}, which the raw weights must not stand for"
            raise UserError(f"weights={weights}: {problem}; restore the checkpoint, or pass weights=raw")
    tensors = checkpoint["state_dict"] | (average or {})
    try:
        module.load_state_dict(tensors)
    except (RuntimeError, TypeError, AttributeError) as error:
        why = f"not those of the checkpoint's configuration ({error_line(error)}); restore the checkpoint"
        raise UserError(f"weights={weights}: {why}") from error
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise Diverged("a weight", checkpoint.get("global_step", 0))


def average_of(checkpoint: dict[str, Any], weights: str, run: Path | None = None) -> dict[str, Tensor] | None:
    """Return the average that ``load_weights`` loads over the raw weights; None for these alone."""
    stored = averages(checkpoint)
    if weights == "chosen":
        weights = checkpoint.get("triptych", {}).get("chosen")
        if not weights:
            raise UserError("weights=chosen: the run has not chosen among its averages; pass ema or raw")
    if weights == "ema":
        if not stored:
            raise UserError("weights=ema: this checkpoint holds no average; pass weights=raw")
        return next(iter(stored.values()))
    if weights == "raw":
        return None
    if weights in stored:
        return stored[weights]
    names = [*literal_values(find_key("weights").kind), *stored]
    return _reconstruct(run, checkpoint, weights, names)


def reported(checkpoint: dict[str, Any]) -> str:
    """Return the name of the weights that a checkpoint's run reports: "raw", or an average."""
    stored, weights = averages(checkpoint), checkpoint["triptych"]["config"].get("weights")
    if weights == "raw" or not stored:
        return "raw"
    chosen = checkpoint["triptych"].get("chosen")
    return chosen if weights == "chosen" and chosen in stored else next(iter(stored))


def _first_snapshot(config: dict[str, Any]) -> int:
    snapshots = (one.get("snapshots") for one in (config.get("callbacks") or {}).values() if one)
    return round(min(((config["trainer"]["max_steps"] or 0) / n for n in snapshots if n), default=0))


def _reconstruct(
    run: Path | None, checkpoint: dict[str, Any], weights: str, choices: Sequence[str]
) -> dict[str, Tensor]:
    """Reconstruct the average that ``weights`` names, from snapshots and the checkpoint's own averages."""
    step, own = checkpoint.get("global_step", 0), averages(checkpoint)
    try:
        sigma_rel = float(weights.removeprefix(POWER)) if weights.startswith(POWER) else math.nan
        exponent(sigma_rel)
    except ValueError:
        raise UserError(f"weights={weights}: must be one of {', '.join(choices)}") from None
    files = [p for p in sorted((run / SNAPSHOTS).glob("*.pt")) if int(p.stem) <= step] if run else []
    # of a fit that ended before its first snapshot, the checkpoint's own averages have to do
    if not files and not (run and 0 < step < _first_snapshot(checkpoint["triptych"]["config"])):
        problem = "not kept, and no snapshots to make it from (callbacks.ema.snapshots=20 stores them)"
        raise UserError(f"weights={weights}: {problem}; choose one of {', '.join(choices)}")
    reads: dict[int, Callable[[], Any]] = {int(p.stem): partial(read_tensors, p, "a snapshot") for p in files}
    if step not in reads:
        known = reads[max(reads)]()["sigma_rel"] if reads else {}
        lengths = {n: known.get(n, float(n.removeprefix(POWER))) for n in own if n.startswith(POWER)}
        reads[step] = lambda: {"sigma_rel": lengths, "averages": {name: own[name] for name in lengths}}
    stored = [(at, s) for at, read in reads.items() for s in read()["sigma_rel"].values()]
    factors = iter(combination(stored, step, sigma_rel).tolist())
    total: dict[str, Tensor] = {}
    for read in reads.values():  # one file at a time in memory, summed in double: factors have both signs
        for average in read()["averages"].values():
            factor = next(factors)
            for name, value in average.items():
                total[name] = total.get(name, 0) + factor * value.double()
    return {name: value.to(average[name].dtype) for name, value in total.items()}


def read_tensors(path: Path, kind: str) -> dict[str, Any]:
    """Load a file of tensors and plain data; UserError for any other content."""
    try:
        return load_tensors(path)  # type: ignore[no-any-return]
    except ValueError as error:
        raise UserError(f"{path}: {error}, so not {kind} of a run; restore it") from error


def check_states(model: torch.nn.Module, callbacks: Sequence[pl.Callback]) -> None:
    """Check that a checkpoint can hold the states of a model and of users' callbacks; UserError."""
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor) and not is_lazy(value):
            value = torch.empty(0, dtype=value.dtype)  # only the kind of the numbers matters
        _check_plain(value, f"{key} of {type(model).__name__}")
    for callback in callbacks:
        if is_own(callback):
            try:
                state = callback.state_dict()
            except Exception:  # it may have a state in training alone
                continue
            _check_plain(state, type(callback).__name__, defined_at(type(callback)))


def _check_plain(state: Any, owner: str, place: str = "") -> None:
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        fix = "return numbers, text, lists, dicts or common tensors"
        raise UserError(f"{owner}.state_dict(): no plain data; {fix}{place}") from error


class Keep(pl.Callback):
    """Save after each validation, else every ``every`` steps, and before the run stops.

    A checkpoint stands between two steps: all up to its step is on disk. "best" is lowest in ``monitor``,
    None where nothing is validated; ``record``: what each checkpoint says of the run and its data.
    """

    def __init__(
        self, run: RunDirectory, monitor: str | None, every: int, stop: Stop, record: dict[str, Any]
    ):
        self.record = record
        self.folder, self.monitor, self.every, self.stop = run / "checkpoints", monitor, every, stop
        self.best = math.inf
        self._before: float = 0.0
        self._began: float | None = None  # while nothing is being fitted
        self._seen = 0
        self._saved = (0, False)  # the step, and whether a callback had ended the fit
        self._stopped = False  # whether one had in the checkpoint that the run goes on from

    @property
    def seconds(self) -> float:
        """Seconds of fitting so far, without those lost to a kill."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "seconds": self.seconds, "stopped": self._saved[1]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._before = float(state_dict["best"]), float(state_dict["seconds"])
        self._stopped = state_dict.get("stopped", False)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["triptych"] = self.record

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began = time.monotonic()
        trainer.should_stop |= self._stopped
        self._seen = trainer.global_step
        self._saved = (trainer.global_step, trainer.should_stop)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:  # a gradient was accumulated, no step taken
            return
        self._seen = step
        due = step % self.every == 0
        stop = self.stop.agreed(trainer, look=due)
        if due and self.monitor:  # validation comes next and saves
            self.stop.check_weights(trainer, module)
            return
        if due or stop is not None:
            self._row(trainer, trainer.loggers[: 1 if stop is None else None])
            self._save(trainer, LAST)
        if stop is not None:
            raise Interrupted(stop, step)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.monitor is None:
            return
        score = float(trainer.callback_metrics[self.monitor])
        if not math.isfinite(score):  # the same in all processes
            raise Diverged("the validation bound", trainer.global_step)
        if score < self.best:
            self.best = score
            self._save(trainer, BEST)
            if trainer.is_global_zero:  # the same state; a copy, so that damage to one leaves the other
                write_atomic(self.folder / LAST, (self.folder / BEST).read_bytes())
        else:
            self._save(trainer, LAST)
        if (self.folder.parent / PRUNE).exists():  # by a search that has seen enough
            self.stop.received = self.stop.received or int(signal.SIGTERM)
        if (stop := self.stop.agreed(trainer, look=True)) is not None:
            raise Interrupted(stop, trainer.global_step)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if (trainer.global_step, trainer.should_stop) != self._saved:
            self._save(trainer, LAST)
        self._before, self._began = self.seconds, None

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        self.stop.check_weights(trainer, trainer.lightning_module)
        self._saved = (trainer.global_step, trainer.should_stop)
        table: Any = trainer.loggers[0]  # metrics.csv
        table.flush()  # before the checkpoint: what it has seen is on disk, if it is
        trainer.save_checkpoint(self.folder / name)

    def _row(self, trainer: Any, loggers: Sequence[Logger]) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            figures = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/")}
            for logger in loggers:
                logger.log_metrics(figures, trainer.global_step - 1)
