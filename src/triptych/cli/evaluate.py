"""Evaluate a checkpoint: ``triptych-evaluate ckpt=PATH [split=val] [steps=1000] ...``."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from triptych.cli.arguments import as_hydra_wants, check_place
from triptych.config.compose import checked_values
from triptych.config.folders import CONFIGS
from triptych.run.command_errors import one_line_errors
from triptych.run.processes import rank
from triptych.run.untrusted import check_checkpoint


def evaluate_composed(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint's bound over one split: {"bpd": {"mean", "stderr", "n"}, ...}."""
    values = checked_values(cfg, "evaluate")
    for key in ("out", "items"):
        check_place(key, cfg[key])
    check_checkpoint(cfg.ckpt)  # before torch is imported
    from triptych.run.account import evaluate_checkpoint

    return evaluate_checkpoint(values)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="evaluate")
@one_line_errors()  # within Hydra, which would add lines of its own
def compose_and_evaluate(cfg: DictConfig) -> None:
    """Hydra's task: evaluate, print one line, write JSON where asked."""
    from triptych.run.directory import to_json, write_atomic
    from triptych.run.parsing import parse_estimates
    from triptych.run.result import figures_line

    figures = evaluate_composed(cfg)
    if rank() != 0:
        return
    print(figures_line(parse_estimates(cfg.split, figures), cfg.split) or "no result: nothing recorded")
    if cfg.out:
        write_atomic(Path(cfg.out), to_json(figures))


def main() -> None:
    """Run the console script."""
    with one_line_errors():
        sys.argv[1:] = as_hydra_wants(sys.argv[1:], "evaluate")
        compose_and_evaluate()
    sys.exit(0)


if __name__ == "__main__":
    main()
