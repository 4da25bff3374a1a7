"""Evaluate a model's bound over a split, at the end of a run or later from a checkpoint."""

import functools
import io
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from triptych.callbacks.metrics import build_metrics_callback, item_metrics_callback
from triptych.data.base import DataModule
from triptych.diffusion.mixture import GaussianMixture
from triptych.errors import Diverged, UserError
from triptych.models.accounting import TERMS, Account
from triptych.models.base import BoundModel
from triptych.records import Config, Entries
from triptych.run.directory import log_line, write_atomic
from triptych.run.items import group_values
from triptych.run.other_runs import OtherRuns, set_teacher
from triptych.run.processes import check_cpu_processes, rank
from triptych.run.reopen import reopen
from triptych.run.trainer import build_trainer

# Columns of items.npz besides "index".
COLUMNS = ("total", "prior", "reconstruction", "diffusion", "draw_variance")
# {key of triptych-evaluate that overrides ``bound.KEY``: the value that keeps the run's own}
BOUND = {"steps": "run", "variance": None, "repeats": None}
_entropy = functools.cache(GaussianMixture.entropy)


def build_evaluation_trainer(
    config: Config,
    model: BoundModel,
    data: DataModule,
    progress: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Build a Trainer that evaluates a model's bound and metrics; UserError if it cannot.

    With user metrics, the teacher of a distilled model is opened too, as a metric may compute the
    training loss, which needs the teacher's predictions.
    """
    if config.get("metrics"):
        set_teacher(config, model, data, OtherRuns(config))
    return build_trainer(config, None, [*build_metrics_callback(config), *progress])


def evaluate_split(trainer: pl.Trainer, model: BoundModel, data: DataModule, split: str) -> Account:
    """Evaluate the bound over a split; of "train", over as many items as the test set has."""
    limit = None
    if split == "train" and len(data.splits["test"]):
        limit = len(data.splits["test"])
    with isolate_rng():
        # User-supplied code may draw from any global generator, so seed all of them.
        torch.manual_seed(model.seed)
        np.random.seed(model.seed)
        random.seed(model.seed)
        trainer.test(model, dataloaders=data.eval_dataloader(split, limit), verbose=False)
    # The test has moved the model to the CPU, and NCCL adds the sums of processes only on a GPU.
    account: Account = model.accounting.to(trainer.strategy.root_device).compute()
    groups = data.splits[split].groups
    if groups is not None and account.per_item is not None:
        take_errors_over_groups(account, groups)
    account.figures |= item_metrics_callback(trainer).figures
    if data.mixture is not None and "gap" in account.figures:
        entropy = _entropy(data.mixture)
        mean, stderr = entropy.mean / model.dims, entropy.stderr / model.dims
        account.figures["entropy"] = {"mean": mean, "stderr": stderr, "n": 0}
    return account


def take_errors_over_groups(account: Account, groups: Tensor) -> None:
    """Replace the standard errors of the bound and its terms by errors over groups of items.

    ``groups`` has the group of each item of the split. With one group the errors are NaN.
    """
    assert account.per_item is not None
    index, rows = account.per_item
    account.groups = groups[index]
    numbers = account.groups.numpy()
    count = len(np.unique(numbers))
    errors = [math.nan] * len(TERMS)
    if count > 1:
        values = group_values(rows[:, : len(TERMS)].numpy().T, numbers)
        errors = (values.std(-1, ddof=1) / math.sqrt(count)).tolist()
    for term, error in zip(TERMS, errors, strict=True):
        account.figures[account.unit + term] |= {"stderr": error, "groups": count}


def check_finite(account: Account, split: str, step: int) -> None:
    """Raise Diverged if the bound is not finite; ``step`` is the training step of the weights."""
    bound = account.figures.get(account.unit)
    if bound and not math.isfinite(bound["mean"]):
        raise Diverged(f"the bound of the {split} set", step)


def write_items(path: Path, account: Account) -> bool:
    """Write the bound of each item to an .npz file; return False if ``account`` has none.

    Arrays: ``index`` (n,) int64, increasing, and each of ``COLUMNS`` (n,) float64. The values are
    in the reported unit and are means over the random draws of times and noise. ``draw_variance``
    is the variance of that mean, NaN if there is one draw. ``group`` (n,) int64 is included if the
    data have groups.
    """
    if account.per_item is None:
        return False
    index, rows = account.per_item
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(COLUMNS, rows.numpy().T.copy(), strict=True))
    if account.groups is not None:
        arrays["group"] = account.groups.numpy()
    np.savez(buffer, index=index.numpy().astype(np.int64), **arrays)
    write_atomic(path, buffer.getvalue())
    return True


def evaluate_checkpoint(values: Config) -> Entries:
    """Evaluate a checkpoint over a split; return {"bpd": {"mean", "stderr", "n"}, ...}.

    ``values`` are the keys of ``configs/evaluate.yaml``.
    """
    log_line(None, check_cpu_processes({**values, "accelerator": "auto"}, "devices"))
    split, items = values["split"], values["items"]
    judged = () if split == "train" else (split,)
    adjust = functools.partial(_apply_command_values, values)
    opened = reopen(values["ckpt"], values["weights"], values["data_root"], adjust, judged)
    if not len(opened.data.splits[split]):
        raise UserError(f"split={split}: this split has no items; choose another")
    trainer = build_evaluation_trainer(opened.config, opened.model, opened.data)
    account = evaluate_split(trainer, opened.model, opened.data, split)
    check_finite(account, split, opened.step)
    if items and rank() == 0 and not write_items(Path(items), account):
        raise UserError(f"items={items}: this model has no bound per item; pass null")
    return account.figures


def _apply_command_values(values: Config, config: Config) -> None:
    """Set the values of ``triptych-evaluate`` in a run's configuration, where they are given."""
    config["bound"] |= {key: values[key] for key, usual in BOUND.items() if values[key] != usual}
    config["threads"] = values["threads"] or config["threads"]
    if values["batch_size"] is not None:
        config["data"]["eval_batch_size"] = values["batch_size"]
    devices = values["devices"]
    strategy = "ddp" if devices > 1 else "auto"
    # The run may have been trained on another machine, so its own device settings are not used.
    config["trainer"] |= {
        "accelerator": "auto",
        "devices": devices,
        "num_nodes": 1,
        "strategy": strategy,
    }
