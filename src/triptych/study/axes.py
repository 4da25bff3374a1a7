"""Find the axes of an ablation: the settings that differ between runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from typing import Any, Self

from triptych.config.identity import ABSENT, BUNDLES, default_choice, default_value
from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.parsing import format_value, value_name
from triptych.run.read import Run
from triptych.study.formatting import join_names

SWEEP = "directory"  # the axis of runs that only their directories distinguish


@dataclass(frozen=True)
class Axis:
    """A setting that differs between runs, and its values in order of appearance.

    `bundled`: keys whose values follow from this setting's, so that labels omit them.
    """

    key: str
    values: tuple[str, ...]
    bundled: tuple[str, ...] = ()

    @property
    def of_drawing(self) -> bool:
        """Whether the setting concerns sampling and its measures, not the model."""
        keys = self.bundled if self.key in BUNDLES else (self.key, *self.bundled)
        return bool(keys) and all(role(key) is Role.DRAWING for key in keys)


def axis_value(run: Run, key: str) -> str:
    """Return a run's value of a setting; if the run lacks it: its default, "none" or "default"."""
    if key == SWEEP:
        return run.sweep or run.dir.name
    if key in run.settings:
        return run.settings[key]
    if role(key) is Role.MACHINE:
        return run.overrides.get(key) or run.choices.get(key, "default")
    if not run.config:
        return "default"
    default = default_value(run.config, key)
    if default is not ABSENT:
        return format_value(default)
    group = key.split(".")[0].split("/")[0]
    # A run older than this config group counts as a run with the group's default.
    if _has_group(run, group) or default_choice(group) == "none":
        return "none"
    return "default"


def find_comparison_axes(runs: Sequence[Run]) -> tuple[list[Axis], list[str]]:
    """Return the axes that label a run, and notes on settings that change together with them.

    A setting that another one determines (schedule is always "cosine" if objective is "v") is in no
    label.
    """
    axes = _differing_axes(runs)
    axes = [axis for axis in axes if not _is_only_a_label(axis, axes, runs)]
    models = {(run.seed, axis_value(run, "trained")) for run in runs}
    if len(models) == len(dict(models)):
        # Each seed has its own trained model, so the model does not distinguish settings.
        axes = [axis for axis in axes if axis.key != "trained"]
    return _bundle_dependent_axes(axes, runs)


def _differing_axes(runs: Sequence[Run]) -> list[Axis]:
    """Return the settings that differ: typed overrides, then choices of groups, then other keys."""
    typed = all_keys(run.overrides for run in runs)
    chosen = all_keys(run.choices for run in runs)

    def rank(key: str) -> tuple[int, int]:
        if key in typed:
            return (0, 0)
        if key in chosen:
            return (1, 0)
        return (2 + key.endswith("_target_"), key.count("."))

    axes = []
    for key in sorted(all_keys(run.settings for run in runs), key=rank):
        axes += varied_axes([run for run in runs if _is_known(run, key)], [key])
    return axes


def _is_known(run: Run, key: str) -> bool:
    """Return whether a run's value is known; a run that failed early may not have recorded it."""
    return run.status == "finished" or key in run.settings


def _bundle_dependent_axes(
    axes: Sequence[Axis], runs: Sequence[Run]
) -> tuple[list[Axis], list[str]]:
    """Merge each axis whose values follow from those of another axis into that axis.

    Return the remaining axes, and a note on each merged axis whose values should not have followed.
    """
    columns = {axis.key: AxisColumn.read(axis.key, runs) for axis in axes}
    named = [*axes]
    notes = list[str]()
    bundled: dict[str, list[str]] = {axis.key: [] for axis in axes}
    # Bundle the last axes first, as their names are the least informative.
    for axis in reversed(axes):
        column = columns[axis.key]
        owners = [a for a in named if a is not axis and columns[a.key].determines(column)]
        if not owners:
            continue
        named.remove(axis)
        for owner in owners:
            bundled[owner.key].insert(0, axis.key)
        if not any(_is_explained_by(owner, axis) for owner in owners):
            note = (
                f"{axis.key} ({join_names(axis.values)}) changes together with "
                f"{owners[0].key}: their effects cannot be separated."
            )
            notes.insert(0, note)
    return [replace(axis, bundled=tuple(bundled[axis.key])) for axis in named], notes


def _is_explained_by(owner: Axis, axis: Axis) -> bool:
    """Return whether ``owner`` determines ``axis`` as expected, like a group its keys."""
    return _is_within(axis.key, owner.key) or owner.key in BUNDLES or owner.values == axis.values


@dataclass(frozen=True)
class AxisColumn:
    """A setting's values, one for each run, and where they are known.

    `neutral`: the values with "seed" for "seed=N", N the run's own seed, so that a path such as
    ``.../seed=1`` is equal for all seeds.
    """

    values: Sequence[str]
    neutral: Sequence[str]
    known: Sequence[bool]

    @classmethod
    def read(cls, key: str, runs: Sequence[Run]) -> Self:
        """Read the value of a setting from each run."""
        values = [axis_value(run, key) for run in runs]
        pairs = zip(runs, values, strict=True)
        neutral = [re.sub(rf"\bseed={run.seed}\b", "seed", text) for run, text in pairs]
        return cls(values, neutral, [_is_known(run, key) for run in runs])

    def determines(self, other: Self) -> bool:
        """Return whether each value of this setting goes with only one value of the other."""
        for values in (other.values, other.neutral):
            pairs = set(compress(zip(self.values, values, strict=True), other.known))
            if len(pairs) == len(dict(pairs)):
                return True
        return False


def all_keys(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys that some mapping has, in order of appearance."""
    return [*dict.fromkeys(chain.from_iterable(mappings))]


def varied_axes(runs: Sequence[Run], keys: Iterable[str]) -> list[Axis]:
    """Return an axis for each of these keys that differs between runs."""
    axes = [Axis(key, tuple(dict.fromkeys(axis_value(run, key) for run in runs))) for key in keys]
    return [axis for axis in axes if len(axis.values) > 1]


def cell_label(run: Run, axes: Sequence[Axis]) -> str:
    """Label a cell: "x0" for one axis, "x0 / elbo" for two, the model or "all runs" for none."""
    names = [value_name(axis.key, axis_value(run, axis.key)) for axis in axes]
    text = " / ".join(names) or _model_name(run)
    # Escape control characters, as labels go into XML, markdown and terminals.
    return "".join(c if c.isprintable() else "�" for c in text)


def _model_name(run: Run) -> str:
    """Return a run's choice of objective, else of model, else its name; "all runs" without one."""
    for name in (run.choices.get("objective"), run.choices.get("model"), run.name):
        if name not in (None, "", "none"):
            return str(name)
    return "all runs"


def _is_only_a_label(axis: Axis, axes: Sequence[Axis], runs: Sequence[Run]) -> bool:
    """Return whether an axis is a config group whose chosen files differ in name, not in keys."""
    if not any(axis.key in run.choices for run in runs):
        return False
    if not all(_has_group(run, axis.key.replace("/", ".")) for run in runs):
        return False  # Without a configuration, only the name is known.
    return not any(_is_within(other.key, axis.key) for other in axes)


def _has_group(run: Run, group: str) -> bool:
    """Return whether a run's configuration has keys of a config group."""
    return any(key == group or key.startswith(f"{group}.") for key in run.config)


def _is_within(key: str, group: str) -> bool:
    """Return whether ``key`` lies within ``group``, as objective.loss.bias within objective."""
    return key.replace("/", ".").startswith(group.replace("/", ".") + ".")
