"""Build the tables of a comparison: results and sample metrics of each setting."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from triptych.config.metric import SAMPLE_METRICS
from triptych.run.parsing import Estimate
from triptych.run.read import Run
from triptych.study.cells import METRIC, Cell, MeasureTable, PairTest
from triptych.study.comparison import Comparison
from triptych.study.formatting import (
    common_decimals,
    count_noun,
    format_number,
    p_value,
    plus_minus,
)


@dataclass(frozen=True)
class Column:
    """A column of a table with one row per setting.

    `short`: the heading in a terminal. `rank`: a narrow terminal omits columns with the lowest rank
    first; columns with rank 0 are always shown. `is_text`: whether it holds text, not numbers.
    """

    key: str
    heading: str
    short: str = ""
    rank: int = 0
    is_text: bool = False


SEEDS = Column("seeds", "seeds", is_text=True)
VERDICT = Column("verdict", "verdict", is_text=True)
DIFFERENCE = Column(
    "difference",
    "paired difference to best [95% together]",
    "to best [95% together]",
    rank=9,
)
P_VALUE = Column("p", "p (Holm)", rank=1)
TERMS = (
    Column("prior", "prior", rank=2),
    Column("reconstruction", "reconstruction", "recon.", rank=3),
    Column("diffusion", "diffusion", "diff.", rank=4),
)
GAP = Column("gap", "gap to entropy", rank=8)
# Other metrics of test items. They never replace the bound.
OTHER_ITEM_METRICS = (
    Column("iw", "importance-weighted", rank=5),
    Column("ode", "by the ODE, its own items", rank=6),
    Column("ode_bound", "bound of those items", rank=7),
)


@dataclass(frozen=True)
class Entry:
    """One entry of a table: its text, its value, and its standard error or interval."""

    text: str = ""
    value: float = math.nan
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan

    @property
    def numbers(self) -> dict[str, float]:
        """{"v": value, "e": error, "low": low, "high": high} without unknown numbers."""
        numbers = {"v": self.value, "e": self.error, "low": self.low, "high": self.high}
        return {name: number for name, number in numbers.items() if math.isfinite(number)}


@dataclass(frozen=True)
class TableRow:
    """One setting's row of a table; `entries`: {column key: entry}."""

    label: str
    entries: Mapping[str, Entry]
    seeds: str = ""
    verdict: str = ""
    best: bool = False

    def entry(self, key: str) -> Entry:
        """Return the entry of a column; "setting", "seeds" and "verdict" are columns, too."""
        words = {"setting": self.label, "seeds": self.seeds, "verdict": self.verdict}
        return Entry(words[key]) if key in words else self.entries.get(key, Entry())


def estimate_entries(figures: Sequence[Estimate]) -> list[Entry]:
    """Return a column's entries: means over seeds with standard errors, with equal decimals."""
    decimals = common_decimals(figure.stderr for figure in figures)
    return [Entry(plus_minus(figure, decimals), figure.mean, figure.stderr) for figure in figures]


def table_columns(comparison: Comparison) -> list[Column]:
    """Return the columns: the bound or deciding metric, the verdict, then other metrics."""
    columns = _measure_columns(comparison.question)
    if comparison.deciding:
        return [*columns, VERDICT, *_difference_columns(comparison.deciding, -1)]
    if len(comparison.cells) > 1:
        columns += [DIFFERENCE, P_VALUE]
    if len(comparison.all_cells) > 1:
        columns.append(VERDICT)
    columns += [column for column in TERMS if _differs(comparison, column)]
    others = [GAP, *OTHER_ITEM_METRICS, *metric_columns(comparison)]
    return columns + [column for column in others if _has_figures(comparison, column)]


def _measure_columns(table: MeasureTable) -> list[Column]:
    """Return a column for each value of a measure's swept key; one column if it has no key."""
    name = table.metric.name or "bound"
    if not table.key:
        return [Column(name, table.metric.label, table.metric.title)]
    last = len(table.values) - 1
    return [
        Column(f"{name}@{place}", f"{value:g}", rank=int(place < last))
        for place, value in enumerate(table.values)
    ]


