"""What the page tells of one run: facts, curves, and where it comes from."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from triptych.files import load_object
from triptych.run.entries import UNITS
from triptych.run.read import Run
from triptych.study.formatting import duration, plus_minus
from triptych.study.statistics import Spread
from triptych.study.style import mark

CURVES = 8
TEXT = 240  # characters of one value
# typed for a sweep, not for one run of it
OF_SWEEP = ("name", "hparams_search", "until", "max_seeds", "equal_within")


def of_run(run: Run, points: int) -> dict[str, Any]:
    """Collect everything of a run; ``points``: of each curve, about."""
    return {
        "mark": mark(run),
        "status": run.status,
        "error": cut(run.error),
        "bound": _bound(run),
        "facts": list(_facts(run)),
        "curves": _curves(run, points),
        "again": command_again(run),
        "provenance": list(_provenance(run)),
    }


def cut(text: str) -> str:
    """Cut a text to the length at which the page shows a value."""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _bound(run: Run) -> str:
    """Format the bound, mean and standard error over items: "1.902 ± 0.018 bits/dim"; "" without one."""
    if not run.measure:
        return ""
    estimate = run.test[run.measure]
    return f"{plus_minus(Spread(estimate.mean, estimate.stderr, math.nan, math.nan, 2))} {UNITS[run.measure]}"


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
    drawn += ["train/loss", *(name for name in histories if name.startswith(("val/", "train/")))]
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


def command_again(run: Run) -> str:
    """Return the command that makes this run again; "" if unknown."""
    typed = load_object(run.dir / "provenance.json").get("overrides")
    if not isinstance(typed, list):
        return ""
    words = [word for word in map(str, typed) if word.partition("=")[0] not in OF_SWEEP]
    several = any(word.startswith(("ablation=", "paper=")) for word in words)
    # under the sweep's own name finished runs are returned, and nothing runs
    return shlex.join(["triptych-train", *(["-m", "name=again"] if several else []), *words])


def _provenance(run: Run) -> Iterable[tuple[str, str]]:
    record = load_object(run.dir / "provenance.json")
    yield "directory", run.dir.name
    if run.command:
        yield "command", cut(" ".join(run.command))
    yield "commit", (run.commit or "not recorded") + (", with uncommitted changes" if run.dirty else "")
    for what, fact in (("started", run.started), ("host", run.host), ("device", run.device)):
        if fact:
            yield what, cut(fact)
    if isinstance(data := record.get("data"), dict) and data.get("description"):
        shared = data.get("shared")
        shared = shared.items() if isinstance(shared, dict) else ()
        leaks = "".join(f"; {n} {name} items are also in train" for name, n in shared)
        yield "data", cut(f"{data['description']}{leaks}")
    if run.fingerprint:
        changed = ", changed on the way" if run.data_changed else ""
        yield "data fingerprint", f"{run.fingerprint}{changed}"
    for change in run.code_changes[:4]:
        yield "went on under other code", cut(change)
