"""Group the runs that may be compared: those on the same data, of one stage of a tuning.

Runs are grouped by the fingerprint that they record, so a copy of the data in another folder counts
as the same data, and other images in the same folder do not. Runs of versions without fingerprints
are grouped by the data of their configuration.

Trials of a tuning read no test set. The runs on fresh seeds are compared twice: at the values that
are best for all settings together, and each setting at its own best values.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from triptych.config.identity import role_in
from triptych.declare import Role
from triptych.run.parsing import to_float, value_name
from triptych.run.read import Run
from triptych.run.sweep_record import Tuning
from triptych.study.axes import all_keys
from triptych.study.formatting import join_names

GUARDS = (Role.DATA, Role.JUDGED, Role.PATH)  # roles of keys that determine the test data
Seed = int | None  # None: not recorded
EQUAL, BEST, OTHER = "equal settings", "each at its best", "not tuned"


class Group(NamedTuple):
    """Runs on the same data and in one unit; the first has finished. `data`: a unique name."""

    runs: list[Run]
    data: str


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group finished runs by data and unit, and add unfinished ones on the same data."""
    runs_by_data: dict[tuple[Hashable, str], list[Run]] = {}
    unreported = []
    for run in runs:
        if run.status == "finished" and run.measure:
            runs_by_data.setdefault((data_identity(run), run.measure), []).append(run)
        elif run.overrides or run.choices:
            unreported.append(run)
    groups = [*runs_by_data.values()]
    for run in unreported:
        # Leave out a run whose data fit no group, or several groups.
        homes = [group for group in groups if any(may_share_data(run, other) for other in group)]
        if len(homes) == 1:
            homes[0].append(run)
    namesakes: dict[tuple[str, str | None], list[list[Run]]] = {}
    for group in groups:
        namesakes.setdefault((data_choice(group[0]), group[0].measure), []).append(group)
    named = map(name_groups, namesakes.values())
    return sorted(
        chain.from_iterable(named), key=lambda group: (group.data, str(group.runs[0].measure))
    )


def data_choice(run: Run) -> str:
    """Return a run's choice of the config group ``data``, or ""."""
    return run.choices.get("data", "")


def data_settings(run: Run) -> dict[str, str]:
    """Return the settings of a run that determine its test data."""
    keys = [key for key in run.config if key.startswith("data.")]
    return {key: run.config[key] for key in keys if role_in(run.config, key) in GUARDS}


def data_identity(run: Run) -> Hashable:
    """Return a value that is equal for runs on the same data: fingerprint, else configuration."""
    return run.fingerprint or (data_choice(run), *sorted(data_settings(run).items()))


def may_share_data(run: Run, finished: Run) -> bool:
    """Return whether an unfinished run has the data of a finished one, as far as is known."""
    if run.fingerprint:
        return run.fingerprint == finished.fingerprint
    settings = data_settings(run)
    if settings and settings != data_settings(finished):
        return False
    return data_choice(run) in ("", data_choice(finished))


def name_groups(groups: Sequence[list[Run]]) -> list[Group]:
    """Give groups with one choice of data unique names: by differing settings or fingerprints."""
    firsts = [runs[0] for runs in groups]
    name = data_choice(firsts[0])
    if len(groups) == 1:
        return [Group(groups[0], name)]
    differences = different_settings(list(map(data_settings, firsts)))
    names = [f"{name} ({difference})"[:100] for difference in differences]
    if len({*names}) < len(groups):
        names = [f"{name} (fingerprint {first.fingerprint[:8] or 'unknown'})" for first in firsts]
    return list(map(Group, groups, names))