def _difference_columns(table: MeasureTable, value_index: int) -> list[Column]:
    """Return the columns of difference and p, at a value of a metric's swept key."""
    if not table.key:
        return [DIFFERENCE, P_VALUE]
    value = f"{table.values[value_index]:g}"
    difference = replace(
        DIFFERENCE,
        heading=f"paired difference to best at {value} [95% together]",
        short=f"to best at {value}\n[95% together]",
    )
    return [difference, P_VALUE]


def _has_figures(comparison: Comparison, column: Column) -> bool:
    """Return whether a cell has a figure for a column."""
    return any(cell.values(column.key) for cell in comparison.cells)


def _differs(comparison: Comparison, column: Column) -> bool:
    """Return whether a term of the bound is known and differs between settings."""
    means = {format_number(cell.spread(column.key).mean) for cell in comparison.cells}
    return _has_figures(comparison, column) and (len(means) > 1 or len(comparison.cells) == 1)


def metric_columns(comparison: Comparison) -> list[Column]:
    """Return a column for each user-defined metric, as "test psnr (higher is better)"."""
    directions: dict[str, str] = {}
    for run in comparison.runs:
        directions |= run.metrics
    columns = []
    for name, direction in directions.items():
        better = f" ({direction} is better)" if direction else ""
        columns.append(Column(f"{METRIC}{name}", f"test {name}{better}"))
    return columns


def table_rows(comparison: Comparison) -> list[TableRow]:
    """Return the rows of the results table, best first.

    Cells without a usable run come last; their verdict is the reason.
    """
    cells = comparison.ranked
    columns = _figure_entries(comparison)
    ends = [comparison.pair_test(0, place).interval for place in range(1, len(cells))]
    decimals = common_decimals((high - low) / 2 for low, high in ends)
    rows = []
    for place, cell in enumerate(cells):
        entries = {key: column[place] for key, column in columns.items()}
        pair, verdict = difference_entries(comparison, 0, place, decimals)
        rows.append(
            TableRow(cell.label, entries | pair, _seeds_text(cell), verdict, best=place == 0)
        )
    for cell in comparison.all_cells[len(cells) :]:
        statuses = {run.status for run in cell.others}
        reason = "no result yet"
        if cell.runs:
            reason = "not measured"
        elif statuses in ({"diverged"}, {"failed"}):
            reason = statuses.pop()
        rows.append(TableRow(cell.label, {}, _seeds_text(cell), reason))
    return rows


def _figure_entries(comparison: Comparison) -> dict[str, list[Entry]]:
    """Return the entries of each column of figures, of equal decimals, for the ranked cells."""
    cells = comparison.ranked
    table = comparison.question
    columns = {}
    for place, column in enumerate(_measure_columns(table)):
        spreads = [table.spreads[cell.label][place] for cell in cells]
        columns[column.key] = estimate_entries(spreads)
    for column in table_columns(comparison):
        if not column.is_text:
            columns.setdefault(column.key, _column_entries(cells, column))
    return columns


def _column_entries(cells: Sequence[Cell], column: Column) -> list[Entry]:
    """Return a column's entries; a cell's number of seeds is added if some lack the value."""
    figures = [cell.spread(column.key) for cell in cells]
    if column in TERMS or column in OTHER_ITEM_METRICS:
        return [Entry(format_number(f.mean), f.mean, f.stderr) for f in figures]
    entries = estimate_entries(figures)
    for place, (cell, figure) in enumerate(zip(cells, figures, strict=True)):
        if 0 < figure.n < len(cell.runs):
            text = f"{entries[place].text} ({count_noun(figure.n, 'seed')})"
            entries[place] = replace(entries[place], text=text)
    return entries


def difference_entries(
    comparison: Comparison, reference_index: int, cell_index: int, decimals: int = 0
) -> tuple[dict[str, Entry], str]:
    """Return a cell's entries (its difference to a reference cell, corrected p), and its verdict.

    `reference_index`, `cell_index`: indices of cells. `decimals`: the minimum.
    """
    if len(comparison.cells) == 1:
        return {}, ""
    if cell_index == reference_index:
        lead = "lowest mean" if comparison.question.sign > 0 else "highest mean"
        text, verdict = ("reference", "") if cell_index else ("best", lead)
        return {"difference": Entry(text, 0.0), "p": Entry()}, verdict
    claim = comparison.pair_test(reference_index, cell_index)
    at_floor = comparison.are_at_floor(reference_index, cell_index)
    return _test_entries(claim, decimals), _row_verdict(comparison, claim, at_floor)


