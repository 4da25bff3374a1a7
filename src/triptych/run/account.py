"""Evaluate the bound over whole splits, with trivial baselines and the cost of a run."""

import functools
import math
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.callbacks.metrics import figures_of
from triptych.data.base import DataModule
from triptych.data.batch import Batch, Split, to_level
from triptych.diffusion.mixture import GaussianMixture, MonteCarlo
from triptych.diffusion.reference import histogram
from triptych.diffusion.sampler import chunk_size
from triptych.models.accounting import Account
from triptych.models.base import BoundModel
from triptych.run.experiment import Experiment

SMOOTHING = 1.0  # counts spread over the K levels of a dimension


def account(trainer: pl.Trainer, experiment: Experiment) -> dict[str, Account]:
    """Evaluate the bound over all validation and test items, and over as many training items as test items.

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
    """Evaluate the bound over one split with the model's current weights.

    ``of``: what to call its figures in the loggers, where they are not those that the run reports.
    """
    trainer.test(model, dataloaders=_Later(data, split, limit, of), verbose=False)
    account: Account = model.accounting.compute()
    account.figures |= figures_of(trainer)
    if data.mixture is not None and "gap" in account.figures:
        entropy = _entropy(data.mixture)
        dims = model.dims
        account.figures["entropy"] = {"mean": entropy.mean / dims, "stderr": entropy.stderr / dims, "n": 0}
    return account


@functools.cache
def _entropy(mixture: GaussianMixture) -> MonteCarlo:
    return mixture.entropy()


class _Later:

    def __init__(self, data: DataModule, split: str, limit: int | None, of: str):
        self._make: Callable[[], Any] = lambda: data.eval_dataloader(split, limit)
        self.name = f"{split}_{of}" if of else split
        self.items = min(len(data.splits[split]), limit or len(data.splits[split]))

    def __len__(self) -> int:
        return len(self._make())

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._make())


def baselines(data: DataModule) -> dict[str, Any]:
    """Return {"baselines": {name: {"mean", "stderr", "n"}}} for ``summary.json``, bits/dim on the test set.

    "uniform": log2 K for every item. "histogram": each dimension's own frequencies of the K levels in the
    training split, (n_k + 1 / K) / (n + 1), one count in all being shared out so that no level is
    impossible. Empty for data without levels, or without test items.
    """
    if data.levels is None or not len(data.splits["test"]):
        return {}
    train, test = data.splits["train"], data.splits["test"]
    n, levels = len(test), data.levels
    bits = -histogram(_parts(train), levels, SMOOTHING).log2()
    each = torch.cat([_mean_of(bits, to_level(x, levels).flatten(1)) for x in _parts(test)])
    stderr = (each.std() / math.sqrt(n)).item() if n > 1 else 0.0
    return {
        "baselines": {
            "uniform": {"mean": math.log2(levels), "stderr": 0.0, "n": n},
            "histogram": {"mean": each.mean().item(), "stderr": stderr, "n": n},
        }
    }


def _parts(split: Split) -> Iterator[Tensor]:
    for index in torch.arange(len(split)).split(chunk_size(split.values.shape[1:])):
        yield split.batch(index).x


def _mean_of(bits: Tensor, k: Tensor) -> Tensor:
    return bits.gather(1, k.T).mean(0)


def measure_cost(device: torch.device, experiment: Experiment) -> dict[str, float]:
    """Return {"memory": bytes, "evaluations": denoiser calls for one sample} for ``summary.json``.

    Memory is the most that was in use at a time: what torch allocated on the GPU, else what the process held
    (resident set), libraries included; of this process alone, since it started. A model without a denoiser
    has no evaluations.
    """
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = most if sys.platform == "darwin" else 1024 * most  # kilobytes on Linux
    figures = {"memory": float(memory)}
    if experiment.drawing is not None and hasattr(experiment.model, "denoiser"):
        figures["evaluations"] = float(experiment.drawing.sampler.evaluations)
    return figures
