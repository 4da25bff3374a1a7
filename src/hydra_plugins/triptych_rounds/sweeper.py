"""Run a grid as Hydra's own sweeper does, or in rounds that depend on the results so far.

``tune``: each setting of the grid at each value of what is tuned, on seeds of their own, judged by
the validation bound; then the grid on fresh seeds, each setting at the value that was best for all
together ("equal settings") and at its own best. Every setting gets the same number of trials (Dahl
et al. 2023).

``until=decided``: more seeds, the same for all settings, until no pair is open or ``max_seeds`` is
reached.

What was decided stands in ``sweep.json``; runs lie in directories that follow from their overrides,
so typing the same command goes on where it was.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from triptych.config.hydra_internals import BasicSweeper
from triptych.declare import Count, Seed, is_valid_value

Job = list[str]  # the overrides of one run
Setting = tuple[str, ...]  # overrides without the seed: a cell of the grid
Point = tuple[str, ...]  # overrides of the tuned keys
MULTIRUN = "multirun.yaml"  # the composed configuration, as Hydra's own sweeper writes it


class RoundsSweeper(BasicSweeper):
    """A grid sweep in one round, or in several.

    Args:
        max_batch_size: jobs that are handed to the launcher at a time; null: all.
        params: {key: "a,b,c"}, the grid, beside what the command line adds.
        settings: {name: [overrides]}: what each value of an axis ``setting`` stands for.
        scales: {paper: {key: "a,b,c"}}: what ``scale=paper`` sets in place of ``params``, or beside
            them; a text in place of the keys says why there is no such scale.
        tune: {key: "a,b,c"}: what each setting has tuned.
        tuning_seeds: "101,102": of the trials; no seed of the grid.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        max_batch_size: Count | None = None,
        params: dict[str, str] | None = None,
        settings: dict[str, list[str]] | None = None,
        scales: dict[str, dict[str, Any] | str] | None = None,
        tune: dict[str, str] | None = None,
        tuning_seeds: str | int | None = None,
    ):
        self.max_batch_size = max_batch_size  # ``grid`` reads params, settings and scales
        self.tune, self.tuning_seeds = dict(tune or {}), tuning_seeds
        self.launched = 0

    def sweep(self, arguments: list[str]) -> Any:
        from triptych.run.command_errors import one_line_errors

        with one_line_errors("train"):
            return self._sweep(arguments)

    def _sweep(self, arguments: list[str]) -> Any:
        from triptych.study.rounds import grid_jobs
        from triptych.study.sweep import current_hook

        jobs = grid_jobs(self.config.hydra.sweeper, arguments)
        self.hook = current_hook()
        if self.tune:
            return self._tune_and_run_grid(jobs)
        if self.config.get("until"):
            return self._run_rounds_until_decided(jobs)
        return self._launch(jobs)

    def _launch(self, jobs: list[Job]) -> list[float | None]:
        """Run these jobs to their end, except those that have finished; return their results."""
        from triptych.run.directory import write_atomic
        from triptych.study.rounds import split_by_fit

        first, later = split_by_fit(
            [job for job in jobs if self.hook.cell_directory_name(job) not in self.hook.done]
        )
        if not first:
            return []
        write_atomic(Path(self.config.hydra.sweep.dir) / MULTIRUN, OmegaConf.to_yaml(self.config))
        returns: list[float | None] = []
        for batch in self.split_overrides_to_chunks([*first, *later], self.max_batch_size):
            self.validate_batch_is_legal(batch)
            results = self.launcher.launch(batch, initial_job_idx=self.launched)
            self.launched += len(batch)
            returns += [result.return_value for result in results]  # raises a job's error
        return returns

    # until decided --------------------------------------------------------------------------------

    def _run_rounds_until_decided(self, jobs: list[Job]) -> None:
        from triptych.study.compare import decide_at_look
        from triptych.study.rounds import seed_rounds, settings_and_seeds

        settings, seeds = settings_and_seeds(jobs)
        rounds = seed_rounds(seeds, self.config.max_seeds)
        facts = {"looks": len(rounds), "equal_within": self.config.equal_within}
        look = self.hook.next_look(
            facts
        )  # the number of the look that an earlier start has reached
        if self.hook.reported:
            facts["reported"] = True
        while True:
            batch = [
                [*setting, f"seed={seed}"] for seed in rounds[look - 1] for setting in settings
            ]
            self.hook.expect(batch, until=facts | {"look": look})
            self._launch(batch)
            if not self.hook.all_finished(batch):
                return  # the hook reports the unfinished runs; do not add seeds
            sentence, pairs = decide_at_look(
                self.hook.root, look, len(rounds), self.config.equal_within
            )
            print(sentence, flush=True)
            if "open" not in pairs.values() or look == len(rounds):
                return
            look += 1

    # tuned ----------------------------------------------------------------------------------------

    def _tune_and_run_grid(self, jobs: list[Job]) -> None:
        """Tune each setting, and run the grid with the points that were best."""
        from triptych.study.rounds import choose_point, setting_names, settings_and_seeds

        settings, seeds = settings_and_seeds(jobs)
        tuning_seeds, points = self._tuning_seeds(seeds), self._tuning_points()
        named = setting_names(settings)
        facts = self._tuning_entries(tuning_seeds, points, list(named.values()))
        trials = trials_by_setting(settings, points, tuning_seeds)
        batch = list(itertools.chain.from_iterable(trials.values()))
        self.hook.expect(batch, n_later=len(settings) * len(seeds), tuning=facts)
        self._launch(batch)
        if not self.hook.all_finished(batch):
            return
        bounds = {
            cell: list(map(self.hook.validation_bound, jobs)) for cell, jobs in trials.items()
        }
        equal, best = choose_point(bounds)
        chosen = {named[setting]: list(point) for setting, point in best.items()}
        self.hook.record(tuning=facts | {"equal": list(equal), "best": chosen})
        final = []
        for seed in seeds:
            for setting in settings:
                for point in dict.fromkeys((equal, best[setting])):
                    final.append([*setting, *point, f"seed={seed}"])
        self.hook.expect(final)
        self._launch(final)

    def _tuning_seeds(self, seeds: list[int]) -> list[int]:
        """Return the seeds of the trials; UserError if a seed of the grid is among them."""
        from triptych.errors import UserError
        from triptych.run.parsing import to_int

        texts = str(self.tuning_seeds).split(",")
        tuning_seeds: list[Any] = [to_int(text.strip()) for text in texts]
        if not is_valid_value(Sequence[Seed], tuning_seeds) or set(tuning_seeds) & set(seeds):
            expected = f"must be seeds other than the grid's ({', '.join(map(str, seeds))})"
            raise UserError(f"hydra.sweeper.tuning_seeds={self.tuning_seeds}: {expected}")
        return tuning_seeds

    def _tuning_points(self) -> list[Point]:
        from triptych.study.rounds import grid_jobs

        return [tuple(point) for point in grid_jobs({"params": self.tune}, [])]

    def _tuning_entries(
        self, seeds: list[int], points: list[Point], names: list[str]
    ) -> dict[str, Any]:
        """Return the entries of ``sweep.json`` about the tuning.

        UserError: the tuning began with other settings.
        """
        from triptych.run.sweep_record import Tuning
        from triptych.study.sweep_plan import check_tuning

        facts: dict[str, Any] = {"keys": list(self.tune), "seeds": seeds}
        facts["points"] = [list(point) for point in points]
        before = self.hook.before.tuning
        check_tuning(self.config, self.hook.root, before, Tuning(**facts).plan_entries(names))
        if before.best and not self.config.force:
            # Keep the earlier choice in the record until the trials are evaluated again.
            facts |= {"equal": before.equal, "best": before.best}
        return facts


def trials_by_setting(
    settings: list[Setting], points: list[Point], seeds: list[int]
) -> dict[tuple[Setting, Point], list[Job]]:
    """Return the trials of each setting at each point, with one run per seed."""
    trials = {}
    for setting in settings:
        for point in points:
            trials[setting, point] = [
                [*setting, *point, f"seed={seed}", "test=false"] for seed in seeds
            ]
    return trials
