"""A search by Optuna as a sweep of Hydra's: batches of trials, of which Optuna learns the outcomes.

The study is a SQLite file in the sweep's directory and each trial is a run in a directory that follows from
its values, so typing the same command goes on: trials under way first, then as many as are missing. While
runs train, this process reads their validation bounds and stops those that Optuna prunes: no run imports
Optuna, and every launcher works.
"""

import sys
import threading
from pathlib import Path
from typing import Annotated, Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from triptych.config.hydra_internals import BasicSweeper
from triptych.declare import Count, Seed, Unit, Whole

BOUNDS = ("val/bpd", "val/nats_per_dim")
FIGURE = "figure"  # of a trial, as its run has it
METRIC = "optimized_metric"  # of a study


class OptunaSweeper(BasicSweeper):
    """Optimise ``optimized_metric`` in ``n_trials`` trials, ``n_jobs`` at a time.

    The study minimises: a figure of which higher is better has its sign changed there.

    Args:
        n_trials: of the study, those of earlier commands included.
        n_jobs: trials at a time; the launcher runs them.
        seed: of the sampler (TPE).
        prune: whether runs worse than the median of the others at the same step are stopped ...
        prune_after_trials, prune_after_step: ... once there are so many trials, and from this step.
        params: {key: "interval(1e-4,1e-2)", "tag(log,interval(...))", "range(1,5)", "choice(a,b)"}
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        n_trials: Count,
        n_jobs: Count,
        seed: Seed,
        prune: bool,
        prune_after_trials: Whole,
        prune_after_step: Annotated[Whole, Unit("steps")],
        params: dict[str, str] | None = None,
    ):
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, dict(params or {})
        self.prune, self.after_trials, self.after_step = prune, prune_after_trials, prune_after_step

    def sweep(self, arguments: list[str]) -> None:
        from triptych.run.command_errors import one_line_errors

        with one_line_errors("train", arguments):
            self._search(arguments)

    def _search(self, arguments: list[str]) -> None:
        import optuna

        from hydra_plugins.triptych_search._space import check_space, parse_space, trial_job
        from triptych.errors import UserError
        from triptych.study.sweep import current_hook
        from triptych.study.sweep_plan import STUDY

        hook = current_hook()
        fixed, space = parse_space(self.params, arguments)
        hook.reserve({STUDY: []})
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = f"{self.config.hydra.sweep.dir}/{STUDY}"
        try:
            study = optuna.create_study(
                study_name="search",
                storage=f"sqlite:///{file}",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(self.after_trials, self.after_step),
            )
        except Exception as error:  # Optuna's, SQLAlchemy's or SQLite's
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"{file}: cannot be opened as the search's study ({why}); move it away to begin anew"
            ) from error
        check_space(space, {k: d for trial in study.trials for k, d in trial.distributions.items()})
        waiting = [optuna.trial.Trial(study, t._trial_id) for t in study.trials if t.state.name == "RUNNING"]
        metric = str(self.config.optimized_metric)
        known = study.user_attrs.get(METRIC, metric)
        if known != metric:
            raise UserError(f"optimized_metric={metric}: this search optimises {known}; choose another name")
        begun = [trial for trial in study.trials if trial.state.name != "WAITING"]
        hook.expect([trial_job(fixed, trial.params) for trial in begun])
        study.set_user_attr(METRIC, metric)
        done, launched = sum(t.state.is_finished() for t in study.trials), 0
        while done < self.n_trials:
            batch = waiting[: self.n_jobs]
            waiting = waiting[len(batch) :]
            missing = self.n_trials - done - len(batch) - len(waiting)
            for _ in range(min(self.n_jobs - len(batch), missing)):
                # a trial's draw follows from its number, also when another command takes up the study
                study.sampler = optuna.samplers.TPESampler(seed=self.seed + 1000 * len(study.trials))
                batch.append(study.ask(space))
            overrides = [trial_job(fixed, trial.params) for trial in batch]
            folders = [hook.root / hook.cell(job) for job in overrides]
            self.validate_batch_is_legal(overrides)
            hook.expect(overrides)
            with _Watch(batch, folders if self.prune else []):
                results = self.launcher.launch(overrides, initial_job_idx=launched)
            launched += len(batch)
            for trial, folder, result in zip(batch, folders, results, strict=True):
                _tell(study, trial, folder, result.return_value, metric)
            if any(t.state.name == "RUNNING" for t in study.trials if t.number in {b.number for b in batch}):
                break  # interrupted: the same command goes on with it
            done += len(batch)
        if any(t.state.name == "COMPLETE" for t in study.trials):
            best = study.best_trial
            values = ", ".join(f"{k}={v}" for k, v in best.params.items())
            figure = best.user_attrs.get(FIGURE, best.value)
            print(f"best of {len(study.trials)} trials: {figure:.4f} with {values}")


class _Watch(threading.Thread):
    """Reports the validation bounds of running trials to the study, and marks those to be stopped."""

    def __init__(self, trials: list[Any], folders: list[Path]):
        super().__init__(daemon=True)
        self.running: list[tuple[Any, Path, set[int]]] = [
            (trial, folder, set()) for trial, folder in zip(trials, folders, strict=False)
        ]
        self._halt = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: Any) -> None:
        self._halt.set()
        self.join()

    def run(self) -> None:
        from triptych.run.directory import PRUNE, write_atomic

        while not self._halt.wait(0.5):
            for trial, folder, known in self.running:
                for step, value in _bounds(folder):
                    if step not in known:
                        known.add(step)
                        trial.report(value, step)
                        if trial.should_prune():
                            # The run stops at it after its next validation.
                            write_atomic(folder / PRUNE, "")


def _bounds(folder: Path) -> list[tuple[int, float]]:
    """(step, validation bound) as far as a run's table has them."""
    from triptych.run.read import Run

    columns = Run(dir=folder, status="running").histories(BOUNDS).values()
    return [pair for steps, values in columns for pair in zip(steps, values, strict=True)]


def _tell(study: Any, trial: Any, folder: Path, value: float | None, metric: str) -> None:
    from optuna.trial import TrialState

    from triptych.errors import UserError
    from triptych.run.directory import PRUNE, RunDirectory

    run = RunDirectory(folder)
    result = run.summary()
    if value is not None and value == value:
        higher = result is not None and result.higher_is_better(metric)
        earlier = any(t.state.name == "COMPLETE" and FIGURE not in t.user_attrs for t in study.trials)
        if higher and earlier:  # an earlier version minimised it
            raise UserError(f"optimized_metric={metric}: its study has minimised it so far; use a new name")
        trial.set_user_attr(FIGURE, value)
        study.tell(trial, -value if higher else value)
    elif run.status == "finished" and value is None:
        raise UserError(f"optimized_metric={metric}: {folder.name} has no such figure; use val.bound.mean")
    elif run.status in ("finished", "failed", "diverged"):
        study.tell(trial, state=TrialState.FAIL)
    elif (folder / PRUNE).exists():
        study.tell(trial, state=TrialState.PRUNED)
    else:
        print(f"{folder.name}: did not end", file=sys.stderr)
