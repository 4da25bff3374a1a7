"""Samples by what they were asked for, as a picture: a row a caption."""

from pathlib import Path

import torch
from torch.nn.functional import pad

from triptych.data.base import DataModule
from triptych.data.captions import Captioned
from triptych.run.directory import atomic
from triptych.run.drawing import Drawing
from triptych.run.sampling.pictures import new_figure, shades

TRAINED, UNTRAINED, COLUMNS = 4, 2, 8  # captions of combinations trained on and not, samples of each


def save_prompts(drawing: Drawing, path: Path) -> Path | None:
    """Save a PNG of samples of a few held-out captions; None, and no file, where there are no captions."""
    data = drawing.data
    if not isinstance(data, Captioned) or len(data.shape) != 3:
        return None
    if not drawing.conditional or drawing.class_conditional:
        return None
    rows, marks = rows_of(data)
    items = torch.tensor(rows).repeat_interleave(COLUMNS)
    x = drawing.samples(len(items), seed=0, items=items)
    _save(x.unflatten(0, (len(rows), COLUMNS)), marks, data, path)
    return path


def rows_of(data: Captioned) -> tuple[list[int], list[str]]:
    """Choose items of different captions, of classes trained on, then of others; and describe each."""
    captions, labels = data.captions[data.condition_split], data.splits[data.condition_split].labels
    untrained = torch.zeros(len(captions), dtype=torch.bool) if labels is None else data.untrained(labels)
    rows: list[int] = []
    for wanted, most in ((False, TRAINED), (True, UNTRAINED)):
        first = {c: i for i, c in reversed([*enumerate(captions)]) if bool(untrained[i]) is wanted}
        rows += sorted(first.values())[:: max(1, len(first) // most)][:most]
    return rows, [captions[i] + " (kept from training)" * bool(untrained[i]) for i in rows]


def _save(x: torch.Tensor, marks: list[str], data: DataModule, path: Path) -> None:
    strips = pad(shades(x, data), (0, 1, 0, 0), value=255).permute(0, 3, 1, 4, 2).flatten(2, 3)
    figure = new_figure(COLUMNS * 0.62, len(marks) * 0.88)
    for ax, strip, mark in zip(figure.subplots(len(marks), squeeze=False)[:, 0], strips, marks, strict=True):
        picture = strip.numpy()
        ax.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
        ax.set_title(mark, fontsize=8, loc="left", pad=2)
        ax.set_axis_off()
    with atomic(path) as file:
        figure.savefig(file, dpi=150)
