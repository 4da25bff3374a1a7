"""A search by Optuna as a sweep of Hydra's, in batches of trials.

The study is a SQLite file in the sweep's directory and each trial is a run in a directory that
follows from its values, so typing the same command goes on: trials under way first, then as many as
are missing. While runs train, this process reads their validation bounds and stops those that
Optuna prunes: no run imports Optuna, and every launcher works.
"""

import math
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from triptych.config.hydra_internals import BasicSweeper
from triptych.declare import Count, Seed, Unit, Whole
from triptych.errors import UserError

BOUNDS = ("val/bpd", "val/nats_per_dim")
FIGURE = "figure"  # attribute of a trial: the value of the metric
METRIC = "optimized_metric"  # attribute of a study: the name of its metric


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
        self.n_trials, self.n_jobs, self.seed = n_trials, n_jobs, seed
        self.params = dict(params or {})
        self.prune, self.after_trials, self.after_step = prune, prune_after_trials, prune_after_step

    def sweep(self, arguments: list[str]) -> None:
        from triptych.run.command_errors import one_line_errors

        with one_line_errors("train"):
            self._search(arguments)

    def _search(self, arguments: list[str]) -> None:
        from hydra_plugins.triptych_search._space import check_space, parse_space, trial_job
        from triptych.study.sweep import current_hook
        from triptych.study.sweep_plan import STUDY

        self.hook = current_hook()
        self.metric = str(self.config.optimized_metric)
        self.fixed, self.space = parse_space(self.params, arguments)
        self.hook.reserve({STUDY: []})
        study = self._open_study(f"{self.config.hydra.sweep.dir}/{STUDY}")
        check_space(self.space, _space_of(study))
        check_metric(study, self.metric)
        begun = [trial for trial in study.trials if trial.state.name != "WAITING"]
        self.hook.expect([trial_job(self.fixed, trial.params) for trial in begun])
        study.set_user_attr(METRIC, self.metric)
        self._run_trials(study)
        print_best(study)

    def _open_study(self, file: str) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            return optuna.create_study(
                study_name="search",
                storage=f"sqlite:///{file}",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(self.after_trials, self.after_step),
            )
        except Exception as error:  # an error of Optuna, SQLAlchemy or SQLite
            why = " ".join(str(error).split())[:200]
            fix = "move it away to start a new search"
            raise UserError(
                f"{file}: cannot be opened as a study of Optuna ({why}); {fix}"
            ) from error

    def _run_trials(self, study: Any) -> None:
        """Run trials in batches until there are ``n_trials``, or until one was interrupted."""
        from optuna.trial import Trial

        under_way = [Trial(study, trial._trial_id) for trial in study.trials if _is_running(trial)]
        done = sum(trial.state.is_finished() for trial in study.trials)
        launched = 0
        while done < self.n_trials:
            batch = under_way[: self.n_jobs]
            under_way = under_way[self.n_jobs :]
            missing = self.n_trials - done - len(batch) - len(under_way)
            batch += [self._new_trial(study) for _ in range(min(self.n_jobs - len(batch), missing))]
            self._run_batch(study, batch, launched)
            launched += len(batch)
            numbers = {trial.number for trial in batch}
            if any(_is_running(trial) and trial.number in numbers for trial in study.trials):
                return  # the trial was interrupted; the same command resumes it
            done += len(batch)

    def _new_trial(self, study: Any) -> Any:
        """Return a new trial, whose values depend on its number and not on the command."""
        from optuna.samplers import TPESampler

        study.sampler = TPESampler(seed=self.seed + 1000 * len(study.trials))
        return study.ask(self.space)

    def _run_batch(self, study: Any, batch: list[Any], first_job_index: int) -> None:
        """Run trials at the same time, and report their figures to the study."""
        from hydra_plugins.triptych_search._space import trial_job

        jobs = [trial_job(self.fixed, trial.params) for trial in batch]
        folders = [self.hook.root / self.hook.cell_directory_name(job) for job in jobs]
        self.validate_batch_is_legal(jobs)
        self.hook.expect(jobs)
        with _TrialMonitor(batch, folders if self.prune else []):
            results = self.launcher.launch(jobs, initial_job_idx=first_job_index)
        for trial, folder, result in zip(batch, folders, results, strict=True):
            report_trial(study, trial, folder, result.return_value, self.metric)


