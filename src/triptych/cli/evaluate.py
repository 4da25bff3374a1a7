"""Evaluate a checkpoint from itself alone: ``triptych-evaluate ckpt=PATH [split=val] [steps=1000] ...``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import as_hydra_wants
from triptych.config.check import CONFIGS
from triptych.config.keys import check_values
from triptych.config.names import register_resolvers
from triptych.errors import UserError
from triptych.runs.exits import one_line_errors
from triptych.runs.processes import rank
from triptych.runs.strangers import check_checkpoint

register_resolvers()


def evaluate(cfg: DictConfig) -> dict:
    """The bound of a checkpoint over one split: {"bpd": {"mean", "stderr", "n"}, ...} as in summary.json."""
    check_values(OmegaConf.to_container(cfg, resolve=True), "evaluate")
    check_checkpoint(cfg.ckpt)  # before torch is imported
    from triptych.experiment.reopen import reopen
    from triptych.training.account import account_split
    from triptych.training.items import write_items
    from triptych.training.trainer import build_trainer

    def adjust(config: dict) -> None:
        if cfg.repeats is not None:
            config["bound"]["repeats"] = cfg.repeats
        if cfg.steps != "run":
            config["bound"]["steps"] = cfg.steps
        if cfg.variance is not None:
            own = config["bound"]["variance"]
            if "learned" in (own, cfg.variance) and own != cfg.variance:  # it is part of the network
                raise UserError(
                    f"variance={cfg.variance}: this model was trained with {own}; null is accepted"
                )
            config["bound"]["variance"] = cfg.variance
        if cfg.batch_size is not None:
            config["data"]["eval_batch_size"] = cfg.batch_size
        several = {"devices": cfg.devices, "num_nodes": 1, "strategy": "ddp" if cfg.devices > 1 else "auto"}
        config["trainer"] |= {"accelerator": "auto"} | several  # wherever the run was trained

    judged = () if cfg.split == "train" else (cfg.split,)
    opened = reopen(cfg.ckpt, cfg.weights, cfg.data_root, adjust, judged)
    if not len(opened.data.splits[cfg.split]):
        raise UserError(f"split={cfg.split}: this run kept no items there; another is accepted")
    trainer = build_trainer(opened.config, None, [], False)
    limit = len(opened.data.splits["test"]) if cfg.split == "train" else None  # as the run itself accounts it
    account = account_split(trainer, opened.model, opened.data, cfg.split, limit)
    kept = cfg["items"]  # not cfg.items, a method
    if kept and rank() == 0 and not write_items(Path(kept), account):
        raise UserError(f"items={kept}: this model has no bound per item; null is accepted")
    return account.figures


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="evaluate")
@one_line_errors()  # within Hydra, which would add lines of its own
def compose_and_evaluate(cfg: DictConfig) -> None:
    """Hydra's task: evaluate, print one line, write JSON where asked."""
    from triptych.runs.directory import to_json, write_atomic
    from triptych.runs.summary import one_line

    figures = evaluate(cfg)
    if rank() != 0:
        return
    print(one_line({cfg.split: figures}, cfg.split))
    if cfg.out:
        write_atomic(Path(cfg.out), to_json(figures))


def main() -> None:
    """The console script."""
    sys.argv[1:] = as_hydra_wants(sys.argv[1:], "evaluate")
    with one_line_errors():
        compose_and_evaluate()
    sys.exit(0)


if __name__ == "__main__":
    main()
