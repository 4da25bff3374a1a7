"""Draw docs/performance.md's pictures of benchmarks/results: python docs/performance.py."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
NAMES = {"parameters": "parameters", "side": "pixels", "batch": "items a batch"}
NAMES |= {"test items": "test items", "runs": "runs in a report"}


PARTS = ("draws", "data", "copies", "loss", "EMA", "clipping", "logging", "loop", "AdamW")
IMAGES = HERE / "images"


def main(
    path: str | Path = IMAGES / "performance.png", idle: str | Path = IMAGES / "idle.png"
) -> None:
    """Draw how cost grows, and what a step is beside its network."""
    draw_growth(path)
    draw_idle(idle)


def draw_idle(path: str | Path) -> None:
    """Draw the main thread's milliseconds by part, one bar a size."""
    figures = json.loads((RESULTS / "idle.json").read_text())["figures"]
    rows = {name: row for name, row in figures.items() if not name.endswith("processes")}
    figure = Figure(figsize=(10, 2.6), layout="constrained", dpi=150)
    axes = figure.subplots()
    left = [0.0] * len(rows)
    for place, part in enumerate(PARTS):
        widths = [row["milliseconds"][part] for row in rows.values()]
        axes.barh([*rows], widths, left=left, color=f"C{place}", label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, (end, row) in enumerate(zip(left, rows.values(), strict=True)):
        if row["expected step"] > 1:
            step = f" step of an H100, expected: {row['expected step']:.0f} ms"
            axes.text(end, place, step, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * max(left))
    axes.set_xlabel("milliseconds of the main thread a step, on a CPU", fontsize=8)
    axes.tick_params(labelsize=8)
    figure.legend(fontsize=7, loc="outside center right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def draw_growth(path: str | Path) -> None:
    """Draw how cost grows, each kind beside a line of slope 1."""
    record = json.loads((RESULTS / "growth.json").read_text())
    figure = Figure(figsize=(10, 2.4), layout="constrained", dpi=150)
    for axes, (kind, points) in zip(
        figure.subplots(1, len(NAMES)), record["figures"].items(), strict=True
    ):
        power = 2 if kind == "side" else 1
        n, seconds = [p[0] ** power for p in points], [p[1] for p in points]
        axes.loglog(n, seconds, "o-", color="#3465a4", markersize=4)
        axes.loglog(n, [seconds[-1] * a / n[-1] for a in n], ":", color="#888888")
        axes.set_title(NAMES[kind], fontsize=9)
        exponent = record["ratios"][f"exponent of {kind}"] / power
        axes.text(0.05, 0.9, f"n^{exponent:.2f}", transform=axes.transAxes, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("CPU seconds", fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
