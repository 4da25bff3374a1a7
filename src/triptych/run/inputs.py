"""Check the files, runs and data sets that a configuration names, before a run starts."""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from triptych.config.compose import to_plain
from triptych.config.source import CONFIGS
from triptych.errors import UserError
from triptych.run.untrusted import check_reference

CHECKPOINTS = (  # keys whose values are checkpoints or runs
    "guide",
    "objective.teacher",
    "measures.classifier",
    "model.stages",
    "condition_from",
)
OTHER_FILES = (  # keys whose values are other files
    "measures.inception",
    "measures.statistics",
    "measures.contrastive",
    "data.embeddings",
)


def check_files(config: DictConfig, varying: Collection[str] = ()) -> None:
    """Raise UserError for a file, run or data set named in a configuration that cannot be used.

    It may be missing or damaged, or an unfinished run. ``varying``: keys and groups that differ
    between the runs of a sweep; their files are not checked.
    """
    data = OmegaConf.select(config, "data")
    if isinstance(data, DictConfig) and _share_local_data(config, varying):
        from triptych.data.source import check_data_files  # imports numpy

        check_data_files(to_plain(data))
    for declared, key, path in _named_files(config):
        if declared.startswith("measures.") and not OmegaConf.select(config, "measures.n"):
            continue
        if declared in varying or declared.rpartition(".")[0] in varying:
            continue
        if not Path(path).expanduser().exists():
            hint = _experiment_hint(path)
            raise UserError(f"{key}={path}: no such file{hint}; pass null or an existing file")
        if declared in CHECKPOINTS:
            check_reference(key, str(Path(path).expanduser()))


def _share_local_data(config: DictConfig, varying: Collection[str]) -> bool:
    """Return whether all runs of a sweep read one data set, and on this machine."""
    launcher = str(OmegaConf.select(config, "hydra.launcher._target_")).lower()
    if "slurm" in launcher or "ray" in launcher:  # The data may exist on their nodes only.
        return False
    return not any(key.partition(".")[0] == "data" for key in varying)


def _named_files(config: DictConfig) -> Iterator[tuple[str, str, str]]:
    """Yield (declared key, key, path) of each path in a configuration, also in lists and dicts.

    For an entry of a list, the key has an index, such as model.stages[0].
    """
    for declared in (*CHECKPOINTS, *OTHER_FILES):
        value = OmegaConf.select(config, declared)
        if isinstance(value, str) and value != "exact":
            yield declared, declared, value
        elif OmegaConf.is_list(value):
            for index, path in enumerate(value):
                yield declared, f"{declared}[{index}]", str(path)
        elif OmegaConf.is_dict(value):
            for name, path in value.items():
                if "/" in str(path):  # Without a slash it names another part of the condition.
                    yield declared, f"{declared}.{name}", path


def _experiment_hint(path: str) -> str:
    """Return a hint for a missing checkpoint that a built-in experiment would create, else ""."""
    folders = Path(path).parts
    for parent, name in itertools.pairwise(folders):
        if parent == "runs" and (CONFIGS / "experiment" / f"{name}.yaml").is_file():
            return f" (triptych-train experiment={name} creates it)"
    return ""
