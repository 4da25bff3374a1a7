"""metrics.csv alone: each logged figure once per step, however the table is written."""

import csv
import random

import pytest

from triptych.errors import StorageError
from triptych.run import metrics
from triptych.run.metrics import OPEN_ROWS, MetricsCsv


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def table(path, every=0.0, step=0):
    made = MetricsCsv(path, float, every=every)
    made.truncate_after(step)
    return made


def written(path) -> dict[int, dict[str, float]]:
    """Return {step: figures} of the file, without its time column."""
    with open(path, newline="") as file:
        rows = [
            {k: float(v) for k, v in row.items() if v and k != "time"}
            for row in csv.DictReader(file)
        ]
    steps = [int(row.pop("step")) for row in rows]
    assert steps == sorted(set(steps)), "each step stands once, in order"
    return dict(zip(steps, rows, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_metrics_csv_is_independent_of_order_of_writes(path, seed):
    """Late steps, late columns, failing writes and a resumed run all give the same rows."""
    draw, wanted = random.Random(seed), {}
    log = table(path)
    for i in range(150):
        step = max(0, i // 2 - (draw.randrange(60) if draw.random() < 0.05 else draw.randrange(3)))
        name = draw.choice("ab") if draw.random() < 0.97 else f"rare{i}"
        wanted.setdefault(step, {})[name] = float(i)
        log.log_metrics({name: float(i)}, step)
        if draw.random() < 0.05:
            with pytest.MonkeyPatch.context() as patch:
                for write in ("atomic", "replace_file_end"):
                    patch.setattr(metrics, write, full_disk)
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


def test_metrics_csv_memory_and_writes_stay_bounded(path, monkeypatch):
    """After a million steps a write costs as much as the first: only the last rows are written."""
    log = table(path)
    log.log_metrics({"loss": 1.0}, 0)
    log.flush()
    sizes, write = [], metrics.replace_file_end
    monkeypatch.setattr(metrics, "atomic", None)
    monkeypatch.setattr(
        metrics, "replace_file_end", lambda *a: (sizes.append(len(a[-1])), write(*a))
    )
    for step in range(1, 100):
        log.log_metrics({"loss": 1.0}, step)
        before = path.read_bytes()
        log.flush()
        assert path.read_bytes().startswith(before)  # a kill at any moment leaves what was there
    assert len(log.rows) == OPEN_ROWS
    assert max(sizes) < 2 * min(sizes[OPEN_ROWS:])
    assert len(written(path)) == 100


def test_removed_metrics_csv_is_created_again(path):
    log = table(path)
    for step in range(3 * OPEN_ROWS):
        log.log_metrics({"loss": 1.0}, step)
        log.flush()
    path.unlink()
    log.log_metrics({"loss": 2.0}, 3 * OPEN_ROWS)
    log.finalize("success")
    assert written(path)[3 * OPEN_ROWS] == {"loss": 2.0}
