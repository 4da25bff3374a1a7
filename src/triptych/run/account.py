"""The bound of a model over whole splits, in the one accounting."""

from collections.abc import Iterator

import pytorch_lightning as pl

from triptych.callbacks.metrics import figures_of
from triptych.data.base import DataModule
from triptych.data.batch import Batch
from triptych.models.accounting import Account
from triptych.models.base import BoundModel
from triptych.run.experiment import Experiment


def account(trainer: pl.Trainer, experiment: Experiment) -> dict[str, Account]:
    """The bound over the whole validation and test sets, and as many training items as test items, by split.

    With test=false over the validation set alone, so that a setting can be chosen without a look at the rest.
    """
    model, data = experiment.model, experiment.data
    splits = ("train", "val", "test") if experiment.config.get("test", True) else ("val",)
    few = {"train": len(data.splits["test"])}
    return {
        split: account_split(trainer, model, data, split, few.get(split))
        for split in splits
        if len(data.splits[split])
    }


def account_split(
    trainer: pl.Trainer,
    model: BoundModel,
    data: DataModule,
    split: str,
    limit: int | None = None,
    of: str = "",
) -> Account:
    """One split under the model's present weights.

    ``of``: what to call its figures in the loggers, where they are not those that the run reports.
    """
    trainer.test(model, dataloaders=_Later(data, split, limit, of), verbose=False)
    account: Account = model.accounting.compute()
    account.figures |= figures_of(trainer)
    if data.mixture is not None and "gap" in account.figures:
        entropy = data.mixture.entropy()
        dims = model.dims
        account.figures["entropy"] = {"mean": entropy.mean / dims, "stderr": entropy.stderr / dims, "n": 0}
    return account


class _Later:
    """An evaluation loader that is made once the processes are there to share it."""

    def __init__(self, data: DataModule, split: str, limit: int | None, of: str):
        self._make = lambda: data.eval_dataloader(split, limit)
        self.name = f"{split}_{of}" if of else split
        self.items = min(len(data.splits[split]), limit or len(data.splits[split]))

    def __len__(self) -> int:
        return len(self._make())

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._make())
