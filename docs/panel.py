"""Draw one figure of a sweep's report as a picture, for these pages.

python docs/panel.py logs/runs/ncsn posterior_mean_error docs/images/tweedie.png
"""

import sys
from pathlib import Path

from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.panels import assign_colours, known_figures
from triptych.study.style import to_png


def main(sweep: str, name: str, picture: str) -> None:
    """Draw the figure ``name`` of the sweep's only comparison."""
    (comparison,) = compare(read_runs(Path(sweep)))
    known = known_figures(
        comparison, assign_colours({cell.label: cell.label for cell in comparison.cells})
    )
    if name not in known:
        raise SystemExit(f"{name}: no such figure; choose one of {', '.join(known)}")
    Path(picture).write_bytes(to_png(known[name], 110))


if __name__ == "__main__":
    main(*sys.argv[1:])