def check_metric(study: Any, metric: str) -> None:
    """Refuse to continue a study of another metric."""
    known = study.user_attrs.get(METRIC, metric)
    if known != metric:
        raise UserError(
            f"optimized_metric={metric}: this search optimises {known}; choose another name"
        )


def check_direction(study: Any, metric: str) -> None:
    """Refuse to maximise a metric in a study of an earlier version, which minimised it."""
    for trial in study.trials:
        if trial.state.name == "COMPLETE" and FIGURE not in trial.user_attrs:
            problem = "this search has minimised it so far; choose another name"
            raise UserError(f"optimized_metric={metric}: {problem}")


def print_best(study: Any) -> None:
    """Print the best trial, if one has ended with a figure."""
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        return
    best = study.best_trial
    values = ", ".join(f"{key}={value}" for key, value in best.params.items())
    figure = best.user_attrs.get(FIGURE, best.value)
    print(f"best of {len(study.trials)} trials: {figure:.4f} with {values}")


def _space_of(study: Any) -> dict[str, Any]:
    """Return the space from which a study's trials were drawn; {} for a new study."""
    space: dict[str, Any] = {}
    for trial in study.trials:
        space |= trial.distributions
    return space


def _is_running(trial: Any) -> bool:
    return trial.state.name == "RUNNING"


class _TrialMonitor(threading.Thread):
    """Report validation bounds of running trials to the study, and mark trials to be stopped."""

    def __init__(self, trials: list[Any], folders: list[Path]):
        super().__init__(daemon=True)
        self.running = [
            (trial, folder, set[int]()) for trial, folder in zip(trials, folders, strict=False)
        ]
        self._halt = threading.Event()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: Any) -> None:
        self._halt.set()
        self.join()

    def run(self) -> None:
        while not self._halt.wait(0.5):
            for trial, folder, reported in self.running:
                self._report_bounds(trial, folder, reported)

    def _report_bounds(self, trial: Any, folder: Path, reported: set[int]) -> None:
        from triptych.run.directory import PRUNE, write_atomic

        for step, value in _read_validation_bounds(folder):
            if step in reported:
                continue
            reported.add(step)
            trial.report(value, step)
            if trial.should_prune():
                # The run checks for this file after each validation.
                write_atomic(folder / PRUNE, "")


def _read_validation_bounds(folder: Path) -> list[tuple[int, float]]:
    """Return the pairs (step, validation bound) that a run's table has so far."""
    from triptych.run.read import Run

    columns = Run(dir=folder, status="running").histories(BOUNDS).values()
    return [pair for steps, values in columns for pair in zip(steps, values, strict=True)]


def report_trial(study: Any, trial: Any, folder: Path, value: float | None, metric: str) -> None:
    """Report the end of a trial's run to the study; ``value``: its metric, or None."""
    from optuna.trial import TrialState

    from triptych.run.directory import PRUNE, RunDirectory

    run = RunDirectory(folder)
    if value is not None and not math.isnan(value):
        result = run.summary()
        higher = result is not None and result.higher_is_better(metric)
        if higher:
            check_direction(study, metric)
        trial.set_user_attr(FIGURE, value)
        study.tell(trial, -value if higher else value)
    elif run.status == "finished" and value is None:
        raise UserError(
            f"optimized_metric={metric}: {folder.name} lacks this metric; use val.bound.mean"
        )
    elif run.status in ("finished", "failed", "diverged"):
        study.tell(trial, state=TrialState.FAIL)
    elif (folder / PRUNE).exists():
        study.tell(trial, state=TrialState.PRUNED)
    else:
        print(f"{folder.name}: did not finish", file=sys.stderr)
