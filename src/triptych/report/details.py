"""What the page's script knows: every run, what sets it apart, and each setting beside every other.

All of it is text and numbers that are ready to be shown: the script chooses among them and computes no
statistic. It travels as JSON in the page itself.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.config.keys import role
from triptych.declare import Role
from triptych.report import measures
from triptych.report.compare import Cell, Comparison
from triptych.report.statistics import Spread, spread
from triptych.report.story import Story, against
from triptych.report.style import mark
from triptych.report.words import count, duration, number, plus_minus
from triptych.runs.plain import load, natural
from triptych.runs.read import UNITS, Estimate, Run

NOWHERE = {Role.PATH, Role.OUTPUT}  # where something lies is no property to group by
PNG = b"\x89PNG\r\n\x1a\n"
PICTURE = 2**20  # bytes of one picture
PICTURES = 3 * 2**19  # bytes of all pictures of the runs' own pages
POINTS, FEWEST = 12_000, 24  # of each curve: as many as all runs share, and at least
CURVES = 8
LOG, LINES = 8192, 40  # bytes and lines of a log's end
TEXT = 240  # characters of one value
NEIGHBOURS = 8
VERSIONS = ("torch", "pytorch-lightning", "numpy", "hydra-core", "triptych")


def as_json(story: Story, where: Mapping[Path, str]) -> str:
    """`details` as JSON that stands in a script element: no text in it ends the element."""
    text = json.dumps(details(story, where), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def details(story: Story, where: Mapping[Path, str]) -> dict[str, Any]:
    """Runs in the order of the page's table, and the cells of each comparison in the order of its table.

    `where`: each run's directory as a reader at the report finds it, by which the page names it.
    """
    runs, flat = story.runs, [_flat(run) for run in story.runs]
    homes = _homes(story.comparisons)
    differ = _differing(flat)
    place = {run.dir: i for i, run in enumerate(runs)}
    pictures = _pictures(runs)
    points = max(FEWEST, POINTS // max(len(runs), 1) // CURVES)
    found = []
    for i, run in enumerate(runs):
        section, label = homes.get(run.dir, (None, ""))
        own = {key: _cut(flat[i][key]) for key in differ if key in flat[i]}
        found.append(
            {
                "name": where[run.dir],
                "mark": mark(run),
                "status": run.status,
                "error": _cut(run.error),
                "section": section,
                "cell": label,
                "bound": _bound(run),
                "own": own,
                "figures": list(_figures(run)),
                "facts": list(_facts(run)),
                "curves": _curves(run, points),
                "pictures": pictures[run.dir],
                "provenance": list(_provenance(run)),
                "log": _log_end(run.dir),
            }
        )
    for i, near in enumerate(_neighbours(story, homes, flat, differ)):
        found[i]["neighbours"] = near
    same = {key: _cut(value) for key, value in (flat[0] if flat else {}).items() if key not in differ}
    return {
        "running": bool(story.counts["running"]),
        "runs": found,
        "keys": differ,
        "shared": same,
        "sections": [_section(c, place, flat, differ) for c in story.comparisons],
        "groups": _groups(story.comparisons, place, flat, differ),
    }


# settings ---------------------------------------------------------------------------------------------


def _flat(run: Run) -> dict[str, str]:
    """Everything that was set, and what the run is besides, by key."""
    found = {**run.overrides, **run.choices}
    found |= {key: value for key, value in run.config.items() if key not in run.choices}
    if run.seed is not None:
        found["seed"] = str(run.seed)
    more = {"status": run.status, "sweep": run.sweep, "device": run.device, "host": run.host}
    more["commit"] = run.commit[:10]
    return {key: value for key, value in more.items() if value and key not in found} | found


def _differing(flat: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys of which some runs have another value, or none: typed ones and short ones first."""
    every = dict.fromkeys(key for one in flat for key in one)
    keys = [key for key in every if len({one.get(key) for one in flat}) > 1]
    return sorted((key for key in keys if role(key) not in NOWHERE), key=lambda k: (k.count("."), natural(k)))


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _homes(comparisons: Sequence[Comparison]) -> dict[Path, tuple[int, str]]:
    """The comparison and the cell of each run; of a sweep that tuned first, the last stage's."""
    return {
        run.dir: (k, cell.label)
        for k, comparison in enumerate(comparisons)
        for cell in (*comparison.cells, *comparison.pending)
        for run in (*cell.runs.values(), *cell.others)
    }


