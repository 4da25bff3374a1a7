"""Draw samples of a sweep as one picture, for these pages: a row for each setting's first seed.

python docs/samples.py logs/sweeps/ddpm_fashion docs/images/fashion_samples.png
"""

import sys
from pathlib import Path

import torch
from PIL import Image

from triptych.run.pictures import save_image_sequence
from triptych.run.read import read_runs
from triptych.study.compare import compare

MOST, LARGER = 12, 3


def main(sweep: str, picture: str) -> None:
    """Write ``picture`` and print the names of its rows from the top."""
    (comparison,) = compare(read_runs(Path(sweep)))
    rows = {cell.label: next(iter(cell.runs.values())) for cell in comparison.cells if cell.runs}
    files = [run.dir / "samples" / "final.pt" for run in rows.values()]
    x = torch.stack([torch.load(file, weights_only=True)["x"][:MOST] for file in files])
    save_image_sequence(x.transpose(0, 1), Path(picture))
    with Image.open(picture) as small:
        small.resize((LARGER * small.width, LARGER * small.height), Image.Resampling.NEAREST).save(
            picture
        )
    print(", ".join(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
