"""Record figures of all runs of a sweep, by setting and seed, and print their means.

python docs/record_figures.py RECORD SWEEP FIGURE ...

FIGURE is a place in summary.json. For example: benchmarks/results/vae.json logs/sweeps/ladder
test.bpd.mean test.bpd_kl_1.mean
"""

import json
import sys
from pathlib import Path

from triptych.run.read import Run
from triptych.study.statistics import spread
from triptych.study.study import read_study


def main(record: str, sweep: str, *places: str) -> None:
    """Write {setting: {figure: [one of each seed]}} of the sweep's only comparison."""
    (comparison,) = read_study([Path(sweep)]).comparisons
    settings = {}
    for cell in comparison.cells:
        figures = {place: [figure(run, place) for run in cell.runs.values()] for place in places}
        for place, values in figures.items():
            mean = spread(values)
            print(f"{cell.label} {place}: {mean.mean:.4f} ± {mean.stderr:.4f}")
        settings[cell.label] = figures
    seeds = [*comparison.cells[0].runs]
    text = json.dumps({"seeds": seeds, "settings": settings}, indent=1)
    Path(record).write_text(text + "\n")


def figure(run: Run, place: str) -> float:
    """Return the figure at a place in summary.json: "test.bpd.mean"."""
    node = json.loads((run.dir / "summary.json").read_text())
    for key in place.split("."):
        node = node[key]
    return node


if __name__ == "__main__":
    main(*sys.argv[1:])
