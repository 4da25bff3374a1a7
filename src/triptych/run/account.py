"""Choose the weights that a run reports; evaluate their bound over whole splits, beside trivial baselines."""

import functools
import io
import math
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.callbacks.metrics import build_metrics, metrics_of
from triptych.data.base import DataModule
from triptych.data.batch import Split, to_level
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.reference import histogram
from triptych.diffusion.sampler import chunk_size
from triptych.errors import UserError
from triptych.models.accounting import Account
from triptych.models.base import BoundModel
from triptych.run.checkpoints import averages, load_weights, read_checkpoint, reported, save_checkpoint
from triptych.run.directory import BEST, LAST, RunDirectory, write_atomic
from triptych.run.drawing import Experiment
from triptych.run.fit import build_trainer
from triptych.run.initialization import Origin
from triptych.run.processes import rank
from triptych.run.reopen import reopen

# of items.npz, beside "index"
COLUMNS = ("total", "prior", "reconstruction", "diffusion", "draw_variance")
OF_THE_RUN = {"steps": "run", "variance": None, "repeats": None}  # values that leave a bound as it was
SMOOTHING = 1.0  # counts spread over the K levels of a dimension
_entropy = functools.cache(GaussianMixture.entropy)


def choose_weights(
    run: RunDirectory, trainer: pl.Trainer, experiment: Experiment, origin: Origin
) -> tuple[Path, int, dict[str, Any]]:
    """Load the weights that the run reports; return their checkpoint, its step, and figures of the others.

    {"averaging": {"reported", "val"}} on validation, if there are several; with weights=chosen the lowest is
    reported, and noted in the checkpoint. The test set is not looked at. {} where another run has chosen.
    """
    path = run / "checkpoints" / LAST
    if experiment.config["checkpoint"] == "best" and trainer.global_step:  # else nothing was fitted here
        path = path.with_name(BEST)
        if not path.exists():
            raise UserError(f"checkpoint=best: {path} is not there; restore it, or force=true starts over")
    checkpoint = origin.adopted or read_checkpoint(path)
    model, data = experiment.model, experiment.data
    weights, stored = experiment.config["weights"], averages(checkpoint)
    known = weights != "chosen" or checkpoint["triptych"].get("chosen")
    own = reported(checkpoint) if known else None
    figures = {}
    if not origin.adopted and len(stored) > 1 and len(data.splits["val"]):
        for name in ("raw", *stored):
            if name != own:  # that one is accounted with the other splits
                load_weights(model, checkpoint, name)
                figures[name] = account_split(trainer, model, data, "val", of=name).figures
    anew = bool(figures) and own is None
    if anew:
        unit = model.accounting.unit
        own = min(stored, key=lambda name: figures[name][unit]["mean"])
        checkpoint["triptych"]["chosen"] = own
        del figures[own]
    load_weights(model, checkpoint, weights)
    if anew and trainer.is_global_zero:
        save_checkpoint(checkpoint, path)
    others = {"averaging": {"reported": own, "val": figures}} if figures or anew else {}
    return path, checkpoint["global_step"], others


def account(trainer: pl.Trainer, experiment: Experiment) -> dict[str, Account]:
    """Evaluate the bound over validation, test and as many training items; over the first if test=false."""
    model, data = experiment.model, experiment.data
    splits = ("train", "val", "test") if experiment.config.get("test", True) else ("val",)
    known: dict[str, Account] = {}
    for split in (split for split in splits if len(data.splits[split])):
        known[split] = account_split(trainer, model, data, split, again=bool(known))
    return known


def account_split(
    trainer: pl.Trainer, model: BoundModel, data: DataModule, split: str, of: str = "", again: bool = False
) -> Account:
    """Evaluate the bound over a split, of "train" as many items as of "test", with the current weights.

    ``of`` names the weights in the loggers; ``again``: they are those of the split before.
    """
    loader = data.eval_dataloader(split, len(data.splits["test"]) or None if split == "train" else None)
    loader.name, loader.again = f"{split}_{of}" if of else split, again
    trainer.test(model, dataloaders=loader, verbose=False)
    account: Account = model.accounting.compute()
    account.figures |= metrics_of(trainer).figures
    if data.mixture is not None and "gap" in account.figures:
        entropy, dims = _entropy(data.mixture), model.dims
        account.figures["entropy"] = {"mean": entropy.mean / dims, "stderr": entropy.stderr / dims, "n": 0}
    return account


