"""`results.csv`: one row per run with everything a spreadsheet or a script could want."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from triptych.report.axes import settings
from triptych.runs.read import Run


def results_csv(runs: Sequence[Run]) -> str:
    """One row per run; figures in full precision, empty where a run has none.

    Columns: directory, sweep, status, seed, each override and choice, each figure of test, val and train as
    `test/bpd`, `test/bpd_stderr`, `test/bpd_n`, each measure of samples as `samples/recall@guidance.scale=2`,
    then seconds, parameters and origin.
    """
    table = [_row(run) for run in runs]
    first = dict.fromkeys(key for row in table for key in row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(first) or ["directory"], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def _row(run: Run) -> dict[str, object]:
    row: dict[str, object] = {
        "directory": str(run.dir),
        "sweep": run.sweep,
        "status": run.status,
        "seed": run.seed,
    }
    row |= {"data": run.choices.get("data", run.overrides.get("data", ""))} | settings(run)
    for split in ("test", "val", "train"):
        for key, estimate in getattr(run, split).items():
            row[f"{split}/{key}"] = repr(estimate.mean)
            row[f"{split}/{key}_stderr"] = repr(estimate.stderr)
            row[f"{split}/{key}_n"] = estimate.n
    if run.measured:
        for at, found in zip(run.measured.values, run.measured.rows, strict=True):
            where = f"@{run.measured.key}={at:g}" if run.measured.key else ""
            row |= {f"samples/{name}{where}": repr(mean) for name, mean in found.items()}
    row |= {f"seconds/{key}": value for key, value in run.seconds.items()}
    row |= {"steps": run.steps, "parameters": run.parameters, "weights": run.weights, "device": run.device}
    row |= {
        "host": run.host,
        "commit": run.commit,
        "dirty": run.dirty,
        "started": run.started,
        "error": run.error,
    }
    return row
