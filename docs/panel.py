"""One figure of a sweep's report as a picture, for these pages.

python docs/panel.py logs/runs/ncsn posterior_mean_error docs/images/tweedie.png
"""

import sys
from pathlib import Path

from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.panels import PANELS, colours
from triptych.study.style import styled, to_png


def main(sweep: str, name: str, picture: str) -> None:
    """Draw the figure ``name`` of the sweep's only comparison."""
    known = {draw.__name__: draw for _, _, draws in PANELS for draw in draws}
    if name not in known:
        raise SystemExit(f"{name}: no such figure; choose one of {', '.join(known)}")
    (comparison,) = compare(read_runs(Path(sweep)))
    with styled():
        figure = known[name](comparison, colours({cell.label: cell.label for cell in comparison.cells}))
    Path(picture).write_bytes(to_png(figure, 110))


if __name__ == "__main__":
    main(*sys.argv[1:])
