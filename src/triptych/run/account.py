"""Choose the weights that a run reports; evaluate their bound over whole splits, beside trivial baselines."""

import functools
import io
import math
import random
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from triptych.callbacks.metrics import build_metrics, logged_mean, metrics_of
from triptych.config.build import check_targets
from triptych.config.own_code import is_trusted
from triptych.data.base import DataModule
from triptych.data.batch import Split, to_level
from triptych.data.build import build_data
from triptych.diffusion.mixture import GaussianMixture
from triptych.diffusion.reference import histogram
from triptych.diffusion.sampler import chunk_size
from triptych.errors import Diverged, UserError
from triptych.models.accounting import Account
from triptych.models.base import BoundModel
from triptych.run.build import OtherRuns, set_teacher
from triptych.run.checkpoints import averages, reported, save_checkpoint
from triptych.run.directory import BEST, LAST, RunDirectory, write_atomic
from triptych.run.drawing import Experiment
from triptych.run.fit import Fit, build_trainer
from triptych.run.initialization import Origin
from triptych.run.model import set_up_torch
from triptych.run.new_process import call_in_new_process
from triptych.run.processes import rank
from triptych.run.progress import Progress
from triptych.run.reopen import open_weights, reopen
from triptych.run.stopping import Peers
from triptych.run.untrusted import read_checkpoint

# of items.npz, beside "index"
COLUMNS = ("total", "prior", "reconstruction", "diffusion", "draw_variance")
OF_THE_RUN = {"steps": "run", "variance": None, "repeats": None}  # values that leave a bound as it was
SMOOTHING = 1.0  # counts spread over the K levels of a dimension
_entropy = functools.cache(GaussianMixture.entropy)


@dataclass(frozen=True)
class FinalCheckpoint:
    """The ``content`` of the checkpoint at ``path`` that a run leaves after its fit, and its data.

    Each figure of the run is of a model that is built anew and loaded from it, as ``evaluate_checkpoint``
    does: what the fit has left in its own model, or its callbacks do to a model, is in no figure. Code of
    the user's own may keep more elsewhere, so it is called in processes of their own.
    """

    path: Path
    content: dict[str, Any]
    data: DataModule
    progress: Sequence[pl.Callback]
    peers: Peers | None = None
    world_size: int = 1

    @classmethod
    def open(cls, path: Path, numbers: dict[str, Tensor]) -> "FinalCheckpoint":
        """Open the checkpoint of a run on one process, with its data, whose items must have these numbers."""
        content = read_checkpoint(path)
        config = content["triptych"]["config"]
        config["trainer"] |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        set_up_torch(config["threads"])
        check_targets(config)
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        run = RunDirectory(path.parent.parent)
        progress = Progress(run, bar=config["trainer"].get("enable_progress_bar", True))
        data = build_data(config, download=False)
        data.numbers = numbers
        return cls(path, content, data, [progress])

    @property
    def config(self) -> Any:
        return self.content["triptych"]["config"]

    @property
    def in_new_processes(self) -> bool:
        """Whether figures are computed there: the run's only process has imported the user's own code."""
        return self.world_size == 1 and any(map(is_trusted, [*sys.modules]))

    def model(self, weights: str | None = None) -> BoundModel:
        """Build a model and load it, with the reported weights or those of another name."""
        return open_weights(self.config, self.data, self.content, weights, self.path.parent.parent)

    def accounts(self, splits: Sequence[str], weights: str | None = None) -> dict[str, Account]:
        """Evaluate the bound of these weights over each of the splits that has items."""
        splits = [split for split in splits if len(self.data.splits[split])]
        if self.in_new_processes:
            numbers = self.data.numbers
            return {
                split: call_in_new_process(_account_alone, self.path, numbers, split, weights)
                for split in splits
            }
        model = self.model(weights)
        return {split: self._account(model, split) for split in splits}

    def _account(self, model: BoundModel, split: str) -> Account:
        trainer = build_accountant(self.config, model, self.data, self.progress, self.peers)
        return account_split(trainer, model, self.data, split)


def _account_alone(path: Path, numbers: dict[str, Tensor], split: str, weights: str | None) -> Account:
    checkpoint = FinalCheckpoint.open(path, numbers)
    return checkpoint._account(checkpoint.model(weights), split)