def _test_entries(claim: PairTest, decimals: int = 0) -> dict[str, Entry]:
    """Return the entries of a difference with its interval, and of its corrected p."""
    low, high = claim.interval
    difference = Entry(claim.to_text(decimals), claim.pair.mean, low=low, high=high)
    return {"difference": difference, "p": Entry(p_value(claim.p), claim.p)}


def _row_verdict(comparison: Comparison, claim: PairTest, at_floor: bool) -> str:
    """Return a row's verdict: what the corrected test shows, or why nothing is claimed.

    `at_floor`: whether both settings are as near as true data.
    """
    if claim.pair.n == 0:
        return "not paired"
    if comparison.one_seed:
        return ""  # the headline already says that nothing is settled
    if claim.interim:
        return "runs to come"  # nothing is claimed, even if the interval excludes zero
    if claim.outcome == "identical":
        return "identical"
    if claim.pair.n == 1:
        return "one common seed"
    words = []
    if claim.is_significant:
        if comparison.question.sign * claim.pair.mean > 0:
            words.append("worse")
        else:
            words.append("better")
    elif at_floor:
        words.append("as near as true data")
    if claim.equal:
        words.append(f"same within {comparison.rule.equal_within:g}")
    return ", ".join(words) or "not settled"


def table_title(comparison: Comparison) -> str:
    """Name the deciding measure: "sliced Wasserstein distance by evaluations"; "" for the bound."""
    table = comparison.deciding
    if table is None:
        return ""
    return f"{table.metric.label} by {table.key}" if table.key else table.metric.label


def difference_rows(comparison: Comparison) -> tuple[list[Column], list[TableRow]]:
    """Return columns and rows of paired differences to the best at each value of a swept key.

    Empty unless a metric with several values decides between several settings.
    """
    table = comparison.deciding
    if table is None or len(table.values) == 1:
        return [], []
    columns = []
    entries: dict[str, dict[str, Entry]] = {cell.label: {} for cell in comparison.ranked}
    for place in range(len(table.values)):
        for column in _difference_columns(table, place):
            columns.append(replace(column, key=f"{column.key}@{place}"))
        best, *rivals = table.ranked_labels(place)
        entries[best][f"difference@{place}"] = Entry("best", 0.0)
        for label in rivals:
            claim = comparison.metric_test(table.metric.name, place, best, label)
            for key, entry in _test_entries(claim).items():
                entries[label][f"{key}@{place}"] = entry
    return columns, [TableRow(label, figures) for label, figures in entries.items()]


def measure_rows(comparison: Comparison) -> tuple[list[Column], list[TableRow]]:
    """Return columns and rows of all metrics of samples, each at the last value of its key.

    Empty if such a metric decides, as it is in the results table. User-defined metrics come first;
    rows are sorted best first by the first column.
    """
    if comparison.deciding or not comparison.measures:
        return [], []
    tables = [*comparison.measures.values()]
    tables.sort(key=lambda table: (table.metric.name in SAMPLE_METRICS, not table.metric.better))
    columns = []
    for table in tables:
        place = f" at {table.key} {table.values[-1]:g}" if table.key else ""
        columns.append(Column(table.metric.name, f"{table.metric.ranked_label}{place}"))
    entries: dict[str, dict[str, Entry]] = {label: {} for label in tables[0].ranked_labels(-1)}
    for table in tables:
        column = estimate_entries([spreads[-1] for spreads in table.spreads.values()])
        for label, entry in zip(table.spreads, column, strict=True):
            entries.setdefault(label, {})[table.metric.name] = entry
    return columns, [TableRow(label, figures) for label, figures in entries.items()]


def _seeds_text(cell: Cell) -> str:
    """Return the number of seeds with a result, and the status of others: "3 (1 diverged)"."""
    others = [run for run in cell.others if run.status != "diverged" or run.seed not in cell.runs]
    tally = Counter(map(_run_outcome, others))
    if not tally:
        return str(len(cell.runs))
    return f"{len(cell.runs)} ({', '.join(f'{n} {outcome}' for outcome, n in tally.items())})"


def _run_outcome(run: Run) -> str:
    """Return a word for a run without a usable result: its status, or why it does not count."""
    if run.status != "finished":
        return run.status
    if not run.measure:
        return "without bound"
    return "copied" if math.isfinite(run.bound) else "not finite"
