"""Draw samples from a checkpoint: ``triptych-sample ckpt=PATH n=64 sampler=ddim sampler.steps=20``."""

import contextlib
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from triptych.cli.arguments import check_place, run_command
from triptych.config.compose import checked_values
from triptych.errors import UserError
from triptych.run.directory import atomic
from triptych.run.untrusted import find_checkpoint

if TYPE_CHECKING:
    from torch import Tensor


DRAWN = ("samples.pt", "samples.png", "trajectory.png")


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` samples, save them as a picture and a tensor; return their folder (``save_tensor``)."""
    values = checked_values(cfg, "sample")
    check_place("out", cfg.out, folder=True)
    for key, path in _paths(values).items():  # before torch is imported
        find_checkpoint(path, key)
    from triptych.run import sample as sampling
    from triptych.run.pictures import save_picture, save_trajectory
    from triptych.run.reopen import reopen

    if values["cascade"] is not None:
        drawing = sampling.cascade_of(values)
    else:
        drawing = sampling.drawing_of(reopen(cfg.ckpt, cfg.weights, cfg.data_root), values)
    drawn = sampling.draw_all(drawing, values)
    folder = save_tensor(drawn[sampling.SAMPLES], Path(cfg.out))
    save_picture(drawn[sampling.SAMPLES][:400], drawing.data, folder / "samples.png")
    for i, name in enumerate(drawing.sources):
        if name in drawing.stages:
            save_picture(drawn[name][:400], drawing.stages[name].data, folder / f"stage_{i}.png")
    if values["trajectory"] is not None:
        condition, first = sampling.condition_of(drawing, values, cfg.n), min(cfg.n, cfg.batch_size)
        save_trajectory(drawing, condition, first, sampling.seed_of(values, 0), folder)
    return folder


def _paths(values: dict[str, Any]) -> dict[str, str]:
    """Return {key: checkpoint}: one, or those of a cascade's stages."""
    one, several = values["ckpt"] != "???", values["cascade"]
    if one == (several is not None):
        typed = f"ckpt={values['ckpt']} with cascade={several}" if one else "ckpt=null"
        raise UserError(f"{typed}: type ckpt=RUN, or else cascade=[RUN,RUN]")
    fix = "only with cascade=[RUN,RUN]" if one else "must be null with a cascade"
    for key in ("stages", "noise") if one else ("trajectory", "like"):
        if values[key]:
            raise UserError(f"{key}={values[key]}: {fix}")
    return {"ckpt": values["ckpt"]} if one else {f"cascade[{i}]": path for i, path in enumerate(several)}


def save_tensor(x: "Tensor", out: Path) -> Path:
    """Save ``samples.pt`` atomically in ``out`` or, if it has samples, out-2, ...; return the folder."""
    import torch

    for i in count(1):
        folder = out if i == 1 else out.with_name(f"{out.name}-{i}")
        if any((folder / name).exists() for name in DRAWN):
            continue
        with contextlib.suppress(FileExistsError):  # another command's, in this moment
            with atomic(folder / "samples.pt", new=True) as file:
                torch.save({"x": x}, file)
            break
    return folder


def sample_and_print(cfg: DictConfig) -> None:
    """Hydra's task: draw, save, print where."""
    folder = sample(cfg).absolute()
    files = ["samples.png", "samples.pt", *["trajectory.png"] * (cfg.trajectory is not None)]
    print(f"{cfg.n} samples: {', '.join(str(folder / name) for name in files)}")


def main() -> None:
    """Run the console script."""
    run_command("sample", sample_and_print)


if __name__ == "__main__":
    main()
