"""Draw samples from a checkpoint: ``triptych-sample ckpt=PATH n=64 sampler=ddim sampler.steps=20``."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from triptych.config.check import CONFIGS
from triptych.config.names import register_resolvers
from triptych.door import one_line_errors, quote_paths
from triptych.errors import UserError

register_resolvers()


def sample(cfg: DictConfig) -> Path:
    """Draw ``cfg.n`` samples, save them as a picture and as a tensor; the folder that holds both."""
    for key in ("n", "batch_size"):
        if not isinstance(cfg[key], int) or cfg[key] < 1:
            raise UserError(f"{key}={cfg[key]}: a whole number from 1 is accepted")
    import torch
    from tqdm import tqdm

    from triptych.callbacks.samples import draw, save
    from triptych.config.build import build
    from triptych.runs.reopen import reopen

    opened = reopen(cfg.ckpt, cfg.weights, cfg.data_root)
    classes = opened.data.num_classes
    if cfg.label is not None:
        if not opened.model.conditional:
            raise UserError(f"label={cfg.label}: this model was trained without labels; null is accepted")
        if not isinstance(cfg.label, int) or not 0 <= cfg.label < classes:
            raise UserError(f"label={cfg.label}: a class from 0 to {classes - 1} is accepted")
    sampler = build(OmegaConf.to_container(cfg.sampler, resolve=True), "sampler")  # type: ignore[arg-type]
    opened.model.to("cuda" if torch.cuda.is_available() else "cpu")
    parts = []
    for start in range(0, cfg.n, cfg.batch_size):
        size = min(cfg.batch_size, cfg.n - start)
        bar = lambda steps: tqdm(steps, desc=f"samples {start + size}/{cfg.n}", disable=None, leave=False)  # noqa: B023, E731
        parts.append(
            draw(
                opened.model, sampler, opened.data, size, seed=cfg.seed + start, progress=bar, label=cfg.label
            )
        )
    x = torch.cat(parts)
    folder = Path(cfg.out)
    save(x[:400], opened.data, folder / "samples.png")
    torch.save({"x": x}, folder / "samples.pt")
    return folder


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="sample")
@one_line_errors()  # within Hydra, which would add lines of its own
def compose_and_sample(cfg: DictConfig) -> None:
    """Hydra's task: draw, save, say where."""
    folder = sample(cfg)
    print(f"{cfg.n} samples: {folder / 'samples.png'}, {folder / 'samples.pt'}")


def main() -> None:
    """The console script."""
    sys.argv[1:] = quote_paths(sys.argv[1:], ("ckpt", "out", "data_root"))
    with one_line_errors():
        compose_and_sample()
    sys.exit(0)


if __name__ == "__main__":
    main()
