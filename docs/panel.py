"""One figure of a sweep's report as a picture, for these pages.

python docs/panel.py logs/sweeps/ladder ladder docs/images/ladder.png
"""

import sys
from pathlib import Path

from triptych.report import hierarchy
from triptych.report.compare import compare
from triptych.report.panels import colours
from triptych.report.style import styled, to_png
from triptych.runs.read import read_runs


def main(sweep: str, name: str, picture: str) -> None:
    """Draw ``hierarchy.<name>`` of the sweep's only comparison."""
    (comparison,) = compare(read_runs(Path(sweep)))
    with styled():
        figure = getattr(hierarchy, name)(comparison, colours([cell.label for cell in comparison.cells]))
    Path(picture).write_bytes(to_png(figure, 110))


if __name__ == "__main__":
    main(*sys.argv[1:])