def _neighbours(
    story: Story,
    homes: Mapping[Path, tuple[int, str]],
    flat: Sequence[Mapping[str, str]],
    keys: Sequence[str],
) -> list[list[dict[str, Any]]]:
    """For each run those of its comparison that differ from it by the fewest axes, same seed first."""
    axes = {k: [axis.key for axis in c.axes] for k, c in enumerate(story.comparisons)}
    found: list[list[dict[str, Any]]] = []
    for i, run in enumerate(story.runs):
        home = homes.get(run.dir)
        near = []
        for j, other in enumerate(story.runs):
            if home is None or i == j or homes.get(other.dir, (None, ""))[0] != home[0]:
                continue
            apart = sum(flat[i].get(key) != flat[j].get(key) for key in (*axes[home[0]], "seed"))
            near.append((apart, run.seed != other.seed, j))
        found.append([_neighbour(story.runs, flat, keys, i, j) for *_, j in sorted(near)[:NEIGHBOURS]])
    return found


def _neighbour(
    runs: Sequence[Run], flat: Sequence[Mapping[str, str]], keys: Sequence[str], i: int, j: int
) -> dict[str, Any]:
    mine, theirs = flat[i], flat[j]
    differ = [key for key in keys if mine.get(key) != theirs.get(key) and key != "status"]
    apart = runs[j].bound - runs[i].bound
    return {
        "run": j,
        "differs": [[key, _cut(mine.get(key, "none")), _cut(theirs.get(key, "none"))] for key in differ],
        "bound": _bound(runs[j]),
        "apart": number(apart, sign=True) if math.isfinite(apart) else "–",
    }


# figures ----------------------------------------------------------------------------------------------


def _bound(run: Run) -> str:
    return f"{_estimate(run.test[run.measure])} {UNITS[run.measure]}" if run.measure else ""


def _estimate(found: Estimate) -> str:
    """ "1.902 ± 0.018": a mean and its standard error over items."""
    return plus_minus(Spread(found.mean, found.stderr, math.nan, math.nan, 2))


def _figures(run: Run) -> Iterable[list[Any]]:
    """Where, what, how much, over how many: every figure of the summary's splits and samples."""
    for split in ("test", "val", "train"):
        for key, found in getattr(run, split).items():
            yield [split, key, _estimate(found), found.n]
    if run.measured:
        for at, row in zip(run.measured.values, run.measured.rows, strict=True):
            on = f", {run.measured.key}={at:g}" if run.measured.key else ""
            for key, mean in row.items():
                what = measures.KNOWN[key][0] if key in measures.KNOWN else key
                yield ["samples", f"{what}{on}", number(mean), run.measured.n]


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
        yield "median norm of gradients", number(run.gradient.get("median", math.nan))
    clipped = run.gradient.get("clipped", math.nan)
    if math.isfinite(clipped):
        yield "steps clipped", f"{clipped:.0%}"


def _curves(run: Run, points: int) -> list[dict[str, Any]]:
    """The columns of metrics.csv that are curves, the validation bound first; the error by noise level."""
    histories = run.histories()
    first = [f"val/{run.measure}"] if run.measure else ["val/bpd", "val/nats_per_dim"]
    drawn = [name for name in (*first, "train/loss", "train/grad_norm", "train/lr") if name in histories]
    drawn += [name for name in histories if name.startswith(("val/", "train/")) and name not in drawn]
    aside = {"val/bound"} if len(drawn) > 1 else set()  # the same under another name
    found: list[dict[str, Any]] = []
    for name in drawn:
        steps, values = histories[name]
        if len(steps) > 1 and name not in aside and len(found) < CURVES:
            found.append({"name": name, "of": "training step", **_thinned(steps, values, points)})
    if run.noise_levels:
        levels = run.noise_levels
        found.append(
            {
                "name": "squared error of ε by noise level",
                "of": "γ = −log SNR",
                "log": min(levels.value) > 0,
                **_thinned(levels.gamma, levels.value, points),
            }
        )
    return found


