"""Choose the weights that a run reports, and evaluate their bound over whole splits.

Bounds of trivial models (uniform, histogram) are computed for comparison.
"""

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.callbacks.metrics import logged_mean
from triptych.config.metric import metric_names, metric_version
from triptych.data.base import DataModule
from triptych.data.batch import Split, to_level
from triptych.diffusion.pieces import GPU_MEMORY
from triptych.diffusion.reference import histogram
from triptych.diffusion.sampler import chunk_size
from triptych.models.accounting import Account
from triptych.models.base import BoundModel
from triptych.records import Checkpoint, Entries
from triptych.run.averaging import averages, reported_weights
from triptych.run.checkpoints import save_checkpoint
from triptych.run.directory import BEST, LAST, RunDirectory
from triptych.run.evaluate import (
    build_evaluation_trainer,
    check_finite,
    evaluate_split,
    write_items,
)
from triptych.run.experiment import Experiment
from triptych.run.fit import Fit
from triptych.run.initialization import Origin
from triptych.run.parsing import load_config
from triptych.run.reopen import open_weights
from triptych.run.session import Session
from triptych.run.untrusted import read_checkpoint

SMOOTHING = 1.0  # pseudo-count of the histogram baseline, divided among a dimension's K levels


@dataclass(frozen=True)
class FinalCheckpoint:
    """The checkpoint that a run leaves after its fit (``content`` at ``path``), with the data.

    Every reported value is computed with a new model, built from this checkpoint as the command
    ``triptych-evaluate`` does. State that only the trained model object or a callback holds
    therefore cannot change a result.
    """

    path: Path
    content: Checkpoint
    data: DataModule
    progress: Sequence[pl.Callback]

    @property
    def run(self) -> RunDirectory:
        """The run's directory."""
        return RunDirectory(self.path.parent.parent)

    @property
    def config(self) -> Any:
        return self.content["triptych"]["config"]

    @property
    def step(self) -> int:
        """The training step of the checkpoint."""
        return int(self.content["global_step"])

    @property
    def evaluates_test(self) -> bool:
        """Whether the test set is evaluated (``test=true``)."""
        return bool(self.config.get("test", True))

    def model(self, weights: str | None = None) -> BoundModel:
        """Build a model with the weights named ``weights``; by default the reported weights."""
        return open_weights(self.config, self.data, self.content, weights, self.run.path)

    def evaluate_splits(
        self, splits: Sequence[str], weights: str | None = None
    ) -> dict[str, Account]:
        """Evaluate the bound over each split that has items, with the weights named ``weights``."""
        splits = [split for split in splits if len(self.data.splits[split])]
        model = self.model(weights)
        accounts = {}
        for split in splits:
            trainer = build_evaluation_trainer(self.config, model, self.data, self.progress)
            accounts[split] = evaluate_split(trainer, model, self.data, split)
        return accounts


def choose_weights(
    session: Session, fit: Fit, experiment: Experiment, origin: Origin
) -> tuple[FinalCheckpoint, Entries | None]:
    """Return the checkpoint that the run reports, and validation metrics of its other weights.

    The second value is {"reported": name, "val": {name: metrics}}. It is None if there are fewer
    than two averages or no validation items, or if another run has trained the model (``trained``).
    With weights=chosen, the average with the lowest validation bound is reported, and its name is
    written into the checkpoint. The test set is not used.
    """
    path = _reported_checkpoint(session.run, fit, experiment)
    content = origin.adopted or read_checkpoint(path)
    checkpoint = FinalCheckpoint(path, content, experiment.data, fit.progress)
    stored = averages(content)
    choosing = checkpoint.config["weights"] == "chosen" and not content["triptych"].get("chosen")
    weights = None
    if not choosing:
        weights = reported_weights(content)
    if origin.adopted or len(stored) < 2 or not len(experiment.data.splits["val"]):
        return checkpoint, None
    accounts = {}
    for name in ("raw", *stored):
        if name != weights:  # The reported weights are evaluated later, with the other splits.
            accounts[name] = checkpoint.evaluate_splits(["val"], name)["val"]
            _log_account(fit, f"final/val_{name}_", accounts[name])
    if weights is None:
        weights = min(stored, key=lambda name: accounts[name].figures[accounts[name].unit]["mean"])
        content["triptych"]["chosen"] = weights
        del accounts[weights]
        if fit.trainer.is_global_zero:
            save_checkpoint(content, path)
    figures = {name: account.figures for name, account in accounts.items()}
    return checkpoint, {"reported": weights, "val": figures}