def baselines(data: DataModule) -> dict[str, Any]:
    """Return {"baselines": {name: {"mean", "stderr", "n"}}}, bits/dim on the test set; {} without levels.

    "uniform": log2 K; "histogram": each dimension's frequencies in the training split, (n_k + 1/K) / (n + 1).
    """
    if data.levels is None or not len(data.splits["test"]):
        return {}
    train, test = data.splits["train"], data.splits["test"]
    n, levels = len(test), data.levels
    bits = -histogram(_parts(train), levels, SMOOTHING).log2()
    each = torch.cat([bits.gather(1, to_level(x, levels).flatten(1).T).mean(0) for x in _parts(test)])
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


def write_items(path: Path, account: Account) -> bool:
    """Write each item's bound: ``index`` (n,) int64, rising, ``COLUMNS`` (n,) float64; return False if none.

    In the reported unit, means over draws; ``draw_variance`` is of that mean, NaN for one draw.
    """
    if account.per_item is None:
        return False
    index, rows = account.per_item
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(COLUMNS, rows.numpy().T.copy(), strict=True))
    np.savez(buffer, index=index.numpy().astype(np.int64), **arrays)
    write_atomic(path, buffer.getvalue())
    return True


def measure_cost(device: torch.device, experiment: Experiment) -> dict[str, float]:
    """Return {"memory": most bytes on the GPU, or resident, "evaluations": denoiser calls for one sample}."""
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    else:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        memory = most if sys.platform == "darwin" else 1024 * most  # kilobytes on Linux
    figures = {"memory": float(memory)}
    if experiment.drawing is not None and hasattr(experiment.model, "denoiser"):
        schedule = getattr(experiment.model, "schedule", None)
        figures["evaluations"] = float(experiment.drawing.sampler.calls_under(schedule))
    return figures


def evaluate_checkpoint(values: dict[str, Any]) -> dict[str, Any]:
    """Return {"bpd": {"mean", "stderr", "n"}, ...}; ``values`` are those of ``configs/evaluate.yaml``."""
    typed = {key: values[key] for key, usual in OF_THE_RUN.items() if values[key] != usual}

    def adjust(config: dict[str, Any]) -> None:
        own, variance = config["bound"].get("variance"), typed.get("variance")
        if variance and own != variance and "learned" in (own, variance):  # it is part of the network
            raise UserError(f"variance={variance}: this model was trained with {own}; pass null")
        config["bound"] |= typed
        config["threads"] = values["threads"] or config["threads"]
        if values["batch_size"] is not None:
            config["data"]["eval_batch_size"] = values["batch_size"]
        devices = values["devices"]
        several = {"devices": devices, "num_nodes": 1, "strategy": "ddp" if devices > 1 else "auto"}
        config["trainer"] |= {"accelerator": "auto"} | several  # wherever the run was trained

    split = values["split"]
    judged = () if split == "train" else (split,)
    try:
        opened = reopen(values["ckpt"], values["weights"], values["data_root"], adjust, judged)
        for key in typed if "bound" in opened.model.ignores else ():
            if key != "repeats" or not getattr(opened.model, "noise", False):
                has = " and ".join(getattr(opened.model.accounting, "names", ["retrieval"]))
                problem = "this model has no bound" + f", and its {has} no draws" * (key == "repeats")
                raise UserError(f"{key}={values[key]}: {problem}; leave it out")
        if not len(opened.data.splits[split]):
            raise UserError(f"split={split}: this run has no items there; choose another")
        trainer = build_trainer(opened.config, None, build_metrics(opened.config))
    except UserError as error:  # typed as steps= and devices=, without their groups
        raise UserError(str(error).removeprefix("bound.").removeprefix("trainer.")) from error
    account = account_split(trainer, opened.model, opened.data, split)
    target = values["items"]
    if target and rank() == 0 and not write_items(Path(target), account):
        raise UserError(f"items={target}: this model has no bound per item; pass null")
    return account.figures
