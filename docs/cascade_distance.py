"""Measure a cascade's pictures, and whether its second stage improves them.

python docs/cascade_distance.py LOW HIGH CLASSIFIER [N]    # three run directories; N pictures per
set, 500

The table has Fréchet distances in the classifier's features: of held-out pictures (the floor); of
the cascade as its runs draw, with noise on the low picture, or without guidance; and of the low
pictures enlarged without a second stage. It also has the share of pictures that match all of their
caption, for combinations that were trained on and for others. The captions are those of validation
items, in three sets.
"""

import sys
import tempfile
from itertools import count
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.nn.functional import interpolate
from tqdm import tqdm

from triptych.config.compose import compose_command, without_hydra
from triptych.run.chunks import Chunks
from triptych.run.reference import ImageReference
from triptych.run.reopen import reopen
from triptych.run.sample import build_cascade_drawing, draw_all_sources

SETS = 3
WAYS = {
    "cascade": {},
    "cascade, noise .1": {"noise": 0.1},
    "cascade, noise .2": {"noise": 0.2},
    "cascade, unguided": {"stages": [{"guidance.scale": 1.0}]},
}
SHARES = ("prompt_accuracy", "prompt_accuracy_held_out")


def main(low: str, high: str, classifier: str, n: str = "500") -> None:
    """Print the table."""
    made = without_hydra(compose_command("sample", [f"n={n}"]))
    composed = OmegaConf.to_container(made, resolve=True) | {"cascade": [low, high]}
    data = build_cascade_drawing(composed).data
    reference = ImageReference(data, int(n), reopen(classifier).model, seed=0)
    chunks = Chunks(Path(tempfile.mkdtemp()), data.shape, reference.compute_features)
    reference.fill(chunks, torch.device("cpu"))
    names = count()
    items = torch.arange(int(n)) % len(data.splits[data.condition_split])
    unseen = reference.prompts.is_left_out_of_training[items]

    def figures(x, seed):
        read = chunks.fill(f"set_{next(names)}", len(x), lambda rows, _: x[rows])
        measured = {"frechet_distance": reference.compare(read, None, seed)["frechet_distance"]}
        for share, kind in zip(SHARES, (~unseen, unseen), strict=True):
            rows = kind.nonzero().squeeze(1)
            measured[share] = reference.caption_matches(read.subset(rows), items[rows])[
                "prompt_accuracy"
            ]
        return measured

    rows: dict[str, list[dict[str, float]]] = {}
    with tqdm(total=len(WAYS) * SETS, unit="set") as progress:
        for way, change in WAYS.items():
            for seed in range(SETS):
                values = composed | change | {"seed": seed}
                first, drawn = draw_all_sources(build_cascade_drawing(values), values).values()
                rows.setdefault(way, []).append(figures(drawn, seed))
                if not change:
                    for mode in ("bilinear", "nearest"):
                        large = interpolate(first, size=data.shape[1:], mode=mode)
                        rows.setdefault(f"first stage, {mode}", []).append(figures(large, seed))
                progress.update()

    keys = ["frechet_distance", *SHARES]
    print(
        "| pictures | Fréchet distance | all right, seen | all right, held out |\n|---|---|---|---|"
    )
    floor = reference.noise_floor(labelled=False)
    true = [f"{floor[key]['median']:.3f}" for key in SHARES]
    ends = [f"{floor['frechet_distance'][end]:.3f}" for end in ("median", "low", "high")]
    print(f"| held out, {floor['n']} | {ends[0]} ({ends[1]} to {ends[2]}) | {' | '.join(true)} |")
    for way, measured in rows.items():
        values = torch.tensor([[f[key] for key in keys] for f in measured])
        cells = zip(values.mean(0), values.std(0) / SETS**0.5, strict=True)
        print(
            f"| {way} | " + " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in cells) + " |"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
