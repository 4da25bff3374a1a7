"""The result as a table in the terminal, for the end of a sweep."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from triptych.files import printable
from triptych.run.result import PARTS
from triptych.study.render import Report
from triptych.study.study import Study, read_study
from triptych.study.style import short
from triptych.study.tables import BESIDE, table_columns, table_rows, table_title

HEADS = {
    "bound": "test bound",
    "difference": "to best [interval]",
    "reconstruction": "recon.",
    "diffusion": "diff.",
}
WORDS = {"reproduced": "green", "holds": "green", "contradicted": "red", "fails": "red"}
# what a narrow terminal goes without, first to last
DISPENSABLE = ("p", *PARTS, *BESIDE, "difference")


def print_table(root: Path, console: Console | None = None, report: Report | None = None) -> None:
    """Print the results of the runs beneath `root`; `report` saves reading them again."""
    console = console or Console()
    story = report.story if report else read_study([Path(root)])

    def say(text: str, style: str = "", wrap: bool = False) -> None:
        console.print(Text(text, style=style), soft_wrap=not wrap)

    if story.banner:
        say(story.banner, "yellow", wrap=True)
    for i, comparison in enumerate(story.comparisons):
        console.print(_fitting(story, i, console))
        for note in comparison.notes:
            say(f"Note: {note}", "dim", wrap=True)
    if len({(c.data, c.measure) for c in story.comparisons}) > 1:
        say("Different data or units: not comparable with each other.", "dim", wrap=True)
    for run in story.runs:
        if run.error:
            say(printable(f"{run.status}: {run.dir}: {run.error}"), "red")
    say(story.answer, "bold", wrap=True)
    if story.next_step:
        say(story.next_step)
    if claimed := story.published:
        say(f"Published: {claimed.node['cite']}, {claimed.node['where']}", wrap=True)
        for judgement in claimed.judgements:
            say(judgement.line, WORDS.get(judgement.word, ""))
        if claimed.changed:
            changed = "The claims or their seeds were changed after some of these runs had ended."
            say(changed, "yellow", wrap=True)
    page = report.html if report else Path(root) / "report.html"
    if page.exists():
        say(printable(f"Report: {page}"))  # a path broken over two lines cannot be clicked or copied


def _fitting(story: Study, i: int, console: Console) -> Table:
    """Return the widest of the tables that fit; CSV and page have all columns."""
    for leave in range(len(DISPENSABLE) + 1):
        table = _table(story, i, DISPENSABLE[:leave])
        if Measurement.get(console, console.options.update(max_width=10_000), table).maximum <= console.width:
            break
    return table


def _table(story: Study, i: int, without: tuple[str, ...]) -> Table:
    comparison = story.comparisons[i]
    # as plain Text throughout: names may hold what rich would read as markup
    better = comparison.question.metric.better
    what = table_title(comparison) or comparison.unit
    what = ", ".join(filter(None, (comparison.title, what)))
    rows = table_rows(comparison)
    table = Table(
        title=Text(f"{story.title}: {comparison.data or 'all data'}, {what}, {better}"),
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        caption="±: seeds alone" if any(len(cell.runs) > 1 for cell in comparison.cells) else None,
        caption_justify="left",
    )  # fmt: skip
    known = [(key, HEADS.get(key, head)) for key, head in table_columns(comparison)]
    heads = [(key, head) for key, head in [("seeds", "seeds"), *known] if key not in without]
    table.add_column(Text(comparison.subject), overflow="fold")
    for key, head in heads:
        table.add_column(Text(head), justify="left" if key in ("seeds", "verdict") else "right")
    for row in rows:
        style = "bold green" if row.best else "" if row.entries else "dim"
        texts = (Text(row.entry(key).text) for key, _ in heads)
        table.add_row(Text(short(row.label, 40)), *texts, style=style)
    return table
