"""Read packages without importing them: arguments that classes declare, config folders. No torch, no risk."""

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from triptych import declare
from triptych.config.own_code import is_trusted, trusted
from triptych.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"  # of the clone
REQUIRED = object()  # in place of a default
KINDS: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, bool, str, list, tuple, dict)},
    **{"Sequence": Sequence, "Any": Any, "None": None},
    **{name: getattr(declare, name) for name in declare.__all__},
}
OURS = ("triptych", "hydra_plugins", "torch")  # packages that need no trust
DEPTH = 10  # of imports that are followed to a name


class Argument(NamedTuple):
    """An argument of a class: its type, ``Any`` if undeclared, and its default."""

    kind: Any
    default: Any = REQUIRED


class Arguments(NamedTuple):
    """The arguments of a class, with those passed on to its parents."""

    named: dict[str, Argument]
    more: bool  # whether it takes keywords that its source does not name


class SourceFile(NamedTuple):
    """The top level of a source file."""

    name: str
    classes: dict[str, ast.ClassDef]
    values: dict[str, ast.expr]
    imports: dict[str, tuple[str, str]]  # name: (module, name there)


@cache
def arguments(target: str) -> Arguments | None:
    """Return the arguments of a class by its dotted name; None if it has no source file."""
    entry = _find(*target.rpartition(".")[::2])
    return _of_class(entry[0], entry[1], DEPTH) if entry and isinstance(entry[1], ast.ClassDef) else None


def full_name(target: str) -> str:
    """Return the dotted name of a class in its defining module; "" if there is none."""
    entry = _find(*target.rpartition(".")[::2])
    return f"{entry[0].name}.{entry[1].name}" if entry and isinstance(entry[1], ast.ClassDef) else ""


def class_names(module: str) -> list[str]:
    """Return the names in capitals that a module defines or imports; [] if it has no source file."""
    at = _module(module)
    return [name for name in (*at.classes, *at.imports) if name[:1].isupper()] if at else []


