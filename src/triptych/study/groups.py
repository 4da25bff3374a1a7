"""Which runs are compared: those judged on the same data, which repeat no other, of one stage of a tuning.

By the fingerprint that a run records, so a copy of the data elsewhere is the same, and other pictures at the
same place are not. Runs from before there were fingerprints: by what their configuration says of the data.

Trials of a tuning read no test set. The runs on fresh seeds are compared twice: at what was best for all
together, and each at its own best.
"""

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from triptych.config.identity import role_in
from triptych.declare import Role
from triptych.run.parsing import to_float, value_name
from triptych.run.read import Run, load_items
from triptych.run.sweep_record import Tuning
from triptych.study.formatting import listed

GUARDS = (Role.DATA, Role.JUDGED, Role.PATH)
EQUAL, BEST = "equal settings", "each at its best"


class Group(NamedTuple):
    """Runs on the same data and in the same unit, the first finished; `data`: a name no other group has."""

    runs: list[Run]
    data: str
    notes: list[str]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group finished runs by data and unit, and unreported ones with them; [] while none has finished."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    fingerprints: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for run in runs:
        if run.fingerprint:
            fingerprints[_configured(run)].add(run.fingerprint)

    def identity(run: Run) -> tuple[str, ...]:
        # half of a sweep may be older than its other half, and without fingerprints
        same = {run.fingerprint} if run.fingerprint else fingerprints[_configured(run)]
        return ("", *same) if len(same) == 1 else _configured(run)

    unreported = []
    for run in runs:
        if run.status == "finished" and run.measure:
            groups.setdefault((*identity(run), run.measure), []).append(run)
        elif run.overrides or run.choices:
            unreported.append(run)
    for run in unreported:  # which belong where their data are, if that is known and unambiguous
        if run.fingerprint or _data_settings(run):
            homes = [group for key, group in groups.items() if key[:-1] == identity(run)]
        else:
            homes = [group for group in groups.values() if _name(run) in ("", _name(group[0]))]
        if len(homes) == 1:
            homes[0].append(run)
    namesakes: dict[tuple[str, ...], list[list[Run]]] = defaultdict(list)
    for group in groups.values():
        namesakes[_name(group[0]), str(group[0].measure)].append(group)
    named = (one for several in namesakes.values() for one in _tell_apart(several))
    return sorted(named, key=lambda group: (group.data, str(group.runs[0].measure)))


def _name(run: Run) -> str:
    return run.choices.get("data", "")


def _data_settings(run: Run) -> dict[str, str]:
    named = {key: value for key, value in run.config.items() if key.startswith("data.")}
    return {key: value for key, value in named.items() if role_in(run.config, key) in GUARDS}


def _configured(run: Run) -> tuple[str, str]:
    return _name(run), repr(sorted(_data_settings(run).items()))


def _tell_apart(several: list[list[Run]]) -> list[Group]:
    """Name groups whose data were chosen by the same name by what differs in their configurations."""
    firsts = [runs[0] for runs in several]
    name = _name(firsts[0])
    if len(several) == 1:
        return [Group(several[0], name, [])]
    configs = [_data_settings(first) for first in firsts]
    every = dict.fromkeys(key for config in configs for key in config)
    keys = [key for key in every if len({config.get(key) for config in configs}) > 1]
    keys = [key for key in keys if role_in(firsts[0].config, key) is not Role.PATH] or keys
    differ = (
        ", ".join(f"{key.removeprefix('data.')}={config.get(key, 'none')}" for key in keys)
        for config in configs
    )
    names = [f"{name} ({differences})"[:100] for differences in differ]
    if len({*names}) < len(several):  # the same words, other contents
        names = [f"{name} (fingerprint {first.fingerprint[:8] or 'unknown'})" for first in firsts]
    others = [listed(names[:i] + names[i + 1 :]) for i in range(len(names))]
    notes = (f"Other data are no setting: runs on {of} are a comparison of their own." for of in others)
    return [Group(runs, name, [note]) for runs, name, note in zip(several, names, notes, strict=True)]


