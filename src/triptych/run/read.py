"""A run directory in, a plain `Run` out: the one place that knows how `summary.json` is spelt for readers.

Reading never raises on what a directory holds. A summary that cannot be understood makes the run
"unreadable", with the reason in `error`, so that one bad file does not hide fourteen good runs.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from triptych.errors import UserError
from triptych.files import check_directory, file_digest, read_json, read_json_or_none, read_rows
from triptych.run.plain import line, load_config, natural, number, parse_overrides, whole
from triptych.run.processes import lives, pid_of
from triptych.run.read_items import load_items, read_items
from triptych.run.read_measures import NAME, Measured, read_measures
from triptych.run.read_schedule import ScheduleCurve, read_schedule, read_variance
from triptych.run.summary import ENDED, UNITS, Summary

Status = Literal["finished", "failed", "diverged", "running", "interrupted", "unreadable"]

PARTS = ("prior", "reconstruction", "diffusion")
ASIDE = re.compile(r"\.old-[0-9a-f]+$")  # the name under which an earlier run was kept when it started over
METRICS = 32  # columns of a table: of a stranger's file there could be any number
COLUMNS = 1000  # of metrics.csv
STALE = 300.0  # seconds without a sign of life after which a run without a summary counts as interrupted


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` items with its standard error, in the unit of its key.

    `draw_stderr` is the part of that error which is due to the draws of times and noise; NaN where not
    recorded.
    """

    mean: float
    stderr: float
    n: int
    draw_stderr: float = math.nan


@dataclass(frozen=True)
class Curve:
    """Values at noise levels `gamma` (minus log-SNR); `stderr` is NaN where it was not recorded."""

    gamma: tuple[float, ...]
    value: tuple[float, ...]
    stderr: tuple[float, ...]


@dataclass(frozen=True)
class Progress:
    """Where an unfinished run stands: `step` of `max_steps` in `stage`, at unix time `updated`."""

    stage: str
    step: int
    max_steps: int
    updated: float


