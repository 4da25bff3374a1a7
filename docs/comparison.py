"""Record the comparison of one or several sweeps, and print it as rows of a page's table.

python docs/comparison.py RECORD SWEEP ...

For example: benchmarks/results/objectives.json logs/sweeps/objectives
"""

import json
import statistics
import sys
from pathlib import Path

from triptych.study.comparison import Comparison
from triptych.study.study import read_study


def main(record: str, *sweeps: str) -> None:
    """Write the record of the first comparison, and print a row a setting, lowest bound first."""
    comparison, *_ = read_study([Path(sweep) for sweep in sweeps]).comparisons
    settings = compared_settings(comparison)
    text = json.dumps({"seeds": len(comparison.cells[0].runs), "settings": settings}, indent=1)
    Path(record).write_text(text + "\n")
    for name, figures in settings.items():
        print(" | ".join(["", name, *table_cells(figures), ""]).strip())


def compared_settings(comparison: Comparison) -> dict[str, dict[str, list[float]]]:
    """Return each setting's figures in the order of their bounds.

    ``bound``: mean and standard error over seeds; ``train``: the mean bound of training items;
    ``minus_lowest``: the paired difference to the lowest, its interval and corrected p.
    """
    table = comparison.question
    lowest, *others = table.ranked_labels(0)
    cells = {cell.label: cell for cell in comparison.cells}
    settings = {}
    for label in [lowest, *others]:
        bound = cells[label].bound
        trained = [run for run in cells[label].runs.values() if run.train]
        train = [run.train[cells[label].measure].mean for run in trained]
        figures = {"bound": [bound.mean, bound.stderr]}
        if train:
            figures["train"] = [statistics.mean(train)]
        if label != lowest:
            test = comparison.metric_test(table.metric.name, 0, lowest, label)
            figures["minus_lowest"] = [test.pair.mean, *test.interval, test.p]
        settings[label] = figures
    return settings


def table_cells(figures: dict[str, list[float]]) -> list[str]:
    """Return the cells of a page's table."""
    cells = ["{:.3f} ± {:.3f}".format(*figures["bound"])]
    cells += [f"{mean:.3f}" for mean in figures.get("train", [])]
    if "minus_lowest" not in figures:
        return [*cells, "", ""]
    difference, low, high, p = figures["minus_lowest"]
    interval = f"{difference:+.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
    return [*cells, interval, f"{p:.2g}"]


if __name__ == "__main__":
    main(*sys.argv[1:])
