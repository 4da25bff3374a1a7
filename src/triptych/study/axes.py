"""Find the axes of an ablation: the settings that differ between runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from triptych.config.identity import ABSENT, BUNDLES, default_of
from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.parsing import format_value, value_name
from triptych.run.read import Run
from triptych.study.formatting import listed

SWEEP = "directory"
MOST = 300  # settings that differ: each is held against each


@dataclass(frozen=True)
class Axis:
    """A setting that differs between runs, and its values in order of appearance.

    `bundled`: keys that are in no name, as the value of this one says theirs.
    """

    key: str
    values: tuple[str, ...]
    bundled: tuple[str, ...] = ()

    @property
    def of_drawing(self) -> bool:
        """Whether the setting concerns sampling and its measures, not the model."""
        keys = self.bundled if self.key in BUNDLES else (self.key, *self.bundled)
        return bool(keys) and all(role(key) is Role.DRAWING for key in keys)


def value(run: Run, key: str) -> str:
    """Return a run's value on an axis, a key's default if it lacks it; "none" or "default" without one."""
    if key == SWEEP:
        return run.sweep or run.dir.name
    if key in run.settings:
        return run.settings[key]
    if role(key) is Role.MACHINE:
        return run.overrides.get(key) or run.choices.get(key, "default")
    if run.config and (default := default_of(run.config, key)) is not ABSENT:
        return format_value(default)
    return "none" if _has(run, key.split(".")[0].split("/")[0]) else "default"


def find_axes(runs: Sequence[Run]) -> tuple[list[Axis], list[str]]:
    """Return the axes that name a run, and a note on each setting that changes together with one of them.

    A setting that another determines (schedule always "cosine" where objective is "v") is in no name.
    """
    typed = {key for run in runs for key in run.overrides}
    chosen = {key for run in runs for key in run.choices}

    def place(key: str) -> tuple[int, int]:
        """Rank a key for naming runs: overridden, chosen, or only resolved."""
        deep = (2 + key.endswith("_target_"), key.count("."))
        return (0, 0) if key in typed else (1, 0) if key in chosen else deep

    keys = sorted(dict.fromkeys(key for run in runs for key in run.settings), key=place)
    # a run that failed early may not have recorded its choices: what it does not tell is no difference
    known = {key: [run for run in runs if run.status == "finished" or key in run.settings] for key in keys}
    axes = [axis for key in keys for axis in varied(known[key], [key])]
    axes = [axis for axis in axes if not _only_a_name(axis, axes, runs)]
    models = {(run.seed, value(run, "trained")) for run in runs}
    if len(models) == len({run.seed for run in runs}):  # one for each seed, as if trained by it
        axes = [axis for axis in axes if axis.key != "trained"]
    notes, bundled = [], dict[str, list[str]]()
    if len(axes) > MOST:
        notes.append(f"{len(axes)} settings differ; only the first {MOST} tell these runs apart.")
        axes = axes[:MOST]
    at = {axis.key: {id(run): value(run, axis.key) for run in runs} for axis in axes}
    for axis in reversed(axes.copy()):
        owners = [a for a in axes if a is not axis and _determines(at[a.key], at[axis.key], known[axis.key])]
        if owners:
            axes.remove(axis)
            for owner in owners:
                bundled.setdefault(owner.key, []).insert(0, axis.key)
            # a choice's own keys, several settings under one name, one value that two keys refer to
            if any(_above(a.key, axis.key) or a.key in BUNDLES or a.values == axis.values for a in owners):
                continue
            notes.append(
                f"{axis.key} ({listed(list(axis.values))}) changes together with {owners[0].key}: "
                f"these runs cannot tell the effect of one from the other."
            )
    return [replace(axis, bundled=tuple(bundled.get(axis.key, ()))) for axis in axes], notes[::-1]


def varied(runs: Sequence[Run], keys: Iterable[str]) -> list[Axis]:
    """Return an axis for each of these keys that differs between runs."""
    axes = [Axis(key, tuple(dict.fromkeys(value(run, key) for run in runs))) for key in keys]
    return [axis for axis in axes if len(axis.values) > 1]


def label(run: Run, axes: Sequence[Axis]) -> str:
    """Label a cell: "x0" for one axis, "x0 / elbo" for two; by the model or "all runs" if none."""
    shown = (value_name(axis.key, value(run, axis.key)) for axis in axes)
    models = (name for key in ("objective", "model") if (name := run.choices.get(key)) != "none")
    text = next(filter(None, (" / ".join(shown), *models, run.name)), "all runs")
    # a label goes into XML, markdown and a terminal: control characters have no place in any
    return "".join(c if c.isprintable() else "�" for c in text)


def _only_a_name(axis: Axis, axes: Sequence[Axis], runs: Sequence[Run]) -> bool:
    """Return whether only the name of a group's file differs, not its keys."""
    if not any(axis.key in run.choices for run in runs):
        return False
    if not all(_has(run, axis.key.replace("/", ".")) for run in runs):
        return False  # of a run whose configuration is not known the name is all there is
    return not any(_above(axis.key, other.key) for other in axes)


def _has(run: Run, group: str) -> bool:
    return any(key == group or key.startswith(f"{group}.") for key in run.config)


def _above(group: str, key: str) -> bool:
    """Return whether ``key`` lies within ``group``, as objective.loss.bias within objective."""
    return key.replace("/", ".").startswith(group.replace("/", ".") + ".")


def _determines(owner: Mapping[int, str], key: Mapping[int, str], runs: Sequence[Run]) -> bool:
    """Return whether ``owner``'s value fixes ``key``'s; both by the run's ``id``.

    Values that differ in the run's own seed alone are one, as paths of a cascade's stages: ``.../seed=1``.
    """

    def fixed(texts: Mapping[int, str]) -> bool:
        seen: dict[str, str] = {}
        return all(seen.setdefault(owner[id(run)], texts[id(run)]) == texts[id(run)] for run in runs)

    return fixed(key) or fixed({id(r): re.sub(rf"\bseed={r.seed}\b", "seed", key[id(r)]) for r in runs})
