"""Checkpoints and data that a configuration names and that have to be there before anything begins."""

from collections.abc import Collection
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from triptych.config.folders import CONFIGS
from triptych.errors import UserError

FILES = ("guide", "objective.teacher", "measures.classifier", "measures.inception")


def check_files(config: DictConfig, but: Collection[str] = ()) -> None:
    """UserError for the first one that is named and is not there, and for data that are not.

    Args:
        but: keys and groups that differ between the cells of a sweep, whose files these are then not.
    """
    target = str(OmegaConf.select(config, "hydra.launcher._target_")).lower()
    elsewhere = any(name in target for name in ("slurm", "ray"))  # whose machines may have data of their own
    if not elsewhere and not any(key.partition(".")[0] == "data" for key in but):
        if isinstance(data := OmegaConf.select(config, "data"), DictConfig):
            from triptych.data.source import check_source  # numpy, which help does without

            check_source(OmegaConf.to_container(data, resolve=True))  # type: ignore[arg-type]
    for key in FILES:
        if not {key, key.rpartition(".")[0]}.isdisjoint(but):
            continue
        if key.startswith("measures.") and not OmegaConf.select(config, "measures.n"):
            continue
        value = OmegaConf.select(config, key)
        if value not in (None, "exact") and not Path(value).expanduser().exists():
            raise UserError(f"{key}={value}: no such file{_made_by(Path(value))}; {_ACCEPTED}")


_ACCEPTED = "null or one that is there is accepted"


def _made_by(path: Path) -> str:
    """ ", triptych-train experiment=NAME makes it" for a run's that an experiment of that name has."""
    names = [b for a, b in zip(path.parts, path.parts[1:], strict=False) if a == "runs"]
    found = [name for name in names if (CONFIGS / "experiment" / f"{name}.yaml").is_file()]
    return f", triptych-train experiment={found[0]} makes it" if found else ""
