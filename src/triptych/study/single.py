"""A command of a single run: what can be refused is, before there is a directory."""

import sys
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from triptych.config.check import check_keys
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.directory import RunDirectory
from triptych.run.prepare import resolve_composed
from triptych.study.papers.sweep import check_scale
from triptych.study.prerequisites import check_files
from triptych.study.rounds import check_rounds
from triptych.study.sweep import no_run_after_an_error


class SingleHook(Callback):
    """Hydra's callback around a single run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with no_run_after_an_error():
            check_keys(config, config.hydra)
            if config.plan:
                from triptych.study.plan import plan

                print("\n".join(plan([(str(config.name or "run"), 1, 1, resolve_composed(config))])))
                sys.exit(0)
            check_single(config)


def check_single(config: DictConfig) -> dict[str, Any]:
    """Return a run's configuration of a composed, checked one; UserError for what no run could be made of."""
    hydra = config.hydra
    check_rounds(config, grid=False)
    check_scale(config)
    if hydra.sweeper.get("params") or config.get("paper"):
        groups = ("ablation", "paper", "hparams_search")
        chosen = [f"{group}={hydra.runtime.choices.get(group)}" for group in groups]
        choice = next((one for one in chosen if not one.endswith("=None")), "hydra.sweeper.params")
        raise UserError(f"{choice}: settings to compare are a sweep's, which needs -m")
    if processes.launch() and not config.name:
        raise UserError("name=null: a name is needed here, so that all processes share one directory")
    if not hydra.run.dir:
        raise UserError("hydra.run.dir: must be a directory; leave it out for one of its own")
    plain = resolve_composed(config)
    if RunDirectory(hydra.run.dir).status != "finished":  # whose result is there without them
        guidance = plain.get("guidance") or {}
        if any(guidance.get(key, "none needed") is None for key in ("classifier", "weak")):
            fix = "as in guide=.../checkpoints/last.ckpt"
            raise UserError(f"guide=null: this guidance needs a checkpoint, {fix}")
        check_files(OmegaConf.create(plain))
    return plain
