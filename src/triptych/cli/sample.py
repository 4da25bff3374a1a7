"""Draw samples from a checkpoint: ``triptych-sample ckpt=PATH n=64 sampler=ddim sampler.steps=20``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from triptych.cli.arguments import as_hydra_wants
from triptych.config.check import CONFIGS
from triptych.config.keys import check_values
from triptych.config.names import register_resolvers
from triptych.errors import UserError
from triptych.runs.exits import one_line_errors
from triptych.runs.strangers import check_checkpoint

register_resolvers()


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` samples, save them as a picture and as a tensor; the folder that holds both."""
    check_values(OmegaConf.to_container(cfg, resolve=True), "sample")
    check_checkpoint(cfg.ckpt)  # before torch is imported
    import torch
    from tqdm import tqdm

    from triptych.diffusion.draws import Stream, mix
    from triptych.experiment.build import build_drawing
    from triptych.experiment.guided import Guides
    from triptych.experiment.reopen import reopen
    from triptych.sampling.draw import draw, takes_condition
    from triptych.sampling.draw_trajectory import save_trajectory
    from triptych.sampling.pictures import save

    opened = reopen(cfg.ckpt, cfg.weights, cfg.data_root)
    classes = opened.data.num_classes
    if not opened.model.draws:
        raise UserError(
            f"ckpt={cfg.ckpt}: a classifier's, which draws nothing; a generative model's is accepted"
        )
    if cfg.trajectory is not None and not hasattr(opened.model, "denoiser"):
        raise UserError(f"trajectory={cfg.trajectory}: this model has no denoising to show; null is accepted")
    config = opened.config | _plain(cfg, "sampler", "guidance", "threshold")
    drawing = build_drawing(config, opened.model, opened.data, Guides(config))
    sampler, denoiser = drawing.sampler, drawing.denoiser
    if cfg.label is not None:
        if not takes_condition(opened.model, denoiser) or not classes:
            raise UserError(f"label={cfg.label}: this model was trained without labels; null is accepted")
        if type(cfg.label) is not int or not 0 <= cfg.label < classes:
            raise UserError(f"label={cfg.label}: a class from 0 to {classes - 1} is accepted")
    opened.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if denoiser is not None:
        denoiser.to(opened.model.device)
    parts = []
    for start in range(0, cfg.n, cfg.batch_size):
        size = min(cfg.batch_size, cfg.n - start)
        bar = lambda steps: tqdm(steps, desc=f"samples {start + size}/{cfg.n}", disable=None, leave=False)  # noqa: B023, E731
        parts.append(
            draw(
                opened.model,
                sampler,
                opened.data,
                size,
                mix(cfg.seed, Stream.SAMPLES, start),
                bar,
                cfg.label,
                denoiser,
            )
        )
    x = torch.cat(parts)
    folder = Path(cfg.out)
    save(x[:400], opened.data, folder / "samples.png")
    torch.save({"x": x}, folder / "samples.pt")
    if cfg.trajectory is not None:
        size = min(cfg.n, 16 if len(opened.data.shape) == 3 else 1000)
        save_trajectory(cfg.trajectory, opened, sampler, denoiser, cfg.label, cfg.seed, size, folder)
    return folder


def _plain(cfg: DictConfig, *names: str) -> dict:
    """Groups of the configuration as plain data."""
    return {name: OmegaConf.to_container(cfg[name], resolve=True) for name in names}


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="sample")
@one_line_errors()  # within Hydra, which would add lines of its own
def compose_and_sample(cfg: DictConfig) -> None:
    """Hydra's task: draw, save, say where."""
    folder = sample(cfg)
    print(f"{cfg.n} samples: {folder / 'samples.png'}, {folder / 'samples.pt'}")


def main() -> None:
    """The console script."""
    sys.argv[1:] = as_hydra_wants(sys.argv[1:], "sample")
    with one_line_errors():
        compose_and_sample()
    sys.exit(0)


if __name__ == "__main__":
    main()
