"""Evaluate the bound of a checkpoint over one split, for ``triptych-evaluate`` and Python."""

from pathlib import Path
from typing import Any

from triptych.callbacks.metrics import build_metrics
from triptych.errors import UserError
from triptych.run.account import account_split
from triptych.run.items import write_items
from triptych.run.processes import rank
from triptych.run.reopen import reopen
from triptych.run.trainer import build_trainer


def evaluate_checkpoint(values: dict[str, Any]) -> dict[str, Any]:
    """Return {"bpd": {"mean", "stderr", "n"}, ...} as in summary.json.

    Args:
        values: what ``configs/evaluate.yaml`` has.

    Raises:
        UserError: the checkpoint is refused, or its model cannot be accounted so.
    """

    def adjust(config: dict[str, Any]) -> None:
        if values["repeats"] is not None:
            config["bound"]["repeats"] = values["repeats"]
        if values["steps"] != "run":
            config["bound"]["steps"] = values["steps"]
        if (variance := values["variance"]) is not None:
            own = config["bound"]["variance"]
            if "learned" in (own, variance) and own != variance:  # it is part of the network
                raise UserError(f"variance={variance}: this model was trained with {own}; pass null")
            config["bound"]["variance"] = variance
        if values["batch_size"] is not None:
            config["data"]["eval_batch_size"] = values["batch_size"]
        devices = values["devices"]
        several = {"devices": devices, "num_nodes": 1, "strategy": "ddp" if devices > 1 else "auto"}
        config["trainer"] |= {"accelerator": "auto"} | several  # wherever the run was trained

    split = values["split"]
    judged = () if split == "train" else (split,)
    try:
        opened = reopen(values["ckpt"], values["weights"], values["data_root"], adjust, judged)
        for key, usual in (("steps", "run"), ("variance", None), ("repeats", None)):
            if values[key] != usual and "bound" in opened.model.ignores:
                raise UserError(f"{key}={values[key]}: this model has no bound; leave it out")
        if not len(opened.data.splits[split]):
            raise UserError(f"split={split}: this run has no items there; choose another")
        trainer = build_trainer(opened.config, None, [*build_metrics(opened.config)], False)
    except UserError as error:  # typed as steps= and devices=, without their groups
        raise UserError(str(error).removeprefix("bound.").removeprefix("trainer.")) from error
    limit = len(opened.data.splits["test"]) if split == "train" else None  # as the run itself accounts it
    account = account_split(trainer, opened.model, opened.data, split, limit)
    target = values["items"]
    if target and rank() == 0 and not write_items(Path(target), account):
        raise UserError(f"items={target}: this model has no bound per item; pass null")
    return account.figures
