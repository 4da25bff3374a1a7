"""What has to be true before anything begins: files that are named, a run, cells of a sweep, the launcher."""

import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from triptych.config.check import check_keys
from triptych.config.compose import to_plain
from triptych.config.identity import check_cores, grid_keys
from triptych.config.source import CONFIGS
from triptych.errors import UserError
from triptych.run import processes
from triptych.run.command_errors import no_run_after_an_error
from triptych.run.directory import RunDirectory
from triptych.run.prepare import check_plan, has_run, plan_composed, resolve_composed
from triptych.run.read import find_runs, is_run
from triptych.run.untrusted import check_initial, check_reference
from triptych.study import rounds

CHECKPOINTS = ("guide", "objective.teacher", "measures.classifier", "model.stages", "condition_from")
# files of other kinds
OTHERS = ("measures.inception", "measures.statistics", "measures.contrastive", "data.embeddings")


def check_files(config: DictConfig, but: Collection[str] = ()) -> None:
    """Check each file, run and data set that is named; UserError: missing, cut or not finished.

    Args:
        but: keys and groups that differ between the cells of a sweep, whose files these are then not.
    """
    target = str(OmegaConf.select(config, "hydra.launcher._target_")).lower()
    elsewhere = any(name in target for name in ("slurm", "ray"))  # whose machines may have data of their own
    ready = not elsewhere and not any(key.partition(".")[0] == "data" for key in but)
    if ready and isinstance(data := OmegaConf.select(config, "data"), DictConfig):
        from triptych.data.source import check_data_files  # numpy, which help does without

        check_data_files(to_plain(data))
    for group, key, value in _named(config):
        if key.startswith("measures.") and not OmegaConf.select(config, "measures.n"):
            continue
        if not {group, group.rpartition(".")[0]}.isdisjoint(but):
            continue
        path = Path(value).expanduser()
        if not path.exists():
            names = [name for of, name in zip(path.parts, path.parts[1:], strict=False) if of == "runs"]
            made = [name for name in names if (CONFIGS / "experiment" / f"{name}.yaml").is_file()]
            hint = f", triptych-train experiment={made[0]} makes it" if made else ""
            raise UserError(f"{key}={value}: no such file{hint}; must be null or an existing file")
        if group in CHECKPOINTS:
            check_reference(key, str(path))


def _named(config: DictConfig) -> Iterator[tuple[str, str, str]]:
    """Yield (declared key, key, path) of each path in the configuration, of lists and mappings each entry."""
    for key in (*CHECKPOINTS, *OTHERS):
        value: Any = OmegaConf.select(config, key)
        if isinstance(value, str) and value != "exact":
            yield key, key, value
        elif OmegaConf.is_list(value):
            yield from ((key, f"{key}[{i}]", str(one)) for i, one in enumerate(value))
        elif OmegaConf.is_dict(value):  # of condition_from; without a slash it is another part
            yield from ((key, f"{key}.{name}", one) for name, one in value.items() if "/" in str(one))


def check_cells(config: DictConfig, jobs: Sequence[list[str]], begun: bool) -> None:
    """Refuse a sweep none of whose cells can run, or one with a value that no cell can have (UserError).

    Each value is composed in the first cell that has it; a cell whose values do not go together fails
    alone, when it runs. ``begun``: whether a cell has a result or a checkpoint.
    """
    loader = GlobalHydra.instance().config_loader()
    known = set[str]()
    for job in jobs:
        if not known.issuperset(job):
            cell = loader.load_sweep_config(config, job)
            check_keys(cell, cell.hydra)
            known.update(job)
    _check_any_resolves(config, jobs, begun)
    varying = rounds.differing(config)
    guidance = config.get("guidance") or {}
    if "guidance" not in varying and not {"classifier", "weak"} & {*guidance}:
        varying.add("guide")  # an ablation may name a guide for a guidance that is not chosen
    check_files(config, varying)