def copies(runs: Mapping[int | None, Run]) -> dict[int | None, int | None]:
    """Return {seed: the seed whose result it repeats}: all figures, or items' bounds, to the last digit."""
    first: dict[Hashable, int | None] = {}
    repeats = {}
    for seed, run in runs.items():
        if again := [first[key] for key in _results(run) if first.setdefault(key, seed) != seed]:
            repeats[seed] = again[0]
    return repeats


def _results(run: Run) -> list[Hashable]:
    samples = [sorted(row.items()) for row in run.measured.rows] if run.measured else []
    figures = (run.test, run.val, run.train, run.noise_levels, samples)
    items = load_items(run.dir)
    # as text, in which NaN equals NaN
    return [repr(figures), *([] if items is None else [(items.total.tobytes(), repr(samples))])]


def counted_once(label: str, repeats: Mapping[int | None, int | None]) -> str:
    """Return the note of a setting's copies."""
    groups = {of: [of, *(seed for seed, one in repeats.items() if one == of)] for of in repeats.values()}
    named = [listed([*map(str, seeds)]) for seeds in groups.values()]
    return (
        f"{label}: seeds {', '.join(named)} have the same figures to the last digit and count once. "
        "Is one a copy of the other, or is the seed not in use?"
    )


def is_trial(run: Run) -> bool:
    """Return whether a run is a trial of a tuning stage, which leaves out the test set."""
    return str(run.overrides.get("test", "")).lower() == "false"


def stages(runs: Sequence[Run], tuning: Tuning | None) -> list[tuple[str, list[Run]]]:
    """Return the groups of runs to compare: one, or two if a sweep tuned first."""
    rest = [run for run in runs if not is_trial(run)]
    if tuning is None:
        return [("", rest)]
    equal, best = [], []
    for run in rest:
        typed = {**run.choices, **run.overrides}.items()
        setting = next((setting for setting in tuning.best if _parts(setting).items() <= typed), None)
        point = [f"{key}={run.overrides.get(key, '')}" for key in tuning.keys]
        # what was tuned is no setting here: it is part of the rule that the title names
        overrides, config = (
            {key: value for key, value in values.items() if key not in tuning.keys}
            for values in (run.overrides, run.config)
        )
        bare = replace(run, overrides=overrides, config=config)
        if setting is not None and point == [*tuning.equal]:
            equal.append(bare)
        if setting is not None and point == [*tuning.best[setting]]:
            best.append(bare)
    return [(BEST, best), (EQUAL, equal)]


def describe_tuning(tuning: Tuning) -> str:
    """Describe what was tuned and chosen."""
    trials = len(tuning.points) * len(tuning.seeds)
    own = "; ".join(f"{setting_label(s)}: {', '.join(_values(p))}" for s, p in tuning.best.items())
    ordered = sorted(tuning.points, key=lambda point: to_float(_values(point)[0]))  # NaN keeps the order
    ends = (ordered[0], ordered[-1]) if len(tuning.keys) == 1 else ()
    edge = [setting_label(s) for s, point in tuning.best.items() if point in ends]
    text = (
        f"{listed(list(tuning.keys))} was tuned by the validation bound, {trials} trials for each setting "
        f"({len(tuning.points)} values, {len(tuning.seeds)} seeds), on seeds that are in no comparison. Best "
        f"for all together: {', '.join(_values(tuning.equal))}. Own best: {own}."
    )
    if edge:
        text += f" At the edge of what was tried: {listed(edge)}; a wider range may help there."
    return text


def setting_label(setting: str) -> str:
    """Name such a cell as the report does: "x0 / cosine" of "objective=x0,schedule=cosine"."""
    return " / ".join(value_name(key, text) for key, text in _parts(setting).items())


def _parts(setting: str) -> dict[str, str]:
    """Return {key: value} of a setting's name; a list's commas are no ends of its value."""
    return dict(part.split("=", 1) for part in re.split(r",(?=[^,=\[\]{}]+=)", setting) if "=" in part)


def _values(point: Sequence[str]) -> list[str]:
    return [part.split("=", 1)[-1] for part in point]