def choose_weights(
    run: RunDirectory, fit: Fit, experiment: Experiment, origin: Origin
) -> tuple[FinalCheckpoint, dict[str, Any]]:
    """Return the checkpoint that the run reports, and figures of the weights that it does not.

    {"averaging": {"reported", "val"}} on validation, if there are several; with weights=chosen the lowest is
    reported, and noted in the checkpoint. The test set is not looked at. {} where another run has chosen.
    """
    path, trainer = run / "checkpoints" / LAST, fit.trainer
    if experiment.config["checkpoint"] == "best" and trainer.global_step:  # else nothing was fitted here
        path = path.with_name(BEST)
        if not path.exists():
            raise UserError(f"checkpoint=best: {path} is not there; restore it, or force=true starts over")
    content = origin.adopted or read_checkpoint(path)
    data = experiment.data
    checkpoint = FinalCheckpoint(path, content, data, fit.progress, fit.peers, trainer.world_size)
    weights, stored = checkpoint.config["weights"], averages(content)
    known = weights != "chosen" or content["triptych"].get("chosen")
    own = reported(content) if known else None
    accounts = {}
    if not origin.adopted and len(stored) > 1 and len(data.splits["val"]):
        for name in ("raw", *stored):
            if name != own:  # that one is accounted with the other splits
                accounts[name] = checkpoint.accounts(["val"], name)["val"]
                log_account(fit, f"final/val_{name}_", accounts[name])
    anew = bool(accounts) and own is None
    if anew:
        own = min(stored, key=lambda name: accounts[name].figures[accounts[name].unit]["mean"])
        content["triptych"]["chosen"] = own
        del accounts[own]
        if trainer.is_global_zero:
            save_checkpoint(content, path)
    figures = {name: account.figures for name, account in accounts.items()}
    return checkpoint, {"averaging": {"reported": own, "val": figures}} if figures or anew else {}


def account_splits(checkpoint: FinalCheckpoint) -> dict[str, Account]:
    """Evaluate validation, test and as many training items, or only the first if test=false."""
    tested = checkpoint.config.get("test", True)
    return checkpoint.accounts(("train", "val", "test") if tested else ("val",))


def log_account(fit: Fit, prefix: str, account: Account) -> None:
    """Give an account's figures to the loggers of the fit, at its last step."""
    figures = {prefix + name: logged_mean(figure) for name, figure in account.figures.items()}
    for logger in fit.trainer.loggers:
        logger.log_metrics(figures, fit.trainer.global_step)


def build_accountant(
    config: dict[str, Any],
    model: BoundModel,
    data: DataModule,
    progress: Sequence[pl.Callback] = (),
    peers: Peers | None = None,
) -> pl.Trainer:
    """Build what evaluates a model's bound and metrics, after a fit as in a command; or UserError.

    A metric may be of the training loss, which reads the teacher's guesses: then the teacher is opened.
    """
    if config.get("metrics"):
        set_teacher(config, model, data, OtherRuns(config))
    return build_trainer(config, None, [*build_metrics(config), *progress], peers)


def account_split(trainer: pl.Trainer, model: BoundModel, data: DataModule, split: str) -> Account:
    """Evaluate the bound over a split, of "train" as many items as of "test", with the model's weights."""
    limit = len(data.splits["test"]) or None if split == "train" else None
    with isolate_rng():
        # The user's code may draw from any generator.
        torch.manual_seed(model.seed)
        np.random.seed(model.seed)
        random.seed(model.seed)
        trainer.test(model, dataloaders=data.eval_dataloader(split, limit), verbose=False)
    account: Account = model.accounting.compute()
    account.figures |= metrics_of(trainer).figures
    if data.mixture is not None and "gap" in account.figures:
        entropy, dims = _entropy(data.mixture), model.dims
        account.figures["entropy"] = {"mean": entropy.mean / dims, "stderr": entropy.stderr / dims, "n": 0}
    return account


def check_finite(account: Account, split: str, step: int) -> None:
    """Raise Diverged if the bound of weights of this step is not finite."""
    bound = account.figures.get(account.unit)
    if bound and not math.isfinite(bound["mean"]):
        raise Diverged(f"the bound of the {split} set", step)


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


def peak_memory(device: torch.device) -> float:
    """Return the most bytes that this process has used on the GPU, or resident."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else 1024 * most)  # kilobytes on Linux


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
        trainer = build_accountant(opened.config, opened.model, opened.data)
    except UserError as error:  # typed as steps= and devices=, without their groups
        error.args = (str(error).removeprefix("bound.").removeprefix("trainer."),)
        raise
    account = account_split(trainer, opened.model, opened.data, split)
    check_finite(account, split, opened.step)
    target = values["items"]
    if target and rank() == 0 and not write_items(Path(target), account):
        raise UserError(f"items={target}: this model has no bound per item; pass null")
    return account.figures
