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


def watch_runs(dirs: Sequence[Path], write: Callable[[], object], every: float = 2.0) -> None:
    """Call ``write`` now and whenever a run's files have changed, until Ctrl-C.

    ``every``: seconds between two looks; more where drawing takes over a tenth of the time.
    """
    seen, pause = None, every
    with suppress(KeyboardInterrupt):
        while True:
            now = _states(dirs)  # before drawing: what changes meanwhile is drawn the next time
            if now != seen:
                began = time.monotonic()
                try:
                    write()
                except Exception as error:  # the page that is there stays
                    if seen is None:
                        raise
                    why = " ".join(str(error).split()) or type(error).__name__
                    print(f"the report could not be renewed: {why}", file=sys.stderr, flush=True)
                seen, pause = now, max(every, 9 * (time.monotonic() - began))
            time.sleep(pause)


def _states(dirs: Sequence[Path]) -> list[Any]:
    """Return time and size of each file of the report, and which runs are alive."""
    runs = [run for root in dirs for run in find_runs(root)]
    files = [*(root / "sweep.json" for root in dirs), *(run / name for run in runs for name in FILES)]
    alive = [
        (state := _state(run / "progress.json")) and time.time() - state[0] / 1e9 < STALE for run in runs
    ]
    return [*((file, _state(file)) for file in files), *alive]


def _state(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        return path.stat().st_mtime_ns, path.stat().st_size
    return None
