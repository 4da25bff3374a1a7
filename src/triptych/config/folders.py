"""Where configurations lie: the clone's ``configs``, and that of each package that its owner trusts."""

import sys
from functools import cache
from pathlib import Path

from triptych.config.source import places
from triptych.config.trust import trusted
from triptych.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"


def of_packages() -> dict[str, Path]:
    """{trusted package: its folder ``configs``} where it has one; nothing of a package is imported."""
    return _of_packages(trusted(), tuple(sys.path))


def folders() -> tuple[Path, ...]:
    """All folders, the clone's first, in the order in which Hydra looks through them."""
    return (CONFIGS, *of_packages().values())


def choices_of(group: str) -> list[str]:
    """Return the names of a group's files in all folders."""
    return sorted({file.stem for folder in folders() for file in (folder / group).glob("*.yaml")})


def check_apart() -> None:
    """UserError for a package's file of a name that is taken: which of the two is read would be hidden."""
    known: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder).as_posix()
            if name in known:
                raise UserError(f"{file}: {known[name]} has that name; choose another name")
            known[name] = file


def missing_packages() -> list[str]:
    """Trusted packages that lie nowhere on Python's path."""
    return [name for name in trusted() if not places(name)]


@cache
def _of_packages(packages: tuple[str, ...], path: tuple[str, ...]) -> dict[str, Path]:
    homes: dict[str, Path] = {}
    for package in packages:
        for place in places(package):
            if (place / "configs").is_dir():
                homes.setdefault(package, (place / "configs").resolve())
    return homes