def _thinned(x: Sequence[float], y: Sequence[float], points: int) -> dict[str, Any]:
    """Every k-th point and the last one; `every` is k."""
    every = max(1, math.ceil(len(x) / points))
    kept = [*range(0, len(x) - 1, every), len(x) - 1]
    short = [i for i in kept if math.isfinite(y[i])]
    return {
        "every": every,
        "x": [_digits(x[i]) for i in short],
        "y": [_digits(y[i]) for i in short],
    }


def _digits(x: float) -> float:
    return x if isinstance(x, int) else float(f"{x:.5g}")


# pictures, provenance, log ----------------------------------------------------------------------------


def _pictures(runs: Sequence[Run]) -> dict[Path, list[list[str]]]:
    """[caption, data URI] of each run's pictures, "" where there was no room: the last ones of each first."""
    known: dict[Path, list[tuple[str, Path]]] = {run.dir: _files(run) for run in runs}
    taken: dict[Path, dict[str, str]] = {run.dir: {} for run in runs}
    room = PICTURES
    for turn in range(max(map(len, known.values()), default=0)):
        for run in runs:
            files = known[run.dir]
            if turn >= len(files):
                continue
            caption, path = files[-1 - turn]
            data = png(path, run, PICTURE)
            taken[run.dir][caption] = ""
            if data and len(data) <= room:
                room -= len(data)
                taken[run.dir][caption] = "data:image/png;base64," + base64.b64encode(data).decode()
    return {run.dir: [[name, taken[run.dir][name]] for name, _ in known[run.dir]] for run in runs}


def _files(run: Run) -> list[tuple[str, Path]]:
    """Captions and files of a run's pictures, in the order of training."""
    folder = run.dir / "samples"
    found: list[tuple[str, Path]] = []
    try:
        names = sorted((entry.name for entry in os.scandir(folder)), key=natural)
    except OSError:
        return []
    for name in names:
        if step := re.fullmatch(r"step_(\d{1,12})\.png", name):
            found.append((f"step {int(step[1]):,}", folder / name))
    found += [("from noise to sample", folder / "trajectory.png")] if "trajectory.png" in names else []
    found += [("at the end", run.samples)] if run.samples else []
    return [(caption, path) for caption, path in found if _inside(path, run.dir)]


def _inside(path: Path, directory: Path) -> bool:
    """Whether a file is of the directory: the report shows it to others."""
    try:
        return path.is_file() and path.resolve().is_relative_to(directory.resolve())
    except OSError:
        return False


def png(path: Path | None, run: Run, most: int) -> bytes:
    """A picture of the run's own; empty where it is none, lies elsewhere or is larger than `most` bytes."""
    try:
        if path is None or not _inside(path, run.dir) or path.stat().st_size > most:
            return b""
        data = path.read_bytes()
    except OSError:
        return b""
    return data if data.startswith(PNG) else b""


def _provenance(run: Run) -> Iterable[tuple[str, str]]:
    record = load(run.dir / "provenance.json")
    record = record if isinstance(record, dict) else {}
    yield "directory", run.dir.name
    if run.command:
        yield "command", _cut(" ".join(run.command))
    if run.overrides:
        yield "overrides", _cut(" ".join(f"{key}={value}" for key, value in run.overrides.items()))
    yield "commit", (run.commit or "not recorded") + (", with uncommitted changes" if run.dirty else "")
    for what, said in (("started", run.started), ("host", run.host), ("device", run.device)):
        if said:
            yield what, _cut(said)
    executions = record.get("executions")
    if isinstance(executions, list) and len(executions) > 1:
        yield "executions", count(len(executions), "start")
    packages = record.get("packages")
    if isinstance(packages, dict):
        known = [f"{name} {packages[name]}" for name in VERSIONS if name in packages]
        yield "packages", _cut(", ".join(known))
    if run.fingerprint:
        yield "data", f"fingerprint {run.fingerprint}" + (", changed on the way" if run.data_changed else "")
    for change in run.code_changes[:4]:
        yield "went on under other code", _cut(change)