def _reported_checkpoint(run: RunDirectory, fit: Fit, experiment: Experiment) -> Path:
    """Return the path of the checkpoint that the run reports: the best, or else the last."""
    last, best = run / "checkpoints" / LAST, run / "checkpoints" / BEST
    if experiment.config["checkpoint"] != "best" or not fit.trainer.global_step:
        return last  # This includes runs that fit nothing.
    return best


def account_splits(checkpoint: FinalCheckpoint, fit: Fit) -> dict[str, Account]:
    """Evaluate and log the bound of each split, and write the bound of each test item.

    With test=false only validation is evaluated. Raises Diverged if a bound is not finite.
    """
    # The test set comes first, so that no other split can leave state in the model.
    splits = ["test", "val", "train"]
    if not checkpoint.evaluates_test:
        splits = ["val"]
    accounts = checkpoint.evaluate_splits(splits)
    for split, account in accounts.items():
        _log_account(fit, "test/" if split == "test" else f"final/{split}_", account)
    for split, account in accounts.items():
        check_finite(account, split, fit.trainer.global_step)
    if checkpoint.evaluates_test and fit.trainer.is_global_zero:
        write_items(checkpoint.run / "items.npz", accounts["test"])
    return accounts


def _log_account(fit: Fit, prefix: str, account: Account) -> None:
    """Log an account's metrics to the loggers of the fit, at its last step."""
    figures = {prefix + name: logged_mean(figure) for name, figure in account.figures.items()}
    for logger in fit.trainer.loggers:
        logger.log_metrics(figures, fit.trainer.global_step)


def describe_accounts(checkpoint: FinalCheckpoint, accounts: dict[str, Account]) -> Entries:
    """Return the entries of ``summary.json`` on the reported weights and their bounds."""
    run, reported = checkpoint.run, next(iter(accounts.values()))
    measures = metric_names(load_config(run / "config.yaml"))
    return {
        "weights": checkpoint.config["weights"],
        "checkpoint": str(checkpoint.path.relative_to(run.path)),
        **{split: account.figures for split, account in accounts.items()},
        "noise_levels": reported.noise_levels,
        "estimator": reported.estimator or None,
        "versions": {name: metric_version(name) for name in measures},
    }


def baseline_bounds(data: DataModule) -> Entries | None:
    """Return the bits/dim of trivial models on the test set; None for data without levels.

    The result is {name: {"mean", "stderr", "n"}}. "uniform" is log2 K for data with K levels.
    "histogram" codes each dimension by its level frequencies in the n training items, (n_k + 1/K) /
    (n + 1).
    """
    if data.levels is None:
        return None
    train, test, levels = data.splits["train"], data.splits["test"], data.levels
    n = len(test)
    bits = -histogram(_value_chunks(train), levels, SMOOTHING).log2()
    each = torch.cat(
        [bits.gather(1, to_level(x, levels).flatten(1).T).mean(0) for x in _value_chunks(test)]
    )
    stderr = (each.std() / math.sqrt(n)).item() if n > 1 else 0.0
    return {
        "uniform": {"mean": math.log2(levels), "stderr": 0.0, "n": n},
        "histogram": {"mean": each.mean().item(), "stderr": stderr, "n": n},
    }


def _value_chunks(split: Split) -> Iterator[Tensor]:
    """Yield the values of a split's items in chunks, (k, *shape)."""
    for index in torch.arange(len(split)).split(chunk_size(split.values.shape[1:])):
        yield split.batch(index).x


def peak_memory(device: torch.device) -> float:
    """Return this process's peak memory in bytes: on the GPU if it uses one, else in RAM."""
    if device.type == "cuda":
        return float(GPU_MEMORY.peak(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else 1024 * most)  # Linux reports kilobytes.
