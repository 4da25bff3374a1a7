"""Tables of a comparison: results and costs of each setting."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from triptych.config.metric import SAMPLE_METRICS
from triptych.run.parsing import PARTS, Estimate
from triptych.run.read import Run
from triptych.study.cells import METRIC, Cell, Comparison, MeasureTable, PairTest
from triptych.study.formatting import format_number, listed, p_value, plus_minus, quantity

VERDICT = ("verdict", "verdict")
BESIDE = {  # not the bound, and never in its place
    "iw": "importance-weighted",
    "ode": "by the ODE, its own items",
    "ode_bound": "bound of those items",
}


@dataclass(frozen=True)
class Entry:
    """One figure of a table: its text, the number by which to sort, its standard error or its interval."""

    text: str = ""
    value: float = math.nan
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def numbers(self) -> dict[str, float]:
        """{"v": value, "e": error, "low": low, "high": high}, as far as they are known."""
        if math.isnan(self.value):
            return {}
        ends = {"e": self.error, "low": self.low, "high": self.high}
        return {"v": self.value} | {name: end for name, end in ends.items() if math.isfinite(end)}


@dataclass(frozen=True)
class TableRow:
    """One setting's line of a table, its figures by column."""

    label: str
    entries: Mapping[str, Entry]
    seeds: str = ""
    verdict: str = ""
    best: bool = False

    def entry(self, key: str) -> Entry:
        """Return what stands in a column; "setting", "seeds" and "verdict" are columns too."""
        words = {"setting": self.label, "seeds": self.seeds, "verdict": self.verdict}
        return Entry(words[key]) if key in words else self.entries.get(key, Entry())


def entry(figure: Estimate, text: str | None = None) -> Entry:
    """Return the mean over seeds with its standard error."""
    return Entry(plus_minus(figure) if text is None else text, figure.mean, figure.stderr)


def table_columns(comparison: Comparison) -> list[tuple[str, str]]:
    """Return key and heading of the columns: the bound or the deciding measure, the verdict, the rest."""
    if table := comparison.deciding:  # their bound is one and the same
        heads = [f"{value:g}" for value in table.values] if table.key else [table.metric.label]
        return [*((f"{table.metric.name}@{i}", head) for i, head in enumerate(heads)), VERDICT]
    known = [("bound", f"test bound, {comparison.unit}")]
    if len(comparison.cells) > 1:
        known += [("difference", "paired difference to best [interval]"), ("p", "p (Holm)")]
    known += [VERDICT] if len(comparison.cells) + len(comparison.pending) > 1 else []
    for part in PARTS:
        figures = [cell.spread(part) for cell in comparison.cells]
        shown = {format_number(figure.mean) for figure in figures if figure.n}
        known += [(part, part)] if len(shown) > (len(figures) > 1) else []  # not one figure for all
    beside = {"gap": "gap to entropy"} | BESIDE
    known += [(k, head) for k, head in beside.items() if any(c.spread(k).n for c in comparison.cells)]
    known += [(f"{METRIC}{name}", head) for name, head in metrics(comparison)]
    return known


def metrics(comparison: Comparison) -> list[tuple[str, str]]:
    """Return name and heading of each user metric: "test psnr (higher is better)"."""
    better_of = {name: better for run in comparison.runs for name, better in run.metrics.items()}
    return [(n, f"test {n}" + (f" ({b} is better)" if b else "")) for n, b in better_of.items()]


def table_rows(comparison: Comparison) -> list[TableRow]:
    """Return the results table, best first; cells without a usable run come last and say why."""
    if comparison.deciding:
        done = _drawn(comparison, comparison.deciding)
    else:
        done = [_row(comparison, i, cell) for i, cell in enumerate(comparison.cells)]
    for cell in comparison.pending:
        statuses = {run.status for run in cell.others}
        why = statuses.pop() if statuses in ({"diverged"}, {"failed"}) else "no result yet"
        done.append(TableRow(cell.label, {}, _seeds(cell), why))
    return done


