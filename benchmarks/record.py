"""Shared by the benchmarks: timing in turn, and figures as JSON beside the last recorded ones."""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
# A ratio this many times the recorded one is marked as slower; repeats differ by a tenth.
SLOWER = 1.15


def interleave(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return CPU seconds of each run, taken in turn (A B C A B C ...) after one warm-up round.

    A run in a separate process returns its own seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name, run in runs.items():
            start = time.process_time()
            own = run()
            if repeat >= 0:
                seconds[name].append(own if isinstance(own, float) else time.process_time() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Return the median over rounds of our seconds divided by theirs."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def record(name: str, ratios: Mapping[str, float], figures: Any, enough: float = 0.0) -> None:
    """Write ``results/NAME.json`` and print the ratios beside the recorded ones; lower is better.

    A ratio up to 1.15 ``enough`` is never marked as slower.
    """
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text())["ratios"] if file.exists() else {}
    for key, value in ratios.items():
        was = before.get(key)
        slower = was is not None and value > SLOWER * max(was, enough)
        mark = "" if was is None else f" (recorded {was:.3f}{', SLOWER' * slower})"
        print(f"{key}: {value:.3f}{mark}")
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    RESULTS.mkdir(exist_ok=True)
    rounded = {key: round(value, 4) for key, value in ratios.items()}
    file.write_text(json.dumps(machine | {"ratios": rounded, "figures": figures}, indent=1) + "\n")
