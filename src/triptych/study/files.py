"""Checkpoints and data that a configuration names and that have to be there before anything begins."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from triptych.config.compose import to_plain
from triptych.config.folders import CONFIGS
from triptych.errors import UserError
from triptych.run.untrusted import check_reference

CHECKPOINTS = ("guide", "objective.teacher", "measures.classifier", "model.stages", "condition_from")
OTHERS = ("measures.inception", "measures.contrastive", "data.embeddings")  # files of other kinds


def check_files(config: DictConfig, but: Collection[str] = ()) -> None:
    """Check each file, run and data set that is named.

    Args:
        but: keys and groups that differ between the cells of a sweep, whose files these are then not.

    Raises:
        UserError: it is missing, or cut, or of a run that has not finished.
    """
    target = str(OmegaConf.select(config, "hydra.launcher._target_")).lower()
    elsewhere = any(name in target for name in ("slurm", "ray"))  # whose machines may have data of their own
    if not elsewhere and not any(key.partition(".")[0] == "data" for key in but):
        if isinstance(data := OmegaConf.select(config, "data"), DictConfig):
            from triptych.data.source import check_data_files  # numpy, which help does without

            check_data_files(to_plain(data))
    for key, value in _named(config):
        if key.startswith("measures.") and not OmegaConf.select(config, "measures.n"):
            continue
        group = next(one for one in (*CHECKPOINTS, *OTHERS) if key.startswith(one))
        if not {group, group.rpartition(".")[0]}.isdisjoint(but):
            continue
        path = Path(value).expanduser()
        if not path.exists():
            raise UserError(
                f"{key}={value}: no such file{_suggestion(path)}; must be null or an existing file"
            )
        if group in CHECKPOINTS:
            check_reference(key, str(path))


def _named(config: DictConfig) -> Iterator[tuple[str, str]]:
    """(key, path) of what is named, of lists and mappings each entry."""
    for key in (*CHECKPOINTS, *OTHERS):
        value: Any = OmegaConf.select(config, key)
        if isinstance(value, str) and value != "exact":
            yield key, value
        elif OmegaConf.is_list(value):
            yield from ((f"{key}[{i}]", str(one)) for i, one in enumerate(value))
        elif OmegaConf.is_dict(value):  # of condition_from; without a slash it is another part
            yield from ((f"{key}.{name}", one) for name, one in value.items() if "/" in str(one))


def _suggestion(path: Path) -> str:
    """ ", triptych-train experiment=NAME makes it" for a run's that an experiment of that name has."""
    names = [b for a, b in zip(path.parts, path.parts[1:], strict=False) if a == "runs"]
    names_of = [name for name in names if (CONFIGS / "experiment" / f"{name}.yaml").is_file()]
    return f", triptych-train experiment={names_of[0]} makes it" if names_of else ""