def _row(comparison: Comparison, i: int, cell: Cell) -> TableRow:
    entries = {"bound": entry(cell.bound)}
    for part in ("gap", *(f"{METRIC}{name}" for name, _ in metrics(comparison))):
        figure = cell.spread(part)
        fewer = f" ({quantity(figure.n, 'seed')})" if 0 < figure.n < len(cell.runs) else ""
        entries[part] = entry(figure, plus_minus(figure) + fewer)
    for part in (*PARTS, *BESIDE):
        figure = cell.spread(part)
        entries[part] = entry(figure, format_number(figure.mean))
    beside, verdict = against(comparison, 0, i)
    return TableRow(cell.label, entries | beside, _seeds(cell), verdict, best=i == 0)


def against(comparison: Comparison, reference: int, i: int) -> tuple[dict[str, Entry], str]:
    """Compare cell i with cell `reference`: paired difference with interval, corrected p; the verdict."""
    if len(comparison.cells) == 1:
        return {}, ""
    if i == reference:
        text = "reference" if i else "best"
        return {"difference": Entry(text, 0.0), "p": Entry()}, "" if i else "lowest mean"
    claim = comparison.claim(reference, i)
    low, high = claim.interval
    entries = {
        "difference": Entry(claim.text, claim.pair.mean, low=low, high=high),
        "p": Entry(p_value(claim.p), claim.p),
    }
    return entries, _row_verdict(comparison, claim, best=reference == 0)


def _row_verdict(comparison: Comparison, claim: PairTest, best: bool) -> str:
    """Return a row's verdict: what the corrected test carries, else "not settled"."""
    if claim.pair.n < 2:
        several = any(len(cell.runs) > 1 for cell in comparison.cells)  # else it stands in the headline
        return "not paired" if not claim.pair.n else "one pair: not settled" if several else ""
    within = f"same within {comparison.rule.equal_within:g}" if claim.equal else ""
    worse = claim.pair.mean > 0
    if claim.holds:
        # better than the best is possible only where seeds differ: the pairs then contradict the means
        text = "worse" if worse else "better where paired" if best else "better"
        return f"{text}, {within}" if within else text
    return within or "not settled"


def table_title(comparison: Comparison) -> str:
    """Name what decides: "sliced Wasserstein distance by evaluations"; "" where the bound does."""
    table = comparison.deciding
    return "" if table is None else table.metric.label + (f" by {table.key}" if table.key else "")


def _drawn(comparison: Comparison, table: MeasureTable) -> list[TableRow]:
    """Return the rows of the deciding measure, best first by its last value, and where each is best."""
    cells = {cell.label: cell for cell in comparison.cells}
    best = [table.order(i)[0] for i in range(len(table.values))]
    rows = []
    for label in table.order(-1):
        entries = {f"{table.metric.name}@{i}": entry(one) for i, one in enumerate(table.spreads[label])}
        at = [f"{value:g}" for value, name in zip(table.values, best, strict=True) if name == label]
        verdict = "best mean" + (f" at {listed(at)}" if table.key else "") if at else ""
        rows.append(TableRow(label, entries, _seeds(cells[label]), verdict, bool(at)))
    return rows


def measure_rows(comparison: Comparison) -> tuple[list[tuple[str, str]], list[TableRow]]:
    """Return columns and rows of the measures of samples beside a bound that decides, at the last value.

    The user's own columns come first; rows are best first by the first column.
    """
    tables = [] if comparison.deciding else list(comparison.measures.values())
    tables.sort(key=lambda table: (table.metric.name in SAMPLE_METRICS, not table.metric.better))
    heads = []
    for table in tables:
        at = f" at {table.key} {table.values[-1]:g}" if table.key else ""
        better = f" ({table.metric.better})" if table.metric.better else ""
        heads.append((table.metric.name, f"{table.metric.label}{at}{better}"))
    order = dict.fromkeys([*(tables[0].order(-1) if tables else ()), *(c.label for c in comparison.cells)])
    rows = [
        TableRow(label, {t.metric.name: entry(t.spreads[label][-1]) for t in tables if label in t.cells})
        for label in order
    ]
    return heads, [row for row in rows if row.entries]


def _seeds(cell: Cell) -> str:
    others = (run for run in cell.others if not (run.status == "diverged" and run.seed in cell.runs))
    tally = Counter(map(_outcome, others))
    rest = ", ".join(f"{n} {outcome}" for outcome, n in tally.items())
    return f"{len(cell.runs)} ({rest})" if rest else str(len(cell.runs))


def _outcome(run: Run) -> str:
    if run.status != "finished":
        return run.status
    if not run.measure:
        return "without bound"
    return "copied" if math.isfinite(run.bound) else "not finite"
