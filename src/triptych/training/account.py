"""The bound of a model over whole splits, in the one accounting."""

from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl

from triptych.data.base import DataModule
from triptych.data.batch import Batch
from triptych.models.base import BoundModel


def account(trainer: pl.Trainer, model: BoundModel, data: DataModule, test: bool = True) -> dict[str, Any]:
    """The bound over the whole validation and test sets, and as many training items as test items.

    ``test=False``: over the validation set alone, so that a setting can be chosen without a look at the rest.
    """
    figures: dict[str, Any] = {}
    for split in ("train", "val", "test") if test else ("val",):
        limit = len(data.splits["test"]) if split == "train" else None
        if len(data.splits[split]):
            figures[split] = account_split(trainer, model, data, split, limit)
    figures["noise_levels"] = model.accounting.noise_levels  # of the split accounted last: the test set
    return figures


def account_split(
    trainer: pl.Trainer,
    model: BoundModel,
    data: DataModule,
    split: str,
    limit: int | None = None,
    of: str = "",
) -> dict:
    """{"bpd": {"mean", "stderr", "n"}, ...} of one split under the model's present weights.

    ``of``: what to call them in the loggers, where they are not those that the run reports.
    """
    model.split = f"{split}_{of}" if of else split
    whole = len(data.splits[split])
    model.items = whole if limit is None else min(limit, whole)
    trainer.test(model, dataloaders=_Later(data, split, limit), verbose=False)
    found = model.accounting.compute()
    if data.mixture is not None and "gap" in found:
        entropy = data.mixture.entropy()
        dims = model.dims
        found["entropy"] = {"mean": entropy.mean / dims, "stderr": entropy.stderr / dims, "n": 0}
    return found


class _Later:
    """An evaluation loader that is made once the processes are there to share it."""

    def __init__(self, data: DataModule, split: str, limit: int | None):
        self._make = lambda: data.eval_dataloader(split, limit)

    def __len__(self) -> int:
        return len(self._make())

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._make())
