"""What the page tells of one run: its figures, curves, pictures, where it comes from, and its log's end."""

from __future__ import annotations

import base64
import math
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from triptych.config.metric import SAMPLE_METRICS
from triptych.files import load_object
from triptych.run.entries import UNITS, Estimate
from triptych.run.parsing import natural_key
from triptych.run.read import Run
from triptych.study.formatting import duration, format_number, plus_minus
from triptych.study.statistics import Spread
from triptych.study.style import mark

PNG = b"\x89PNG\r\n\x1a\n"
PICTURE = 2**20  # bytes of one picture
PICTURES = 3 * 2**19  # bytes of all pictures of the runs' own pages
CURVES = 8
LOG, LINES = 8192, 40  # bytes and lines of a log's end
TEXT = 240  # characters of one value
# typed for a sweep, not for one run of it
OF_SWEEP = ("name", "hparams_search", "until", "max_seeds", "equal_within")


def of_run(run: Run, points: int) -> dict[str, Any]:
    """Collect everything of a run but its pictures; ``points``: of each curve, about."""
    return {
        "mark": mark(run),
        "status": run.status,
        "error": cut(run.error),
        "bound": bound(run),
        "figures": list(_figures(run)),
        "facts": list(_facts(run)),
        "curves": _curves(run, points),
        "again": command_again(run),
        "provenance": list(_provenance(run)),
        "log": _log_end(run.dir),
    }


def cut(text: str) -> str:
    """Cut a text to the length at which the page shows a value."""
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


# figures ----------------------------------------------------------------------------------------------


def bound(run: Run) -> str:
    """Format the bound, mean and standard error over items: "1.902 ± 0.018 bits/dim"; "" without one."""
    return f"{_estimate(run.test[run.measure])} {UNITS[run.measure]}" if run.measure else ""


def _estimate(estimate: Estimate) -> str:
    """Format a mean and its standard error over items: "1.902 ± 0.018"."""
    return plus_minus(Spread(estimate.mean, estimate.stderr, math.nan, math.nan, 2))


def _figures(run: Run) -> Iterable[list[Any]]:
    """Yield split, name, figure and number of items of every figure of the summary's splits and samples."""
    for split in ("test", "val", "train"):
        for key, estimate in getattr(run, split).items():
            yield [split, key, _estimate(estimate), estimate.n]
    if run.measured:
        titles = SAMPLE_METRICS | {**run.measured.metrics}
        for at, row in zip(run.measured.values, run.measured.rows, strict=True):
            on = f", {run.measured.key}={at:g}" if run.measured.key else ""
            for key, mean in row.items():
                what = titles[key].label if key in titles else key
                n = run.measured.fewer.get(key, run.measured.n)
                yield ["samples", f"{what}{on}", format_number(mean), n]


def _facts(run: Run) -> Iterable[tuple[str, str]]:
    if run.progress:
        yield "stage", f"{run.progress.stage}, step {run.progress.step} of {run.progress.max_steps or '?'}"
    if run.steps is not None:
        yield "steps", f"{run.steps:,}"
    for stage, seconds in run.seconds.items():
        yield f"{stage} took", duration(seconds)
    if run.parameters is not None:
        yield "parameters", f"{run.parameters:,}"
    if run.weights:
        yield "weights", run.weights
    if run.gradient:
        yield "median norm of gradients", format_number(run.gradient.get("median", math.nan))
    clipped = run.gradient.get("clipped", math.nan)
    if math.isfinite(clipped):
        yield "steps clipped", f"{clipped:.0%}"


def _curves(run: Run, points: int) -> list[dict[str, Any]]:
    """Return columns of metrics.csv that are curves, the validation bound first; the error by noise level."""
    histories = run.histories()
    first = [f"val/{run.measure}"] if run.measure else ["val/bpd", "val/nats_per_dim"]
    drawn = [name for name in (*first, "train/loss", "train/grad_norm", "train/lr") if name in histories]
    drawn += [name for name in histories if name.startswith(("val/", "train/")) and name not in drawn]
    aside = {"val/bound"} if len(drawn) > 1 else set()  # the same under another name
    named = [name for name in drawn if len({*histories[name][1]}) > 1 and name not in aside][:CURVES]
    clock = dict(zip(*histories.get("time", ([], [])), strict=True))
    curves = []
    for name in named:
        thinned = _thinned(*histories[name], points)
        known = clock.keys() >= {*thinned["x"]}
        seconds = [short_float(clock[step]) for step in thinned["x"]] if known else []
        curves.append(
            {"name": name, "of": "training step", "unit": _unit(name), "seconds": seconds} | thinned
        )
    if levels := run.noise_levels:
        what = {"name": "squared error of ε by noise level", "of": "γ = −log SNR", "unit": "per dimension"}
        thinned = _thinned(levels.gamma, levels.value, points)
        curves.append(what | {"log": min(levels.value) > 0} | thinned)
    return curves


