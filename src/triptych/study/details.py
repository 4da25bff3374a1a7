"""Data for the page's script, as JSON: runs with their curves and origin, their differences, all pairs.

All of it is text and numbers that are ready to be shown: the script computes no statistic.
"""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.config.keys import role
from triptych.declare import Role
from triptych.run.directory import RunDirectory
from triptych.run.parsing import UNITS, natural_key
from triptych.run.provenance_file import Provenance
from triptych.run.read import Run
from triptych.study.formatting import duration, plus_minus
from triptych.study.study import Study
from triptych.study.style import mark
from triptych.study.tables import against

NOWHERE = {Role.PATH, Role.OUTPUT}  # where something lies is no property to group by
CURVES = 8
# which every run has: after one's own
LAST = (
    "val/bound_stderr", "train/loss_variance", "train/lr", "train/images_per_second", "train/grad_norm",
    "train/clipped",
)  # fmt: skip
TEXT = 240  # characters of one value
# typed for a sweep, not for one run of it
OF_SWEEP = ("name", "hparams_search", "until", "max_seeds", "equal_within")
POINTS, FEWEST = 12_000, 24  # of each curve: as many as all runs share, and at least


def as_json(study: Study, where: Mapping[Path, str]) -> str:
    """Serialise `details` as JSON for a script element: no text in it ends the element."""
    text = json.dumps(details(study, where), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def details(study: Study, where: Mapping[Path, str]) -> dict[str, Any]:
    """Collect the page's details: runs in the order of its table, each comparison's cells in that of theirs.

    `where`: each run's directory as a reader at the report finds it, by which the page names it.
    """
    runs, flat = study.runs, [_flat(run) for run in study.runs]
    keys = _differing(flat, [values for run, values in zip(runs, flat, strict=True) if run.config])
    own = [{key: values[key] for key in keys if key in values} for values in flat]
    place = {run.dir: i for i, run in enumerate(runs)}
    homes: dict[int, dict[str, Any]] = {}  # of a sweep that tuned first, the last stage's
    sections = []
    for k, comparison in enumerate(study.comparisons):
        cells = []
        for cell in (*comparison.cells, *comparison.pending):
            at = [place[run.dir] for run in (*cell.runs.values(), *cell.others)]
            home = {"section": k, "cell": cell.label, "far": cell.label in comparison.bounds.far}
            homes |= dict.fromkeys(at, home)
            values = {key: dict.fromkeys(own[i][key] for i in at if key in own[i]) for key in keys}
            shown = {key: cut(", ".join(several)) for key, several in values.items() if several}
            cells.append({"label": cell.label, "runs": at, "own": shown})
        tested = len(comparison.cells) > 1 and not comparison.deciding
        places = range(len(comparison.cells)) if tested else ()
        # by reference and cell: the difference, its corrected p and the verdict
        pairs = [[against(comparison, reference, i) for i in places] for reference in places]
        texts = [[(of["difference"].text, of["p"].text, verdict) for of, verdict in row] for row in pairs]
        sections.append({"cells": cells, "against": texts})
    points = max(FEWEST, POINTS // max(len(runs), 1) // CURVES)
    rows = []
    for i, run in enumerate(runs):
        row = {"section": None, "cell": "", "far": False} | homes.get(i, {})
        row["far"] |= run.status == "diverged"
        row |= {"name": where[run.dir], "own": {key: cut(text) for key, text in own[i].items()}}
        rows.append(row | _of_run(run, points, bool(study.tuned)))
    return {"running": study.going_on, "runs": rows, "keys": keys, "sections": sections}


def _flat(run: Run) -> dict[str, str]:
    seed = {} if run.seed is None else {"seed": str(run.seed)}
    more = {"status": run.status, "sweep": run.sweep, "device": run.device, "host": run.host}
    more["commit"] = run.commit[:10]
    return {key: value for key, value in more.items() if value} | run.all_settings | seed


def _differing(flat: Sequence[Mapping[str, str]], whole: Sequence[Mapping[str, str]]) -> list[str]:
    """Return keys that have several values, or that a configuration in ``whole`` lacks; short ones first."""
    every = dict.fromkeys(key for one in flat for key in one)
    none = {key for key in every if any(key not in one for one in whole)}
    keys = [key for key in every if len({one[key] for one in flat if key in one}) + (key in none) > 1]
    return sorted((k for k in keys if role(k) not in NOWHERE), key=lambda k: (k.count("."), natural_key(k)))


def _of_run(run: Run, points: int, tuned: bool) -> dict[str, Any]:
    """Collect everything of a run; ``points``: of each curve, about; ``tuned``: its sweep tuned first."""
    bound = f"{plus_minus(run.test[run.measure])} {UNITS[run.measure]}" if run.measure else ""
    provenance = RunDirectory(run.dir).readable_provenance
    about: dict[str, Any] = {"mark": mark(run), "status": run.status, "error": cut(run.error), "bound": bound}
    about |= {"facts": list(_facts(run)), "curves": _curves(run, points)}
    return about | {
        "again": command_again(provenance, tuned),
        "provenance": list(_provenance(run, provenance)),
    }


def cut(text: str) -> str:
    """Cut a text to the length at which the page shows a value."""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    if run.progress:
        yield "stage", f"{run.progress.stage}, step {run.progress.step} of {run.progress.max_steps or '?'}"
    for what, count in (("steps", run.steps), ("parameters", run.parameters)):
        if count is not None:
            yield what, f"{count:,}"
    for stage, seconds in run.seconds.items():
        yield f"{stage} took", duration(seconds)
    if run.weights:
        yield "weights", run.weights


def _curves(run: Run, points: int) -> list[dict[str, Any]]:
    """Return columns of metrics.csv that are curves, the validation bound first; the error by noise level."""
    histories = run.histories()
    drawn = [f"val/{run.measure}"] if run.measure else ["val/bpd", "val/nats_per_dim"]
    others = (name for name in histories if name.startswith(("val/", "train/")))
    drawn += ["train/loss", *sorted(others, key=LAST.__contains__)]
    drawn = [name for name in dict.fromkeys(drawn) if len({*histories.get(name, ((), ()))[1]}) > 1]
    aside = {"val/bound"} if len(drawn) > 1 else set()  # the same under another name
    clock = dict(zip(*histories.get("time", ([], [])), strict=True))
    curves = []
    for name in [name for name in drawn if name not in aside][:CURVES]:
        thinned = _thinned(*histories[name], points)
        known = clock.keys() >= {*thinned["x"]}
        seconds = [_short(clock[step]) for step in thinned["x"]] if known else []
        unit = next((unit for key, unit in UNITS.items() if name.partition("/")[2].startswith(key)), "")
        curves.append({"name": name, "of": "training step", "unit": unit, "seconds": seconds} | thinned)
    if levels := run.noise_levels:
        what = {"name": "squared error of ε by noise level", "of": "γ = −log SNR", "unit": "per dimension"}
        thinned = _thinned(levels.gamma, levels.value, points)
        curves.append(what | {"log": min(levels.value) > 0} | thinned)
    return curves


def _thinned(x: Sequence[float], y: Sequence[float], points: int) -> dict[str, Any]:
    """Thin a curve to every k-th point and the last one; `every` is k."""
    every = max(1, math.ceil(len(x) / points))
    places = [*range(0, len(x) - 1, every), len(x) - 1]
    short = [i for i in places if math.isfinite(y[i])]
    return {"every": every, "x": [_short(x[i]) for i in short], "y": [_short(y[i]) for i in short]}


def _short(x: float) -> float:
    return x if isinstance(x, int) else float(f"{x:.5g}")


def command_again(provenance: Provenance, tuned: bool) -> str:
    """Return the command that repeats a run; "" if unknown. ``tuned``: its values were tuned, now typed."""
    if "overrides" not in provenance.record:
        return ""
    words = [word for word in provenance.overrides if word.partition("=")[0] not in OF_SWEEP]
    several = any(word.startswith(("ablation=", "paper=")) for word in words)
    own = ["hydra.sweeper.tune=null"] if several and tuned else []
    # under the sweep's own name finished runs are returned, and nothing runs
    return shlex.join(["triptych-train", *(["-m", "name=again"] if several else []), *words, *own])


def _provenance(run: Run, provenance: Provenance) -> Iterable[tuple[str, str]]:
    yield "directory", run.dir.name
    if run.command:
        yield "command", cut(" ".join(run.command))
    yield "commit", (run.commit or "not recorded") + (", with uncommitted changes" if run.dirty else "")
    for what, fact in (("started", run.began), ("host", run.host), ("device", run.device)):
        if fact:
            yield what, cut(fact)
    if provenance.description:
        leaks = "".join(f"; {n} {name} items are also in train" for name, n in provenance.shared.items())
        yield "data", cut(f"{provenance.description}{leaks}")
    if run.fingerprint:
        changed = ", changed on the way" if run.data_changed else ""
        yield "data fingerprint", f"{run.fingerprint}{changed}"
    for change in run.code_changes[:4]:
        yield "went on under other code", cut(change)
