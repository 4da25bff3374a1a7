"""Which runs were judged on the same data: other data are no setting, and are never compared.

By the fingerprint that a run records, so a copy of the data elsewhere is the same, and other pictures at the
same place are not. Runs from before there were fingerprints: by what their configuration says of the data.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.config.identity import role_in
from triptych.declare import Role
from triptych.run.read import Run
from triptych.study.formatting import listed

GUARDS = (Role.DATA, Role.JUDGED, Role.PATH)


@dataclass
class Group:
    """Runs on the same data and in the same unit.

    `data` tells it from all other groups' data, `dataset` is the name that it was chosen by; `notes` go
    with a comparison of these runs.
    """

    dataset: str
    measure: str
    runs: list[Run] = field(default_factory=list)
    data: str = ""
    notes: list[str] = field(default_factory=list)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group finished runs by data and unit, and unreported ones with them; [] while none has finished."""
    groups: dict[tuple[str, ...], Group] = {}
    known = _fingerprints(runs)
    for run in runs:
        if run.status == "finished" and run.measure:
            key = (*_identity(run, known), run.measure)
            groups.setdefault(key, Group(_name(run), run.measure)).runs.append(run)
    for run in runs:
        if (run.status == "finished" and run.measure) or not (run.overrides or run.choices):
            continue
        # a run that has not reported yet belongs where its data are, if that is told and unambiguous
        known_data = run.fingerprint or _data_settings(run)
        homes = [k for k in groups if k[:-1] == _identity(run, known)] if known_data else []
        if not known_data:
            homes = [k for k, g in groups.items() if g.dataset == run.choices.get("data", g.dataset)]
        if len(homes) == 1:
            groups[homes[0]].runs.append(run)
    every = list(groups.values())
    _tell_apart(every)
    return sorted(every, key=lambda g: (g.data, g.measure))


def _name(run: Run) -> str:
    return run.choices.get("data", "")


def _data_settings(run: Run) -> tuple[tuple[str, str], ...]:
    """Return what the configuration says of the data and of the test set."""
    return tuple(
        sorted(
            (k, v)
            for k, v in run.config.items()
            if k.startswith("data.") and role_in(run.config, k) in GUARDS
        )
    )


def _fingerprints(runs: Sequence[Run]) -> dict[tuple[Any, ...], set[str]]:
    """Return the fingerprints of each data configuration."""
    fingerprints: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for run in runs:
        if run.fingerprint:
            fingerprints[_name(run), _data_settings(run)].add(run.fingerprint)
    return fingerprints


def _identity(run: Run, known: dict[tuple[Any, ...], set[str]]) -> tuple[str, ...]:
    if run.fingerprint:
        return ("", run.fingerprint)
    same = known.get((_name(run), _data_settings(run)), set())
    if len(same) == 1:  # half of a sweep may be older than its other half
        return ("", *same)
    return (_name(run), repr(_data_settings(run)))


def _tell_apart(groups: list[Group]) -> None:
    """Name groups whose data were chosen by the same name by what differs in their configurations."""
    namesakes: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for one in groups:
        one.data = one.dataset
        namesakes[one.dataset, one.measure].append(one)
    for (name, _), several in namesakes.items():
        if len(several) == 1:
            continue
        configs = [dict(_data_settings(one.runs[0])) for one in several]
        every = dict.fromkeys(key for config in configs for key in config)
        keys = [key for key in every if len({config.get(key) for config in configs}) > 1]
        keys = [key for key in keys if role_in(several[0].runs[0].config, key) is not Role.PATH] or keys
        for one, config in zip(several, configs, strict=True):
            differences = ", ".join(f"{key.removeprefix('data.')}={config.get(key, 'none')}" for key in keys)
            one.data = f"{name} ({differences})"[:100]
        if len({one.data for one in several}) < len(several):  # the same words, other contents
            for one in several:
                one.data = f"{name} (fingerprint {one.runs[0].fingerprint[:8] or 'unknown'})"
        for one in several:
            others = listed([other.data for other in several if other is not one])
            one.notes.append(f"Other data are no setting: runs on {others} are a comparison of their own.")
