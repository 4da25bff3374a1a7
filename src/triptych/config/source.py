"""Find files of modules and folders of configurations, without importing packages."""

import sys
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from triptych.config.own_code import trusted_packages
from triptych.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"  # the folder of this clone


def module_file(name: str) -> Path | None:
    """Return the path of a module's file, without importing the module; None if there is none."""
    spec = _top_module_spec(name.partition(".")[0])
    if spec is not None and spec.name == name and spec.origin:
        return Path(spec.origin)
    for place in module_paths(name):
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def module_paths(name: str) -> list[Path]:
    """Return the possible paths of a module, without suffix.

    Only the top-level package is looked up; the other names are appended as folders.
    """
    top, *rest = name.split(".")
    spec = _top_module_spec(top)
    folders = spec.submodule_search_locations if spec else None
    return [Path(folder, *rest) for folder in folders or ()]


def _top_module_spec(top: str) -> ModuleSpec | None:
    """Return the import spec of a top-level module; None if there is no such module."""
    try:
        return find_spec(top)
    except (ImportError, ValueError):
        return None


def package_config_folders() -> dict[str, Path]:
    """Return {trusted package: its folder ``configs``}, without importing the packages."""
    return _package_config_folders(trusted_packages(), tuple(sys.path))


def config_folders() -> tuple[Path, ...]:
    """Return all config folders in Hydra's search order, beginning with that of this repository."""
    return (CONFIGS, *package_config_folders().values())


def config_groups(folders: Sequence[Path] | None = None) -> list[str]:
    """Return all config groups in ``folders``, such as ``objective/loss``.

    By default, all config folders are searched.
    """
    groups = set()
    for home in config_folders() if folders is None else folders:
        groups |= {file.parent.relative_to(home).as_posix() for file in home.rglob("*.yaml")}
    return sorted(groups - {"."})


def group_files(group: str) -> list[Path]:
    """Return the files of a config group in all config folders."""
    return list(chain.from_iterable((folder / group).glob("*.yaml") for folder in config_folders()))


def group_choices(group: str) -> list[str]:
    """Return the choices of a config group: the names of its files in all config folders."""
    return sorted({file.stem for file in group_files(group)})


def check_files_are_unique() -> None:
    """Raise UserError if two config folders have the same file, as one would hide the other."""
    known: dict[str, Path] = {}
    for folder in config_folders():
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder).as_posix()
            if name in known:
                raise UserError(f"{file}: same name as {known[name]}; choose another name")
            known[name] = file


@cache
def _package_config_folders(packages: tuple[str, ...], path: tuple[str, ...]) -> dict[str, Path]:
    homes: dict[str, Path] = {}
    for package in packages:
        for place in module_paths(package):
            if (place / "configs").is_dir():
                homes.setdefault(package, (place / "configs").resolve())
    return homes