def _of_class(module: SourceFile, node: ast.ClassDef, depth: int) -> Arguments:
    init = next((f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"), None)
    named: dict[str, Argument] = {}
    handed = True  # **keywords are the parents' arguments
    if init is not None:
        named, handed = dict(_own(module, init)), init.args.kwarg is not None
    more = handed and init is not None and not node.bases
    for base in node.bases:
        entry = _find(module.name, base.id) if isinstance(base, ast.Name) else None
        if entry is None or not isinstance(entry[1], ast.ClassDef) or not depth:
            more |= handed
            continue
        theirs = _of_class(entry[0], entry[1], depth - 1)
        more |= handed and theirs.more
        for name, argument in theirs.named.items():
            if name not in named and handed:
                named[name] = argument
            elif name in named and argument.kind is not Any and not declare.is_declaration(named[name].kind):
                # it is declared where it is used
                named[name] = argument._replace(default=named[name].default)
    return Arguments(named, more)


def _own(module: SourceFile, init: ast.FunctionDef) -> Iterator[tuple[str, Argument]]:
    args = init.args
    ordinary = [*args.posonlyargs, *args.args][1:]
    defaults: list[ast.expr | None] = [None] * (len(ordinary) - len(args.defaults)) + list(args.defaults)
    defaults += args.kw_defaults
    for arg, default in zip([*ordinary, *args.kwonlyargs], defaults, strict=True):
        kind = Any if arg.annotation is None else _kind(module, arg.annotation)
        yield arg.arg, Argument(kind, REQUIRED if default is None else _value(module, default))


class Names(dict[str, Any]):
    """What the names in an annotation of a module stand for; ``Any`` for those that declare nothing."""

    def __init__(self, module: SourceFile):
        super().__init__({name: kind for name, kind in KINDS.items() if name not in module.values})
        self.module = module

    def __missing__(self, name: str) -> Any:
        module, node = _find(self.module.name, name) or (None, None)
        return _kind(module, node) if module and isinstance(node, ast.expr) else Any


def _kind(module: SourceFile, node: ast.expr) -> Any:
    """Evaluate an annotation to a declaration; ``Any`` if it is none, or nobody has trusted its module."""
    if not (module.name.partition(".")[0] in OURS or is_trusted(module.name)):
        return Any
    try:
        kind = eval(compile(ast.Expression(node), module.name, "eval"), {"__builtins__": {}}, Names(module))
    except (AttributeError, TypeError):  # of other packages' types
        return Any
    return _kind(module, ast.parse(kind, mode="eval").body) if isinstance(kind, str) else kind


def _value(module: SourceFile, node: ast.expr) -> Any:
    """Evaluate a literal, also behind a name; None for anything else."""
    if isinstance(node, ast.Name):
        entry = _find(module.name, node.id)
        return _value(entry[0], entry[1]) if entry and isinstance(entry[1], ast.expr) else None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


@cache
def _find(module: str, name: str, depth: int = DEPTH) -> tuple[SourceFile, ast.ClassDef | ast.expr] | None:
    """Return the definition of ``name`` in a module, imports followed, with its module."""
    at = _module(module)
    if at is None or not depth:
        return None
    if node := at.classes.get(name) or at.values.get(name):
        return at, node
    return _find(*at.imports[name], depth - 1) if name in at.imports else None


@cache
def _module(name: str) -> SourceFile | None:
    file = file_of(name)
    if file is None:
        return None
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    at = SourceFile(name, {}, {}, {})
    for node in body:
        match node:
            case ast.ClassDef():
                at.classes[node.name] = node
            case ast.Assign([ast.Name(target)], value):
                at.values[target] = value
            case ast.AnnAssign(ast.Name(target), _, ast.expr() as value):
                at.values[target] = value
            case ast.ImportFrom():
                above = package.split(".")
                above = above[: len(above) - node.level + 1] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                at.imports.update({one.asname or one.name: (source, one.name) for one in node.names})
    return at


def file_of(name: str) -> Path | None:
    """Return the file of a module without importing it."""
    top, *rest = name.split(".")
    spec = _spec(top)
    if spec is None or not all(part.isidentifier() for part in rest):
        return None
    if not rest and spec.origin:
        return Path(spec.origin)
    for base in places(name):
        for file in (base / "__init__.py", base.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def places(name: str) -> list[Path]:
    """Return the possible paths of a module without suffix; only its outermost parent is looked up."""
    top, *rest = name.split(".")
    spec = _spec(top)
    return [Path(folder, *rest) for folder in (spec.submodule_search_locations or [])] if spec else []


def _spec(top: str) -> ModuleSpec | None:
    try:
        return find_spec(top)
    except (ImportError, ValueError):
        return None


def of_packages() -> dict[str, Path]:
    """Return {trusted package: its folder ``configs``} without importing it."""
    return _of_packages(trusted(), tuple(sys.path))


def folders() -> tuple[Path, ...]:
    """Return all config folders in Hydra's search order, the clone's first."""
    return (CONFIGS, *of_packages().values())


def groups(among: Sequence[Path] | None = None) -> list[str]:
    """Return all groups of ``among``, by default of all config folders, as ``objective/loss``."""
    homes = folders() if among is None else among
    places = {file.parent.relative_to(home).as_posix() for home in homes for file in home.rglob("*.yaml")}
    return sorted(places - {"."})


def files_of(group: str) -> list[Path]:
    """Return a group's files in all folders."""
    return [file for folder in folders() for file in (folder / group).glob("*.yaml")]


def choices_of(group: str) -> list[str]:
    """Return the names of a group's files in all folders."""
    return sorted({file.stem for file in files_of(group)})


def check_apart() -> None:
    """Refuse a package's config file that another folder has too: one would shadow the other."""
    known: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.rglob("*.yaml")):
            name = file.relative_to(folder).as_posix()
            if name in known:
                raise UserError(f"{file}: {known[name]} has that name; choose another name")
            known[name] = file


@cache
def _of_packages(packages: tuple[str, ...], path: tuple[str, ...]) -> dict[str, Path]:
    homes: dict[str, Path] = {}
    for package in packages:
        for place in places(package):
            if (place / "configs").is_dir():
                homes.setdefault(package, (place / "configs").resolve())
    return homes