def _log_end(directory: Path) -> str:
    """The last lines of train.log, without what only a terminal would understand."""
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
    kept = ["".join(c if c.isprintable() or c == "\t" else "�" for c in line) for line in lines]
    return "\n".join(kept[-LINES:]).strip()


# comparisons ------------------------------------------------------------------------------------------


def _section(
    comparison: Comparison, place: Mapping[Path, int], flat: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> dict[str, Any]:
    """Its cells, and each beside every other.

    `against`: by reference and cell, [text, mean, low, high, p, p as a number, verdict's number].
    """
    cells = [_cell(cell, place, flat, keys) for cell in (*comparison.cells, *comparison.pending)]
    if measures.deciding(comparison) or len(comparison.cells) < 2:
        return {"cells": cells, "against": []}
    verdicts: dict[str, int] = {}
    rows = []
    for reference in range(len(comparison.cells)):
        beside = [against(comparison, reference, i) for i in range(len(comparison.cells))]
        rows.append(
            [
                [
                    one.difference,
                    *(_finite(x) for x in (one.order.get("difference", math.nan), *_ends(one.ends))),
                    one.p,
                    _finite(one.order.get("p", math.nan)),
                    verdicts.setdefault(one.verdict, len(verdicts)),
                ]
                for one in beside
            ]
        )
    return {"cells": cells, "against": rows, "verdicts": list(verdicts)}


def _ends(found: Mapping[str, float]) -> tuple[float, float]:
    return found.get("low", math.nan), found.get("high", math.nan)


def _finite(x: float) -> float | None:
    return float(f"{x:.6g}") if math.isfinite(x) else None


def _cell(
    cell: Cell, place: Mapping[Path, int], flat: Sequence[Mapping[str, str]], keys: Sequence[str]
) -> dict[str, Any]:
    runs = [*cell.runs.values(), *cell.others]
    own = {}
    for key in keys:
        values = dict.fromkeys(v for run in runs if (v := flat[place[run.dir]].get(key)) is not None)
        if values:
            own[key] = _cut(", ".join(values))
    return {"label": cell.label, "runs": [place[run.dir] for run in runs], "own": own}


def _groups(
    comparisons: Sequence[Comparison],
    place: Mapping[Path, int],
    flat: Sequence[Mapping[str, str]],
    keys: Sequence[str],
) -> dict[str, dict[str, list[Any]]]:
    """{key: {value: [number of runs, "2.093 ± 0.012 bits/dim, 3 seeds"]}}.

    The figure is the mean over the group's settings, taken within each seed, and its standard error over
    seeds; "" where seeds do not all have the same settings, or where the runs are of two comparisons.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    counted = [(k, c.unit, label, s, place[r.dir], r) for k, c in enumerate(comparisons)
               for label, cell in ((cell.label, cell) for cell in c.cells)
               for s, r in cell.runs.items()]  # fmt: skip
    for key in keys:
        groups = dict.fromkeys(_cut(one.get(key, "none")) for one in flat)
        table: dict[str, list[Any]] = {}
        for group in groups:
            members = [e for e in counted if _cut(flat[e[4]].get(key, "none")) == group]
            several = len({(e[0], e[1]) for e in members}) > 1
            size = sum(_cut(one.get(key, "none")) == group for one in flat)
            table[group] = [size, "" if several else _mean_of(members)]
        found[key] = table
    return found


def _mean_of(members: Sequence[tuple[int, str, str, int | None, int, Run]]) -> str:
    by_seed: dict[int | None, dict[str, float]] = {}
    for _, _, label, seed, _, run in members:
        by_seed.setdefault(seed, {})[label] = run.bound
    if not by_seed or len({frozenset(cells) for cells in by_seed.values()}) > 1:
        return ""
    means = [math.fsum(cells.values()) / len(cells) for cells in by_seed.values()]
    return f"{plus_minus(spread(means))} {members[0][1]}, {count(len(means), 'seed')}"
