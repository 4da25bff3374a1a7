"""Describe every key for help and ``docs/keys.md``, by its declaration and its comment in ``configs/``."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf

from triptych.config.keys import Key, allowed, find_key, members, named_classes, of_class
from triptych.config.schema import COMMANDS
from triptych.config.signatures import REQUIRED
from triptych.config.source import CONFIGS, choices_of, files_of, folders, groups
from triptych.declare import Role, Unit, describe_kind

LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?P<value>[^#]*)(?:# *(?P<comment>.*))?$")


class KeyRow(NamedTuple):
    """A key, its value or default, its values in words and its role."""

    key: str
    value: str
    values: str
    role: Role
    added: bool = False  # not in the composed configuration: typed with a +


def key_rows(config: Any, key: Key, path: str = "") -> Iterator[KeyRow]:
    """Yield the keys below ``key`` and, after those of each group, the further keys that it accepts."""
    target = str(config.get("_target_") or "")
    known = members(key, target)
    for name, value in config.items():
        where = f"{path}.{name}" if path else str(name)
        inner = find_key(where, target) if path else known.get(str(name), Key())
        if isinstance(value, dict) and value:
            yield from key_rows(value, inner, where)
        elif str(name)[:1] != "_":
            yield _row(where, inner, value)
    for name, inner in known.items() if path else ():
        if name not in config and inner.default is not REQUIRED:
            yield _row(f"{path}.{name}", inner, inner.default, added=True)


def _row(path: str, key: Key, value: Any, added: bool = False) -> KeyRow:
    text = str(yaml.safe_dump(value, default_flow_style=True, width=1000))
    unit = key.mark(Unit)
    values = describe_kind(key.kind) + (f" ({unit.name})" if unit else "")
    return KeyRow(path, text.removesuffix("\n...\n").strip(), values, key.role, added=added)


@cache
def comments(file: Path) -> dict[str, str]:
    """Return {dotted key: its comment} of a file; "" is the comment at its top."""
    texts: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    lines = file.read_text(encoding="utf-8").splitlines()
    head = [line.lstrip("# ") for line in takewhile(lambda line: line[:1] == "#", lines)]
    texts[""] = " ".join(line for line in head if not line.startswith("@package"))
    for line in lines:
        if match := LINE.match(line):
            indent = len(match["indent"])
            above = [(depth, name) for depth, name in above if depth < indent] + [(indent, match["key"])]
            if match["comment"]:
                texts[".".join(name for _, name in above)] = match["comment"].strip()
    return texts


def chain(file: Path) -> list[Path]:
    """Return a file and the files of its group that it inherits from."""
    listed = [one.partition("@")[0] for one in read_yaml(file).get("defaults", []) if isinstance(one, str)]
    at = next((file.parent.relative_to(folder) for folder in folders() if folder in file.parents), Path())
    files = [file]
    for one in listed:
        parent = next(filter(Path.is_file, (f / f"{one}.yaml" for f in (file.parent, CONFIGS / at))), None)
        files += chain(parent) if parent else []  # _self_ is none
    return files


@cache
def read_yaml(file: Path) -> dict[str, Any]:
    """Parse a file in ``configs/`` without resolving it."""
    with file.open(encoding="utf-8") as stream:  # whose name an error has
        return yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def listing(key: str, depth: int = 1) -> list[str]:
    """Return the choices of a key's group whose files list it; ``depth``: 2 for a nested group."""
    names = key.split(".")
    group, names = "/".join(names[:depth]), names[depth:]
    has = (file.stem for file in files_of(group) if any(_has(read_yaml(one), names) for one in chain(file)))
    return sorted({*has})


def _has(node: Any, names: list[str]) -> bool:
    for name in names:
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def plus_signs(key: str, typed: Mapping[str, str]) -> str:
    """Return "+" for a key that its class takes and no file lists, "++" if the class was typed; else ""."""
    parent, _, name = key.rpartition(".")
    depths = range(1, key.count(".") + 1)
    if not parent or (parent not in typed and any(listing(key, depth) for depth in depths)):
        return ""
    known = [allowed(typed[parent])] if parent in typed else named_classes(parent)
    return "+" * (1 + (parent in typed)) if any(name in of_class(one)[0] for one in known if one) else ""


def comment(key: str, file: Path, folder: str = "") -> str:
    """Return the comment of a dotted key in a file or one that it inherits from; ``folder``: their group."""
    inner = "" if key == folder else key.removeprefix(folder.replace("/", ".") + ".") if folder else key
    return next((text for one in chain(file) if (text := comments(one).get(inner))), "")


def _beside(values: str, text: str) -> Iterator[str]:
    for part in text.split("; "):
        names, colon, rest = part.removeprefix("or ").partition(": ")
        again = part[:3] == "or " and {*names.split(", ")} <= {*re.split(", | or ", values)}
        yield (names + colon + rest) * bool(colon) if again else part


def help_text(command: str, cfg: DictConfig) -> str:
    """Return the text of ``--help``."""
    own = (group for group in groups() if group.split("/")[0] != "hydra")
    choices = "\n".join(f"{group}: {', '.join(choices_of(group))}" for group in own)
    runtime = cfg.hydra.runtime
    plain: Any = OmegaConf.to_container(cfg)
    plain.pop("hydra", None)
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    files = {
        group: file
        for folder in reversed(folders)  # the first that has it counts
        for group, choice in runtime.choices.items()
        if (file := folder / group / f"{choice}.yaml").is_file()
    }
    files[""] = CONFIGS / f"{command}.yaml"
    lines = []
    for row in key_rows(plain, Key(COMMANDS[command])):
        places = "", row.key.rpartition(".")[0].replace(".", "/"), row.key.split(".")[0]
        texts = (comment(row.key, files[place], place) for place in places if place in files)
        about = "; ".join(filter(None, (row.values, *_beside(row.values, next(filter(None, texts), "")))))
        lines.append(f"{'+' * row.added}{row.key}={row.value}".ljust(40) + (f"  # {about}" if about else ""))
    keys = "\n".join(lines)
    example = {"train": "seed=2 (+key=value where a + stands)", "evaluate": "split=val"}.get(command, "n=16")
    return f"Choices, as in data=digits:\n\n{choices}\n\nKeys, as in {example}:\n\n{keys}\n"