def different_settings(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Describe each configuration by its values of the keys that differ: "root=/a, std=0.1"."""
    differ = [key for key in all_keys(configs) if len({config.get(key) for config in configs}) > 1]
    return [
        ", ".join(f"{key.removeprefix('data.')}={config.get(key, 'none')}" for key in differ)
        for config in configs
    ]


def repeated_results(runs: Mapping[Seed, Run]) -> dict[Seed, Seed]:
    """Return {seed: an earlier seed that has the same figures to the last digit}."""
    first_seed: dict[str, Seed] = {}
    originals = {
        seed: first_seed.setdefault(_metrics_text(run), seed) for seed, run in runs.items()
    }
    return {seed: original for seed, original in originals.items() if original != seed}


def in_seed_order(runs: Mapping[Seed, Run]) -> dict[Seed, Run]:
    """Return runs by ascending seed; one without a recorded seed comes last."""
    return dict(sorted(runs.items(), key=lambda item: (item[0] is None, item[0] or 0)))


def _metrics_text(run: Run) -> str:
    """Return all figures of a run as text, in which NaN equals NaN."""
    samples = run.measured and [sorted(row.items()) for row in run.measured.rows]
    return repr((run.test, run.val, run.train, run.noise_levels, samples))


def repeats_note(label: str, repeats: Mapping[Seed, Seed]) -> str:
    """State which seeds repeat another seed's result.

    Example: "x0: seeds 1 and 4 have the same figures to the last digit".
    """
    groups: dict[Seed, list[str]] = {}
    for seed, original in repeats.items():
        groups.setdefault(original, [str(original)]).append(str(seed))
    seeds = ", ".join(map(join_names, groups.values()))
    return f"{label}: seeds {seeds} have the same figures to the last digit"


def is_trial(run: Run) -> bool:
    """Return whether a run is a trial of a tuning stage, which leaves out the test set."""
    return run.overrides.get("test", "").lower() == "false"


def tuning_stages(runs: Sequence[Run], tuning: Tuning) -> list[tuple[str, list[Run]]]:
    """Return (title, runs) of the comparisons of a tuned sweep, without the tuning's trials.

    Runs that do not belong to the tuning, as of an earlier command, are a comparison of their own.
    """
    equal = []
    best = []
    for run in runs:
        typed = {**run.choices, **run.overrides}.items()
        point = [f"{key}={run.overrides.get(key, '')}" for key in tuning.keys]
        for setting, best_point in tuning.best.items():
            if is_trial(run) or not _parse_setting(setting).items() <= typed:
                continue
            if point == [*tuning.equal]:
                equal.append(_without_keys(run, tuning.keys))
            if point == [*best_point]:
                best.append(_without_keys(run, tuning.keys))
            break
    tuned = {run.dir for run in (*best, *equal)}
    other = [run for run in runs if run.dir not in tuned and not is_trial(run)]
    stages = [(BEST, best), (EQUAL, equal)]
    if other:
        stages.append((OTHER, other))
    return stages


def _without_keys(run: Run, keys: Sequence[str]) -> Run:
    """Return a run without the tuned keys, because the stage determines their values."""
    overrides = {key: value for key, value in run.overrides.items() if key not in keys}
    config = {key: value for key, value in run.config.items() if key not in keys}
    return replace(run, overrides=overrides, config=config)


def describe_tuning(tuning: Tuning) -> str:
    """Describe a tuning in sentences: its keys, its trials, and the values that it chose."""
    trials = len(tuning.points) * len(tuning.seeds)
    best = [f"{setting_label(name)}: {_format_point(point)}" for name, point in tuning.best.items()]
    tuned_keys = join_names(tuning.keys)
    text = (
        f"{tuned_keys} was tuned by the validation bound, {trials} trials for each "
        f"setting ({len(tuning.points)} values, {len(tuning.seeds)} seeds), on seeds that no "
        f"comparison uses. Best for all together: {_format_point(tuning.equal)}. "
        f"Own best: {'; '.join(best)}."
    )
    edge = settings_at_edge(tuning)
    if edge:
        text += f" Best at the edge of its range: {join_names(edge)}; a wider range may be better."
    return text


def settings_at_edge(tuning: Tuning) -> list[str]:
    """Name the settings whose best value is the lowest or the highest of one tuned key."""
    if len(tuning.keys) != 1:
        return []
    # Values that are not numbers keep their order, as NaN compares with nothing.
    ordered = sorted(tuning.points, key=lambda point: to_float(_format_point(point)))
    ends = ordered[0], ordered[-1]
    return [setting_label(name) for name, point in tuning.best.items() if point in ends]


def setting_label(setting: str) -> str:
    """Name a setting as reports do: "x0 / cosine" for "objective=x0,schedule=cosine"."""
    return " / ".join(value_name(key, text) for key, text in _parse_setting(setting).items())


def _parse_setting(setting: str) -> dict[str, str]:
    """Return {key: value} of a setting's name; commas within a list do not end its value."""
    parts = re.split(r",(?=[^,=\[\]{}]+=)", setting)
    return dict(part.split("=", 1) for part in parts if "=" in part)


def _format_point(point: Sequence[str]) -> str:
    """Return the values of a point: "0.1, 0.9" of ["optimizer.lr=0.1", "optimizer.beta=0.9"]."""
    return ", ".join(part.split("=", 1)[-1] for part in point)
