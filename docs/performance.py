"""Draw docs/performance.md's picture of benchmarks/results: python docs/performance.py [PNG]."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
NAMES = {"parameters": "parameters", "side": "pixels", "batch": "items a batch"}
NAMES |= {"test items": "test items", "runs": "runs in a report"}


def main(path: str | Path = HERE / "images" / "performance.png") -> None:
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
