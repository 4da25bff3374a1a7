"""metrics.csv by itself: what was logged, once a step, however it is written."""

import csv
import random

import pytest

from triptych.errors import StorageError
from triptych.run import metrics
from triptych.run.metrics import MetricsCsv


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def table(path, every=0.0, step=0):
    made = MetricsCsv(path, every=every)
    made.keep_until(step)
    return made


def written(path) -> dict[int, dict[str, float]]:
    """{step: figures} of the file, without its clock."""
    with open(path, newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    steps = [int(row.pop("step")) for row in rows]
    assert steps == sorted(set(steps)), "each step stands once, in order"
    return {
        s: {k: float(v) for k, v in row.items() if k != "time"} for s, row in zip(steps, rows, strict=True)
    }


@pytest.mark.parametrize("seed", range(2))
def test_any_order_of_figures_and_writes_gives_one_table(path, seed):
    """Late steps, late columns, writes that fail, a resumed run: the rows are the same."""
    draw, wanted = random.Random(seed), {}
    log = table(path)
    for i in range(150):
        step = max(0, i // 2 - (draw.randrange(60) if draw.random() < 0.05 else draw.randrange(3)))
        name = draw.choice("ab") if draw.random() < 0.97 else f"rare{i}"
        wanted.setdefault(step, {})[name] = float(i)
        log.log_metrics({name: float(i)}, step)
        if draw.random() < 0.05:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(metrics, "write_atomic", full_disk)
                with pytest.raises(StorageError):
                    log.flush()
        if draw.random() < 0.1:
            log.flush()
        if draw.random() < 0.03:  # another process goes on
            log.flush()
            at = draw.choice([max(wanted), draw.randrange(max(wanted) + 1)])
            log, wanted = table(path, step=at), {s: row for s, row in wanted.items() if s <= at}
    log.finalize("success")
    assert written(path) == wanted


def full_disk(*_):
    raise StorageError("full")


def test_a_table_that_was_removed_goes_on(path):
    log = table(path)
    for step in range(30):
        log.log_metrics({"loss": 1.0}, step)
        log.flush()
    path.unlink()
    log.log_metrics({"loss": 2.0}, 30)
    log.finalize("success")
    assert written(path) == {step: {"loss": 1.0 + step // 30} for step in range(31)}
