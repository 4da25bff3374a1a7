"""Renew a report as its runs progress."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from triptych.run.read import STALE, find_runs

FILES = ("config.yaml", "metrics.csv", "summary.json")  # of a run: what a report is made of
SHARE = 0.1  # of the time at most, for drawing


def watch_runs(dirs: Sequence[Path], write: Callable[[], object], every: float = 2.0) -> None:
    """Call ``write`` now and whenever a run's files have changed, until Ctrl-C.

    ``every``: seconds between two looks; more where drawing takes long.
    """
    seen, pause = None, every
    with suppress(KeyboardInterrupt):
        while True:
            if (
                now := _states(dirs)
            ) != seen:  # before drawing: what changes meanwhile is drawn the next time
                began = time.monotonic()
                try:
                    write()
                except Exception as error:  # the page that is there stays
                    if seen is None:
                        raise
                    why = " ".join(str(error).split()) or type(error).__name__
                    print(f"the report could not be renewed: {why}", file=sys.stderr, flush=True)
                seen, pause = now, max(every, (time.monotonic() - began) * (1 / SHARE - 1))
            time.sleep(pause)


def _states(dirs: Sequence[Path]) -> list[tuple[Any, ...]]:
    """Return size and time of each file of the report, and which runs are alive."""
    states: list[tuple[Any, ...]] = [_state(root / "sweep.json") for root in dirs]
    for run in (run for root in dirs for run in find_runs(root)):
        states += [_state(run / name) for name in FILES]
        alive = _state(run / "progress.json")
        states.append((run, bool(alive[1:]) and time.time() - alive[1] / 1e9 < STALE))
    return states


def _state(path: Path) -> tuple[Any, ...]:
    try:
        status = path.stat()
    except OSError:
        return (path,)
    return path, status.st_mtime_ns, status.st_size
