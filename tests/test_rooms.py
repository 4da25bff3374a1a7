"""Packages are layered: no module imports from a layer above its own."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import triptych

ROOT = Path(triptych.__file__).parent
ROOMS = (
    "terminal errors files records declare config diffusion networks data models callbacks "
    "run study cli api __main__"
).split()  # from low to high


def imported(file: Path) -> Iterator[str]:
    """Return every module or name that a file imports.

    Relative imports, and those in functions or for type checkers, are included.
    """
    package = ("triptych", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from (f"{module}.{name.name}" for name in node.names)


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def upward(file: Path) -> list[str]:
    own = ROOMS.index(room(file.relative_to(ROOT).parts))
    names = [name.split(".") for name in imported(file)]
    return [".".join(n) for n in names if n[0] == "triptych" and ROOMS.index(room((*n[1:],))) > own]


def test_every_package_is_in_layer_order():
    found = {room(path.relative_to(ROOT).parts) for path in ROOT.rglob("*.py")}
    assert found - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_package_imports_only_lower_layers(name):
    files = [f for f in ROOT.rglob("*.py") if room(f.relative_to(ROOT).parts) == name]
    assert files
    assert {str(f.relative_to(ROOT)): up for f in files if (up := upward(f))} == {}


def test_upward_import_is_detected_in_any_form(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_rooms.ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.py"
    text = (
        "from ..models import base\ndef f():\n    from triptych.cli.train import main\n    import "
        "os\n"
    )
    file.write_text(text)
    assert upward(file) == ["triptych.models.base", "triptych.cli.train.main"]
    text = (
        "from . import batch\nfrom triptych.data.base import DataModule\nfrom ..config import "
        "build\n"
    )
    file.write_text(text)
    assert upward(file) == []


def modules() -> dict[str, Path]:
    return {
        ".".join(("triptych", *f.relative_to(ROOT).with_suffix("").parts)): f
        for f in ROOT.rglob("*.py")
    }


def test_modules_have_no_circular_imports():
    known = modules()
    left = {
        name: {
            one for one in imported(file) for one in (one, one.rpartition(".")[0]) if one in known
        }
        for name, file in known.items()
    }
    while free := [name for name, of in left.items() if not of & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_sys_argv_is_read_only_in_commands():
    """Elsewhere the process may be a notebook, a worker or a test, so callers pass the value."""
    doors = {"cli", "__main__"}
    inner = [file for file in ROOT.rglob("*.py") if room(file.relative_to(ROOT).parts) not in doors]
    read = re.compile(
        r"sys\.argv(?!\[1:\] = )"
    )  # the library that starts processes is handed it so
    assert [file for file in inner if read.search(re.sub("#.*", "", file.read_text()))] == []


# Names are nouns and verbs of the field.
RIDDLES = re.compile(r"told|said|found|asked|hears?|heard|whereabouts")
IN_TEXT = re.compile(rf"\b({RIDDLES.pattern})\b(?!=)|\b(is|are) accepted\b")
PYTHONS = {"FileNotFoundError", "PackageNotFoundError", "ModuleNotFoundError"}
KEPT = {"told"}  # the key of augmentations, which runs have recorded
HOUSE = ROOT.parents[1]


def programs() -> list[Path]:
    scripts = (
        file for name in ("benchmarks", "docs", "examples") for file in (HOUSE / name).rglob("*.py")
    )
    return [*ROOT.parent.rglob("*.py"), *scripts]


def test_names_and_messages_avoid_listed_words():
    odd = set()
    for file in programs():
        tree = ast.parse(file.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            names = [getattr(node, key, None) for key in ("id", "arg", "attr", "name")]
            names = [str(name) for name in names if name and name not in PYTHONS]
            parts = {part for name in names for part in re.split(r"_|(?<=[a-z])(?=[A-Z])", name)}
            odd |= {
                (file, part)
                for part in parts
                if RIDDLES.fullmatch(part.lower()) and part not in KEPT
            }
            text = (
                str(node.value)
                if isinstance(node, ast.Constant) and id(node) not in docstrings
                else ""
            )
            odd |= {(file, text)} if IN_TEXT.search(text) else set()
    assert odd == set()


def test_pages_and_config_comments_avoid_listed_words():
    pages = (file.read_text() for file in (ROOT / "study" / "page").iterdir())
    files = (
        file.read_text()
        for name in ("configs", "examples")
        for file in (HOUSE / name).rglob("*.yaml")
    )
    comments = (comment for text in files for comment in re.findall(r"(?:^|\s)#.*", text))
    assert [match[0] for text in (*pages, *comments) for match in IN_TEXT.finditer(text)] == []