@dataclass(frozen=True)
class Run:
    """One run directory as plain data. Fields that the directory does not tell are empty, None or NaN."""

    dir: Path
    status: Status
    sweep: str = ""
    name: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    test: Mapping[str, Estimate] = field(default_factory=dict)
    val: Mapping[str, Estimate] = field(default_factory=dict)
    train: Mapping[str, Estimate] = field(default_factory=dict)
    noise_levels: Curve | None = None
    weighting: Curve | None = None
    schedule: ScheduleCurve | None = None
    variance: float = math.nan
    tweedie: Curve | None = None
    posterior: Curve | None = None
    measured: Measured | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)  # of the user's own: which is better
    samples: Path | None = None
    parameters: int | None = None
    steps: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)  # memory in bytes, evaluations a sample
    gradient: Mapping[str, float] = field(default_factory=dict)  # norms of its steps, and the share clipped
    device: str = ""
    world_size: int | None = None
    weights: str = ""
    error: str = ""
    progress: Progress | None = None
    host: str = ""
    commit: str = ""
    dirty: bool = False
    command: tuple[str, ...] = ()
    started: str = ""
    config: Mapping[str, str] = field(default_factory=dict)  # resolved, by dotted keys
    fingerprint: str = ""  # of its data and test set
    split: str = ""
    data_changed: bool = False  # between two of its executions
    sources: str = ""  # digest of the code that it ended with
    code_changes: tuple[str, ...] = ()  # what changed between two of its executions

    def __str__(self) -> str:
        """Name and state, settings, the result, what it took, and where it lies: five lines."""
        settings = ", ".join(f"{key}={value}" for key, value in self.overrides.items() if key != "name")
        took = [f"{self.steps} steps"] if self.steps else []
        took += [f"{self.parameters} parameters"] if self.parameters else []
        took += [f"{part} {seconds:.0f} s" for part, seconds in self.seconds.items()]
        lines = [
            f"{self.name or self.dir.name}: {self.status}{f' ({self.error[:200]})' if self.error else ''}",
            f"settings: {settings[:200] or 'the defaults'}",
            f"result: {self._result()}",
            f"took: {', '.join([*took, *filter(None, [self.device])]) or 'not recorded'}",
            f"directory: {self.dir}",
        ]
        return "\n".join(" ".join(one.split()) for one in lines)

    def _result(self) -> str:
        figures = self.test or self.val
        known = [(key, label) for key, label in UNITS.items() if key in figures]
        known += [("accuracy", "accuracy")] * ("accuracy" in figures)
        split = "test" if self.test else "validation"
        for key, label in known[:1]:
            found = figures[key]
            return f"{found.mean:.4f} ± {found.stderr:.4f} {label} on {found.n} {split} items"
        return "none"

    @property
    def measure(self) -> str | None:
        """The key of the test bound, "bpd" or "nats_per_dim"; None where the run reports neither."""
        return next((key for key in UNITS if key in self.test), None)

    @property
    def bound(self) -> float:
        """The test bound in its own unit (per dimension); NaN where there is none."""
        return self.test[self.measure].mean if self.measure else math.nan

    def history(self, column: str) -> tuple[list[int], list[float]]:
        """Steps and values of one column of `metrics.csv`, finite cells only; empty where there are none."""
        return self.histories((column,)).get(column, ([], []))

    def histories(self, columns: Sequence[str] | None = None) -> dict[str, tuple[list[int], list[float]]]:
        """Steps and values of several columns, in one reading; None: of all that have any."""
        found: dict[str, tuple[list[int], list[float]]] = {}
        rows = read_rows(self.dir / "metrics.csv")
        header = next(rows, [])
        if "step" not in header:
            return {}
        at_step = header.index("step")
        wanted = [
            (i, name)
            for i, name in enumerate(header[:COLUMNS])
            if name != "step" and (columns is None or name in columns)
        ]
        for row in rows:
            # the last row may be half written while the run goes on
            if len(row) != len(header) or not math.isfinite(step := number(row[at_step])):
                continue
            for i, name in wanted:
                if row[i] and math.isfinite(value := number(row[i])):
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(int(step))
                    values.append(value)
        return found

    def columns(self) -> set[str]:
        """The names of the columns of `metrics.csv`; empty where there is none."""
        return {*next(read_rows(self.dir / "metrics.csv"), [])}


def find_runs(root: Path) -> list[Path]:
    """Every directory at or beneath `root` that holds config.yaml or summary.json, in natural order.

    Does not look inside runs, hidden directories, links, or what `force=true` kept aside.
    """
    found = []
    for here, folders, files in os.walk(root):
        if "config.yaml" in files or "summary.json" in files:
            found.append(Path(here))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".") and not ASIDE.search(name)]
    return sorted(found, key=lambda path: natural(str(path)))


def is_run(directory: Path) -> bool:
    """Whether what lies there is a run's, as far as can be told: other programs have such files too."""
    summary = read_json_or_none(directory / "summary.json")
    said = isinstance(summary, dict) and summary.get("status") in ENDED
    if said or (directory / "provenance.json").is_file():
        return True
    return {"data._target_", "model._target_"} <= {*load_config(directory / "config.yaml")}


def read_runs(root: Path, now: float | None = None) -> list[Run]:
    """All runs beneath `root`, each with the sweep (`root`'s name) that it belongs to."""
    root = Path(root)
    return [read_run(path, sweep=root.resolve().name, now=now) for path in find_runs(root)]


def read_run(directory: Path, sweep: str = "", now: float | None = None) -> Run:
    """One run directory as a `Run`. `now` is the unix time against which a silent run is judged."""
    directory = Path(directory)
    try:
        check_directory(directory)
    except UserError as error:
        return Run(directory, "unreadable", sweep, error=line(error))
    provenance = read_json_or_none(directory / "provenance.json")
    known = _provenance(provenance if isinstance(provenance, dict) else {})
    known |= {"dir": directory, "sweep": sweep, "config": load_config(directory / "config.yaml")}
    path = directory / "summary.json"
    if not path.exists():
        return _unfinished(known, directory, time.time() if now is None else now)
    try:
        summary = Summary.read(read_json(path))
        run = Run(**(known | _summary(summary, directory)))
        _check_files(run, summary.digests or {})
        return run
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        return Run(**known, status="unreadable", error=f"summary.json: {line(error) or type(error).__name__}")


