"""Evaluate a checkpoint: ``triptych-evaluate ckpt=PATH [split=val] [steps=1000] ...``."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from triptych.cli.arguments import run_command
from triptych.cli.outputs import check_output_file
from triptych.config.compose import checked_values
from triptych.errors import UserError
from triptych.run.processes import rank
from triptych.run.untrusted import find_checkpoint


def evaluate_composed(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint's bound over one split, as the composed configuration ``cfg`` says.

    Return {"bpd": {"mean", "stderr", "n"}, ...}.
    """
    values = checked_values(cfg, "evaluate")
    files = {os.path.realpath(str(cfg.ckpt)): "ckpt"}
    for key in ("out", "items"):
        path = values[key]
        if not path:
            continue
        check_output_file(key, path)
        other = files.setdefault(os.path.realpath(path), key)
        if other != key:
            raise UserError(f"{key}={path}: same file as {other}; choose another name")
    find_checkpoint(cfg.ckpt)  # report a missing file before torch is imported
    from triptych.run.evaluate import evaluate_checkpoint

    return evaluate_checkpoint(values)


def evaluate_and_print(cfg: DictConfig) -> None:
    """Evaluate a checkpoint, print the result in one line, and write it as JSON to ``out``."""
    from triptych.run.directory import to_json, write_atomic
    from triptych.run.parsing import parse_estimates
    from triptych.run.result import split_line

    figures = evaluate_composed(cfg)
    if rank() != 0:
        return
    print(split_line(parse_estimates(cfg.split, figures), cfg.split))
    if cfg.out:
        write_atomic(Path(cfg.out), to_json(figures))


def main() -> None:
    """Run the command ``triptych-evaluate``."""
    run_command("evaluate", evaluate_and_print)


if __name__ == "__main__":
    main()
