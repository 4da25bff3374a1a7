"""What differs between runs: the axes of an ablation, found from overrides and choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.report.words import listed
from triptych.runs.read import Run

# where a run is, how it is watched and on what it runs are not what an ablation varies
IGNORED = {"seed", "name", "force", "resume", "data", "data.root", "data.num_workers", "tags", "ablation"}
IGNORED_ROOMS = ("hydra", "paths", "logger", "callbacks", "local")
SWEEP = "directory"
# what is decided after a model is trained: runs that differ in nothing else share model and bound
DRAWING = ("sampler", "guidance", "guide", "threshold", "samples", "measures")
BUNDLE = "experiment"  # several settings under one name: that they change together is its purpose


@dataclass(frozen=True)
class Axis:
    """A setting that differs between runs, and its values in order of appearance."""

    key: str
    values: tuple[str, ...]

    @property
    def of_drawing(self) -> bool:
        """Whether it is a matter of how samples are drawn and measured, not of the model."""
        return self.key.split(".")[0].split("/")[0] in DRAWING


def settings(run: Run) -> dict[str, str]:
    """What a run was told and what was chosen for it; choices win, for they are resolved."""
    merged = {**run.overrides, **run.choices}
    return {
        k: v
        for k, v in merged.items()
        if k not in IGNORED and k.split(".")[0].split("/")[0] not in IGNORED_ROOMS
    }


def value(run: Run, key: str) -> str:
    """The run's value on an axis; "default" where it was not told."""
    if key == SWEEP:
        return run.sweep or run.dir.name
    return settings(run).get(key, "default")


def find_axes(runs: Sequence[Run]) -> tuple[list[Axis], list[str]]:
    """The axes that name a run, and a note on each setting that changes together with one of them.

    A setting that another determines (schedule always "cosine" where objective is "v") adds nothing to a
    name, but its effect cannot be told from the other's: it is left out of names and said in a note.
    """
    keys = dict.fromkeys(key for run in runs for key in settings(run))
    # a run that failed early may not have recorded its choices: what it does not tell is no difference
    known = {key: [run for run in runs if run.status == "finished" or key in settings(run)] for key in keys}
    axes = [Axis(key, tuple(dict.fromkeys(value(run, key) for run in known[key]))) for key in keys]
    axes = [axis for axis in axes if len(axis.values) > 1]
    if all(len(models) == 1 for models in _models(runs).values()):  # one for each seed, as if trained by it
        axes = [axis for axis in axes if axis.key != "trained"]
    notes = []
    for axis in reversed(axes.copy()):
        owner = next(
            (a for a in axes if a is not axis and _determines(a.key, axis.key, known[axis.key])), None
        )
        if owner:
            axes.remove(axis)
            if owner.key == BUNDLE:
                continue
            notes.append(
                f"{axis.key} ({listed(list(axis.values))}) changes together with {owner.key}: "
                f"these runs cannot tell the effect of one from the other."
            )
    return axes, notes[::-1]


def label(run: Run, axes: Sequence[Axis]) -> str:
    """ "x0" for one axis, "x0 / elbo" for two; the experiment's name or "all runs" where nothing differs."""
    text = (
        " / ".join(value(run, axis.key) for axis in axes)
        or run.choices.get("objective")
        or run.name
        or "all runs"
    )
    # a label goes into XML, markdown and a terminal: control characters have no place in any
    return "".join(c if c.isprintable() else "�" for c in text)


def _models(runs: Sequence[Run]) -> dict[int | None, set[str]]:
    """The ``trained`` of each seed."""
    found: dict[int | None, set[str]] = {}
    for run in runs:
        found.setdefault(run.seed, set()).add(value(run, "trained"))
    return found


def _determines(owner: str, key: str, runs: Sequence[Run]) -> bool:
    seen: dict[str, str] = {}
    return all(seen.setdefault(value(run, owner), value(run, key)) == value(run, key) for run in runs)