def _check_files(run: Run, digests: dict[str, str]) -> None:
    """Check that what lies beside a result is of the same run; a file that is gone is only missing.

    Raises:
        ValueError: it is not.
    """
    for name, value in digests.items():
        if file_digest(run.dir / name) not in (value, None):
            raise ValueError(f"{name}: damaged, or of another run")
    items = load_items(run.dir)
    if items is not None and run.measure and math.isfinite(run.bound) and not read_items(run.dir, run.bound):
        mean = items.total.mean()
        raise ValueError(f"test.{run.measure}.mean={run.bound:g}: the mean of items.npz is {mean:g}")


def _summary(said: Summary, directory: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {"status": said.status, "error": line(said.error or "")}
    fields |= {split: dict(_estimates(getattr(said, split), split)) for split in ("test", "val", "train")}
    fields |= {key: str(getattr(said, key)) for key in ("name", "device", "weights") if getattr(said, key)}
    for key in ("parameters", "steps", "world_size"):
        fields[key] = whole(getattr(said, key))
    fields["seconds"] = {str(k): number(v) for k, v in (said.seconds or {}).items()}
    fields["cost"] = {str(k): number(v) for k, v in (said.cost or {}).items()}
    fields["noise_levels"] = _curve(said.noise_levels, "epsilon_mse")
    fields["weighting"] = _curve(said.weighting, "effective")
    fields["schedule"] = read_schedule(said.schedule)
    fields["variance"] = read_variance(said.estimator)
    fields["tweedie"] = _curve(said.tweedie, "excess")
    fields["posterior"] = _curve(said.tweedie, "spread")
    fields["measured"] = read_measures(said)
    fields |= _data(said.data)
    fields["gradient"] = _gradient(said.gradient)
    fields["baselines"] = _baselines(said.baselines)
    fields["metrics"] = _metrics(said.metrics)
    if isinstance(said.samples, str):
        file = directory / said.samples
        if file.resolve().is_relative_to(directory.resolve()):  # the report shows it to others
            fields["samples"] = file
    # what the run says of itself wins over what was recorded at its start
    return fields | _identity(said.record())


def _gradient(record: Any) -> Mapping[str, float]:
    """{"p10", "median", "p90", "max", "clipped"} as far as recorded; clipped is NaN where nothing was."""
    if not isinstance(record, dict) or not isinstance(record.get("norm"), dict):
        return {}
    found = {str(name): number(value) for name, value in record["norm"].items()}
    return found | {"clipped": number(record.get("clipped"))}


def _provenance(record: Mapping[str, Any]) -> dict[str, Any]:
    git = record.get("git") if isinstance(record.get("git"), dict) else {}
    assert isinstance(git, dict)
    command, executions = record.get("command"), record.get("executions")
    last = executions[-1] if isinstance(executions, list) and executions else {}
    last = last if isinstance(last, dict) else {}
    try:
        identity = _identity(record)
    except (ValueError, TypeError, AttributeError):
        identity = {}
    everywhere = [e for e in executions if isinstance(e, dict)] if isinstance(executions, list) else []
    identity |= _data(record.get("data"))
    return identity | {
        "sources": str(last.get("sources") or ""),
        "code_changes": tuple(line(e["changed"]) for e in everywhere if e.get("changed")),
        "host": str(last.get("host") or ""),
        "device": str(last.get("device") or ""),
        "commit": str(git.get("commit") or ""),
        "dirty": bool(git.get("dirty")),
        "command": tuple(map(str, command)) if isinstance(command, list) else (),
        "started": str(record.get("started") or ""),
    }


def _data(data: Any) -> dict[str, Any]:
    """Fingerprint and split of the data, only as far as a record has them."""
    if not isinstance(data, dict) or not data.get("fingerprint"):
        return {}
    found = {key: str(data.get(key) or "") for key in ("fingerprint", "split")}
    return found | {"data_changed": bool(data.get("changed"))}


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides, choices and seed, only as far as the record has them."""
    found: dict[str, Any] = {}
    if record.get("overrides") is not None:
        found["overrides"] = parse_overrides(record["overrides"])
    if record.get("choices") is not None:
        found["choices"] = {str(key): str(value) for key, value in record["choices"].items()}
    seed = record.get("seed", found.get("overrides", {}).get("seed"))
    if whole(seed) is not None:
        found["seed"] = whole(seed)
    return found


def _unfinished(known: dict[str, Any], directory: Path, now: float) -> Run:
    record = read_json_or_none(directory / "progress.json")
    progress = None
    try:
        alive = (directory / "config.yaml").stat().st_mtime
    except OSError:
        alive = 0.0
    if isinstance(record, dict):
        step, most = whole(record.get("step")) or 0, whole(record.get("max_steps")) or 0
        updated = number(record.get("updated"))
        progress = Progress(str(record.get("stage") or ""), step, most, updated)
        alive = updated if math.isfinite(updated) else alive
    running = now - alive < STALE and not _left(directory)
    return Run(**known, status="running" if running else "interrupted", progress=progress)


def _left(directory: Path) -> bool:
    """Whether who was last at work there has said so, or was a process of this machine that has ended."""
    try:
        with open(directory / ".lock", encoding="utf-8", errors="replace") as file:
            who = file.read(1000).strip()
    except OSError:
        return False
    pid = pid_of(who)
    return not who or pid is not None and not lives(pid)


def _estimates(metrics: Any, split: str) -> Iterator[tuple[str, Estimate]]:
    """The entries that are estimates; other extra keys are ignored, a broken estimate raises ValueError."""
    for key, entry in (metrics or {}).items():
        if isinstance(entry, dict) and "mean" in entry:
            if entry["mean"] is None:
                entry = entry | {"mean": math.nan}  # not finite, for which JSON has no word
            if isinstance(entry["mean"], bool) or not isinstance(entry["mean"], int | float):
                raise ValueError(f"{split}.{key}.mean is {entry['mean']!r}, not a number")
            n = whole(entry.get("n"))
            draws = number(entry.get("draw_stderr"))
            yield str(key), Estimate(float(entry["mean"]), number(entry.get("stderr")), n or 0, draws)
        elif key in UNITS:
            raise ValueError(f"{split}.{key} has no mean")


def _baselines(record: Any) -> dict[str, float]:
    """Bits/dim of simpler models by name; empty where absent or malformed."""
    found = record.items() if isinstance(record, dict) else ()
    means = {str(name): number(e.get("mean")) for name, e in found if isinstance(e, dict)}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _metrics(record: Any) -> dict[str, str]:
    """{name: "higher", "lower" or ""}; what is no name of a metric is left out."""
    found = record.items() if isinstance(record, dict) else ()
    named = [(n, b if b in ("higher", "lower") else "") for n, b in found if NAME.fullmatch(n)]
    return dict(named[:METRICS])


def _curve(record: Any, key: str) -> Curve | None:
    """A curve over gamma; None where absent or malformed: a panel less, the run itself still counts."""
    if not isinstance(record, dict) or not all(isinstance(record.get(k), list) for k in ("gamma", key)):
        return None
    gamma, value = (tuple(map(number, record[k])) for k in ("gamma", key))
    errors = record.get("stderr")
    stderr = tuple(map(number, errors)) if isinstance(errors, list) else (math.nan,) * len(gamma)
    if not gamma or not len(gamma) == len(value) == len(stderr) or not all(map(math.isfinite, gamma)):
        return None
    return Curve(gamma, value, stderr)