def _check_any_resolves(config: DictConfig, jobs: Sequence[list[str]], begun: bool) -> None:
    """Raise the first cell's refusal if all cells are refused."""
    loader = GlobalHydra.instance().config_loader()
    refusals: list[Exception] = []
    for job in jobs:
        try:
            check_initial(resolve_composed(loader.load_sweep_config(config, job)), begun)
            return
        except (UserError, HydraException, OmegaConfBaseException) as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def probe_jobs(config: DictConfig) -> list[list[str]]:
    """Return jobs with each value that a sweep may try whose cells are not known beforehand."""
    sweeper = config.hydra.sweeper
    if sweeper.get("tune"):
        points = rounds.grid({"params": sweeper.tune}, [])
        return [[*job, *point] for job in rounds.jobs_of(config) for point in points]
    if "triptych_search" in sweeper._target_:
        from hydra_plugins.triptych_search._space import probe_jobs as probes  # Optuna, which may be missing

        return probes(sweeper.params or {}, config.hydra.overrides.task)
    return []  # an adaptive sweeper of the user's own


def check_launcher(config: DictConfig) -> None:
    """Raise UserError for what SLURM would refuse, or wait for, much later."""
    if str(config.hydra.launcher._target_).endswith("RayLauncher"):
        _import_nothing_from_here()
    if not on_slurm(config):
        check_cores(config, "cores", "threads")
        return
    # a job's tasks, requested once for a whole sweep, are the trainer's processes
    swept = {*(config.hydra.sweeper.get("params") or {}), *grid_keys(config)}
    fixed = swept & {"trainer", "trainer.devices", "trainer.num_nodes"}
    if fixed:
        problem = "cannot vary within a SLURM sweep; start a sweep for each value"
        raise UserError(f"{min(fixed)}: {problem}")
    if not shutil.which("srun"):  # submitit asks for it once the sweep has begun
        raise UserError("hydra/launcher: no SLURM here (srun is missing); start the sweep on a login node")


def _import_nothing_from_here() -> None:
    """Keep Ray's workers from importing modules of the folder where the command was typed.

    Ray has no option for it.
    """
    from ray.job_config import JobConfig

    JobConfig._runtime_env_has_working_dir = lambda _: True  # type: ignore[method-assign]


def on_slurm(config: DictConfig) -> bool:
    """Return whether its jobs are SLURM's."""
    return str(config.hydra.launcher._target_).endswith("SlurmLauncher")


class SingleHook(Callback):
    """Hydra's callback around a single run."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with no_run_after_an_error("train", config.hydra.overrides.task):
            check_keys(config, config.hydra)
            rounds.check_rounds(config, grid=False)
            if config.plan:
                plain, run = resolve_composed(config), RunDirectory(config.hydra.run.dir)
                if has_run(run) and not config.force:
                    check_plan(run, plan_composed(run, config), plain)
                from triptych.study.plan import plan

                print("\n".join(plan([(str(config.name or "run"), 1, 1, plain)])))
                sys.exit(0)
            check_single(config)


def check_single(config: DictConfig) -> dict[str, Any]:
    """Return a run's configuration of a composed, checked one; UserError for what no run could be made of."""
    hydra = config.hydra
    rounds.check_rounds(config, grid=False)
    if hydra.sweeper.get("params") or config.get("paper"):
        groups = ("ablation", "paper", "hparams_search")
        chosen = [f"{group}={hydra.runtime.choices.get(group)}" for group in groups]
        choice = next((one for one in chosen if not one.endswith("=None")), "hydra.sweeper.params")
        raise UserError(f"{choice}: settings to compare are a sweep's, which needs -m")
    if processes.launch() and not config.name:
        raise UserError("name=null: a name is needed here, so that all processes share one directory")
    if not hydra.run.dir:
        raise UserError("hydra.run.dir: must be a directory; leave it out for one of its own")
    home = Path(hydra.run.dir)
    if any(is_run(other) for other in find_runs(home) if other != home):
        raise UserError(f"hydra.run.dir={home}: holds runs; choose a directory of its own")
    plain = resolve_composed(config)
    check_cores(plain, "cores", "threads")
    if RunDirectory(hydra.run.dir).status != "finished":  # whose result is there without them
        guidance = plain.get("guidance") or {}
        if any(guidance.get(key, "none needed") is None for key in ("classifier", "weak")):
            fix = "as in guide=.../checkpoints/last.ckpt"
            raise UserError(f"guide=null: this guidance needs a checkpoint, {fix}")
        check_files(OmegaConf.create(plain))
    return plain
