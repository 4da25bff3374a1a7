"""Draw samples from a checkpoint: ``triptych-sample ckpt=PATH n=64 sampler=ddim sampler.steps=20``."""

import sys
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import as_hydra_wants, check_place
from triptych.config.folders import CONFIGS
from triptych.config.keys import check_values
from triptych.config.names import register_resolvers
from triptych.errors import UserError
from triptych.run.exits import one_line_errors
from triptych.run.untrusted import check_checkpoint

register_resolvers()


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` samples, save them as a picture and as a tensor; the folder that holds both.

    Samples that are in ``out`` already stay: the folder is then ``out-2``, or the next that is free.
    """
    values: dict = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    check_values(values, "sample")
    check_place("out", cfg.out, folder=True)
    folder = free_folder(Path(cfg.out))
    for key, path in _paths(values).items():  # before torch is imported
        check_checkpoint(path, key)
    if values["cascade"] is not None:
        return _sample_cascade(values, folder)
    import torch

    from triptych.run.reopen import reopen
    from triptych.run.sampling.draw_trajectory import save_trajectory
    from triptych.run.sampling.like import like
    from triptych.run.sampling.opened import draw_all, drawing_of
    from triptych.run.sampling.pictures import save

    opened = reopen(cfg.ckpt, cfg.weights, cfg.data_root)
    drawing = drawing_of(opened, values)
    if cfg.like is not None:
        first = like(opened, values["like"], cfg.n)
        others = [source for source in drawing.sources if source.name != first.name]
        drawing = replace(drawing, sources=(first, *others))
    x = draw_all(opened, drawing, values)
    save(x[:400], opened.data, folder / "samples.png")
    torch.save({"x": x}, folder / "samples.pt")
    if cfg.trajectory is not None:
        save_trajectory(opened, drawing, values, folder)
    return folder


def _paths(values: dict) -> dict[str, str]:
    """key -> the checkpoint that it asks for: one, or those of a cascade's stages."""
    one, several = values["ckpt"] != "???", values["cascade"]
    if one == (several is not None):
        typed = f"ckpt={values['ckpt']} with cascade={several}" if one else "ckpt=null"
        raise UserError(f"{typed}: type ckpt=RUN, or else cascade=[RUN,RUN]")
    if one:
        for key in ("stages", "noise"):
            if values[key]:
                raise UserError(f"{key}={values[key]}: only with cascade=[RUN,RUN]")
        return {"ckpt": values["ckpt"]}
    for key in ("trajectory", "like"):
        if values[key] is not None:
            raise UserError(f"{key}={values[key]}: must be null with a cascade")
    return {f"cascade[{i}]": path for i, path in enumerate(several)}


def free_folder(out: Path) -> Path:
    """``out``, or where it has samples ``out-2``, ``out-3``, ... without any."""
    names = chain([out], (out.with_name(f"{out.name}-{i}") for i in count(2)))
    return next(folder for folder in names if not (folder / "samples.pt").exists())


def _sample_cascade(values: dict, folder: Path) -> Path:
    """The last stage's samples, and beside them pictures of what the stages before it drew."""
    import torch

    from triptych.run.sampling.cascade import OpenedCascade
    from triptych.run.sampling.pictures import save

    opened = OpenedCascade(values)
    drawn = opened.draw()
    for name, x, run in opened.pictures(drawn):
        save(x[:400], run.data, folder / f"{name}.png")
    *_, last = drawn.values()
    torch.save({"x": last}, folder / "samples.pt")
    return folder


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="sample")
@one_line_errors()  # within Hydra, which would add lines of its own
def compose_and_sample(cfg: DictConfig) -> None:
    """Hydra's task: draw, save, say where."""
    folder = sample(cfg)
    print(f"{cfg.n} samples: {folder / 'samples.png'}, {folder / 'samples.pt'}")


def main() -> None:
    """The console script."""
    with one_line_errors():
        sys.argv[1:] = as_hydra_wants(sys.argv[1:], "sample")
        compose_and_sample()
    sys.exit(0)


if __name__ == "__main__":
    main()
