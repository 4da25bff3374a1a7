"""The code that a process runs: digests of its source files, versions of the packages that it needs."""

import hashlib
import re
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

from triptych.config.build import targets

BY_VERSION = ("torch", "pytorch_lightning")  # their versions say it


def source_files(config: dict) -> dict[str, str]:
    """{file: digest} of every Python source of ours, and of other packages that ``config`` builds from."""
    found = {}
    for package in sorted({"triptych", *_named(config)} - {*BY_VERSION}):
        spec = find_spec(package)
        places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
        if spec and spec.origin and not places:
            found[Path(spec.origin).name] = _digest(Path(spec.origin))
        for place in places:
            for file in sorted(place.rglob("*.py")):
                found[f"{package}/{file.relative_to(place).as_posix()}"] = _digest(file)
    return found


def own_packages(config: dict) -> dict[str, Path]:
    """{package: its folder or file} of the user's own that ``config`` builds from.

    That is: not ours, and not installed among others, where its version says what it is.
    """
    found = {}
    for name in sorted(_named(config) - {"triptych", *BY_VERSION}):
        spec = find_spec(name)
        places = [*(spec.submodule_search_locations or []), *filter(None, [spec.origin])] if spec else []
        if places and not {"site-packages", "dist-packages"} & {*Path(places[0]).parts}:
            found[name] = Path(places[0])
    return found


def _named(config: dict) -> set[str]:
    return {str(node["_target_"]).partition(".")[0] for _, node in targets(config, "")}


def whole(files: dict[str, str]) -> str:
    """One digest of all."""
    return hashlib.blake2b(
        "\n".join(f"{k} {v}" for k, v in sorted(files.items())).encode(), digest_size=8
    ).hexdigest()


def versions() -> dict[str, str]:
    """{package: version} of what ours requires, and of what that requires."""
    found: dict[str, str] = {}
    ahead = ["triptych"]
    while ahead:
        name = ahead.pop()
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = package.version
        for line in package.requires or []:
            if "extra ==" not in line and (wanted := re.match(r"[A-Za-z0-9._-]+", line)):
                ahead.append(re.sub(r"[-_.]+", "-", wanted[0]).lower())
    return {name: version for name, version in sorted(found.items()) if name != "triptych"}


def compare_code(last: dict, here: dict, names: dict[str, dict[str, str]]) -> str:
    """What to say where an execution's code or packages differ from those of the one before; "" if not."""
    found = changes(last, here, names)
    return f"going on under other {found} than before" if found else ""


def changes(last: dict, here: dict, names: dict[str, dict[str, str]]) -> str:
    """ "code (FILES) and packages (NAME OLD -> NEW)", as far as two executions differ in them; "" if not.

    ``names``: the files of each digest of sources.
    """
    said = []
    if last.get("sources") and last["sources"] != here["sources"]:
        before, after = (names.get(e["sources"], {}) for e in (last, here))
        said.append(f"code ({_few([f for f in {**before, **after} if before.get(f) != after.get(f)])})")
    old, new = last.get("versions"), here["versions"]
    if old and old != new:
        moved = [n for n in {**old, **new} if old.get(n) != new.get(n)]
        told = _few([f"{n} {old.get(n, 'none')} -> {new.get(n, 'none')}" for n in moved])
        said.append(f"packages ({told})")
    return " and ".join(said)


def _digest(file: Path) -> str:
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=4).hexdigest()
    except OSError:
        return "unreadable"


def _few(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
