"""Draw measures of a sweep's samples as one picture, two in a row, for these pages.

python docs/measures_panel.py SWEEP PICTURE MEASURE ...

For example: logs/sweeps/samplers docs/images/samplers.png sliced_wasserstein energy_distance
"""

import io
import sys
from pathlib import Path

from PIL import Image

from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.figures import measure_figure
from triptych.study.panels import assign_colours
from triptych.study.style import figure_style, to_png


def main(sweep: str, picture: str, *names: str) -> None:
    """Draw the measures ``names`` of the sweep's only comparison."""
    (comparison,) = compare(read_runs(Path(sweep)))
    palette = assign_colours(
        {label: label for label in sorted(cell.label for cell in comparison.cells)}
    )
    measures = comparison.measures
    tiles = []
    for name in names:
        if name not in measures:
            raise SystemExit(f"{name}: no run measured it; choose one of {', '.join(measures)}")
        with figure_style():
            figure = measure_figure(measures[name])(comparison, palette)
        tiles.append(Image.open(io.BytesIO(to_png(figure, 110))).convert("RGB"))
    columns = min(2, len(tiles))
    width, height = max(t.width for t in tiles), max(t.height for t in tiles)
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    sheet.save(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
