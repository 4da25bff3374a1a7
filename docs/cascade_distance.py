"""How far a cascade's pictures are from the data, and whether its second stage is worth it.

python docs/cascade_distance.py LOW HIGH CLASSIFIER [N]    # three runs' directories; N pictures a set, 1000

Frechet distances in the classifier's features: of held-out pictures (the floor), of the cascade with noise of
several levels on the low picture, and of the low pictures enlarged without a second stage. Over three sets.
"""

import sys

import torch
from omegaconf import OmegaConf
from torch.nn.functional import interpolate

from triptych.config.compose import compose, without_hydra
from triptych.experiment.reference import Images
from triptych.experiment.reopen import reopen
from triptych.sampling.cascade import OpenedCascade

SETS = 3
NOISE = (0.0, 0.1, 0.2, 0.3)


def main(low: str, high: str, classifier: str, n: str = "1000") -> None:
    """Print the table."""
    made = without_hydra(compose("sample", [f"n={n}"]))
    asked = OmegaConf.to_container(made, resolve=True) | {"cascade": [low, high]}
    cascade = OpenedCascade(asked)
    reference = Images(cascade.last.data, int(n), reopen(classifier).model, seed=0)
    reference.on(torch.device("cpu"))
    found: dict[str, list[float]] = {}
    for level in NOISE:
        for seed in range(SETS):
            cascade = OpenedCascade(asked | {"noise": level, "seed": seed})
            drawn = cascade.draw()
            sets = {f"cascade, noise {level:g}": [*drawn.values()][-1]}
            if not level:
                first = [*drawn.values()][0]
                size = cascade.last.data.shape[1:]
                for mode in ("bilinear", "nearest"):
                    sets[f"first stage, {mode}"] = interpolate(first, size=size, mode=mode)
            for name, x in sets.items():
                found.setdefault(name, []).append(reference.compare(x, None, seed)["frechet_distance"])
    floor = reference.floor()
    low_end, median, high_end = (floor["frechet_distance"][key] for key in ("low", "median", "high"))
    print("| pictures | Frechet distance | standard error |\n|---|---|---|")
    print(f"| held out, {floor['n']} | {median:.3f} | {low_end:.3f} to {high_end:.3f} |")
    for name, values in found.items():
        value = torch.tensor(values)
        print(f"| {name} | {value.mean():.3f} | {value.std() / SETS**0.5:.3f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