def _unit(name: str) -> str:
    """Return the unit of a column, "bits/dim" of val/bpd and its parts; "" where its name tells none."""
    return next((unit for key, unit in UNITS.items() if name.partition("/")[2].startswith(key)), "")


def _thinned(x: Sequence[float], y: Sequence[float], points: int) -> dict[str, Any]:
    """Thin a curve to every k-th point and the last one; `every` is k."""
    every = max(1, math.ceil(len(x) / points))
    places = [*range(0, len(x) - 1, every), len(x) - 1]
    short = [i for i in places if math.isfinite(y[i])]
    return {"every": every, "x": [short_float(x[i]) for i in short], "y": [short_float(y[i]) for i in short]}


def short_float(x: float) -> float:
    """Round to five digits; whole numbers stay as they are."""
    return x if isinstance(x, int) else float(f"{x:.5g}")


# pictures, provenance, log ----------------------------------------------------------------------------


def run_pictures(runs: Sequence[Run]) -> dict[Path, list[list[str]]]:
    """Return [caption, data URI] of each run's pictures, last ones first to have room; "" without room."""
    known = {run.dir: _files(run) for run in runs}
    shown: dict[Path, list[list[str]]] = {run.dir: [] for run in runs}
    room = PICTURES
    for turn in range(max(map(len, known.values()), default=0)):
        for run in (run for run in runs if turn < len(known[run.dir])):
            caption, path = known[run.dir][-1 - turn]
            data = png(path, run, min(PICTURE, room))
            room -= len(data)
            shown[run.dir].insert(0, [caption, data_uri(data) if data else ""])
    return shown


def _files(run: Run) -> list[tuple[str, Path]]:
    """List captions and files of a run's pictures, in the order of training."""
    folder = run.dir / "samples"
    pictures: list[tuple[str, Path]] = []
    try:
        names = sorted((entry.name for entry in os.scandir(folder)), key=natural_key)
    except OSError:
        return []
    for name in names:
        if step := re.fullmatch(r"step_(\d{1,12})\.png", name):
            pictures.append((f"step {int(step[1]):,}", folder / name))
    pictures += [("from noise to sample", folder / "trajectory.png")] if "trajectory.png" in names else []
    pictures += [("by caption", folder / "prompts.png")] if "prompts.png" in names else []
    pictures += [("at the end", run.samples)] if run.samples else []
    return [(caption, path) for caption, path in pictures if _inside(path, run.dir)]


def _inside(path: Path, directory: Path) -> bool:
    """Return whether a file lies in the directory: the report shows it to others."""
    try:
        return path.is_file() and path.resolve().is_relative_to(directory.resolve())
    except OSError:
        return False


def data_uri(data: bytes) -> str:
    """Return a picture as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(path: Path | None, run: Run, most: int) -> bytes:
    """Read a picture of the run's own; empty: it is none, lies elsewhere or is larger than `most` bytes."""
    try:
        if path is None or not _inside(path, run.dir) or path.stat().st_size > most:
            return b""
        data = path.read_bytes()
    except OSError:
        return b""
    return data if data.startswith(PNG) else b""


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


def _log_end(directory: Path) -> str:
    """Return the last lines of train.log, without what only a terminal would understand."""
    path = directory / "train.log"
    try:
        if not _inside(path, directory):
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG))
            text = file.read(LOG).decode(errors="replace")
    except OSError:
        return ""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    # a bar that was drawn again and again on one line: only its last state is left
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    shown = ["".join(c if c.isprintable() or c == "\t" else "�" for c in line) for line in lines]
    return "\n".join(shown[-LINES:]).strip()
