"""Describe all keys for ``--help`` and ``docs/keys.md``.

A description comes from the key's declaration and from its comment in ``configs/``.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import DictConfig, OmegaConf

from triptych.config.keys import (
    Key,
    allowed_target,
    class_arguments,
    declared_members,
    find_key,
    join,
    named_classes,
)
from triptych.config.schema import COMMANDS
from triptych.config.signatures import REQUIRED
from triptych.config.source import (
    CONFIGS,
    config_folders,
    config_groups,
    group_choices,
    group_files,
)
from triptych.declare import Role, Unit, describe_kind

TRAIN_EXAMPLE = "seed=2 (for a key with a +, +key=value)"
EXAMPLES = {"train": TRAIN_EXAMPLE, "evaluate": "split=val", "sample": "n=16"}
LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?P<value>[^#]*)(?:# *(?P<comment>.*))?$")


class KeyRow(NamedTuple):
    """A key, its value or default, its allowed values in words and its role."""

    key: str
    value: str
    values: str
    role: Role
    added: bool = (
        False  # true if the key must be typed with a +, as it is not in the composed configuration
    )


def key_rows(config: Any, key: Key, path: str = "") -> Iterator[KeyRow]:
    """Yield a row for each key below ``key``, whose configuration is ``config``.

    Keys that a group accepts but ``config`` lacks come after the group's other keys.
    """
    target = str(config.get("_target_") or "")
    known = declared_members(key, target)
    for name, value in config.items():
        place = join(path, name)
        inner = find_key(place, target) if path else known.get(str(name), Key())
        if isinstance(value, dict) and value:
            yield from key_rows(value, inner, place)
        elif not str(name).startswith("_"):
            yield _key_row(place, inner, value)
    if path:
        yield from _added_rows(config, known, path)


def _added_rows(config: Any, known: Mapping[str, Key], path: str) -> Iterator[KeyRow]:
    """Yield a row for each optional key in ``known`` that ``config`` lacks."""
    for name, key in known.items():
        if name not in config and key.default is not REQUIRED:
            yield _key_row(f"{path}.{name}", key, key.default, is_added=True)


def _key_row(path: str, key: Key, value: Any, is_added: bool = False) -> KeyRow:
    """Return the row of one key; ``path`` is its dotted name and ``key`` its declaration."""
    text = str(yaml.safe_dump(value, default_flow_style=True, width=1000))
    unit = key.find_annotation(Unit)
    values = describe_kind(key.kind) + (f" ({unit.name})" if unit else "")
    return KeyRow(path, text.removesuffix("\n...\n").strip(), values, key.role, added=is_added)


@cache
def file_comments(file: Path) -> dict[str, str]:
    """Return {dotted key: its comment} of a file; the key "" has the comment at the file's top."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    texts = {"": " ".join(line for line in head if not line.startswith("@package"))}
    names: dict[int, str] = {}  # the key at each indent, outermost first
    for match in filter(None, map(LINE.match, lines)):
        indent = len(match["indent"])
        names = {depth: name for depth, name in names.items() if depth < indent}
        names[indent] = match["key"]
        if match["comment"]:
            texts[".".join(names.values())] = match["comment"].strip()
    return texts


def inheritance_chain(file: Path) -> list[Path]:
    """Return a file, and the files of its group that it inherits from by its ``defaults``."""
    files = [file]
    for child in files:  # the list grows by the parents of each
        homes = (home for home in config_folders() if home in child.parents)
        group = child.parent.relative_to(next(homes, child.parent))
        for entry in read_yaml(child).get("defaults", []):
            if not isinstance(entry, str):
                continue
            name = f"{entry.partition('@')[0]}.yaml"
            parents = (folder / name for folder in (child.parent, CONFIGS / group))
            parent = next(filter(Path.is_file, parents), None)
            if parent is not None and parent not in files:  # _self_ has no file
                files.append(parent)
    return files


@cache
def read_yaml(file: Path) -> dict[str, Any]:
    """Parse a file in ``configs/`` without resolving it."""
    # With a stream, YAML's errors name the file. Hydra itself refuses files that are not UTF-8.
    with file.open(encoding="utf-8", errors="replace") as stream:
        return yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}


def choices_with_key(key: str, depth: int = 1) -> list[str]:
    """Return the choices of a config group whose files set the dotted key ``key``.

    The group is that of the key's first ``depth`` names, such as objective/loss for depth 2.
    """
    names = key.split(".")
    group, inner = "/".join(names[:depth]), names[depth:]
    return sorted({file.stem for file in group_files(group) if _file_has_key(file, inner)})


def _file_has_key(file: Path, names: list[str]) -> bool:
    """Return whether a file, or one from which it inherits, sets the nested key ``names``."""
    return any(_has_nested_key(read_yaml(member), names) for member in inheritance_chain(file))


def _has_nested_key(node: Any, names: list[str]) -> bool:
    """Return whether ``node`` has the nested key ``names``."""
    for name in names:
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def plus_signs(key: str, typed_classes: Mapping[str, str]) -> str:
    """Return the prefix that a typed key needs in Hydra's grammar: "", "+" or "++".

    "" is for a key that a configuration file of its group sets. "+" is for an argument of the
    group's class that no file sets. "++" is for an argument of a class that was itself typed
    (``typed_classes`` is {group: class}), as files may or may not set it.
    """
    parent, _, name = key.rpartition(".")
    if parent in typed_classes:
        return "++" if name in class_arguments(allowed_target(typed_classes[parent]))[0] else ""
    if any(choices_with_key(key, depth) for depth in range(1, key.count(".") + 1)):
        return ""
    return (
        "+" if any(name in class_arguments(target)[0] for target in named_classes(parent)) else ""
    )


def inherited_comment(key: str, file: Path, folder: str = "") -> str:
    """Return the comment of a dotted key in ``file`` or in a file from which it inherits; or "".

    ``folder``: the config group of these files.
    """
    if key == folder:
        key = ""
    elif folder:
        key = key.removeprefix(folder.replace("/", ".") + ".")
    return next(
        filter(None, (file_comments(member).get(key) for member in inheritance_chain(file))), ""
    )


def help_text(command: str, cfg: DictConfig) -> str:
    """Return the text of ``--help``."""
    own = (group for group in config_groups() if group.split("/")[0] != "hydra")
    choices = "\n".join(f"{group}: {', '.join(group_choices(group))}" for group in own)
    plain: Any = OmegaConf.to_container(cfg)
    plain.pop("hydra", None)
    files = _choice_files(cfg.hydra.runtime) | {"": CONFIGS / f"{command}.yaml"}
    keys = "\n".join(_help_line(row, files) for row in key_rows(plain, Key(COMMANDS[command])))
    example = EXAMPLES[command]
    return f"Choices, as in data=digits:\n\n{choices}\n\nKeys, as in {example}:\n\n{keys}\n"


def _choice_files(runtime: Any) -> dict[str, Path]:
    """Return {group: path of the chosen file}, from the first config folder that has this file."""
    files = {}
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    for folder in reversed(folders):
        for group, choice in runtime.choices.items():
            file = folder / group / f"{choice}.yaml"
            if file.is_file():
                files[group] = file
    return files


def _help_line(row: KeyRow, files: Mapping[str, Path]) -> str:
    """Return a key's line in ``--help``, with the key's comment in the first file that has one."""
    places = ("", row.key.rpartition(".")[0].replace(".", "/"), row.key.split(".")[0])
    texts = (inherited_comment(row.key, files[place], place) for place in places if place in files)
    about = "; ".join(filter(None, (row.values, next(filter(None, texts), ""))))
    key = f"+{row.key}" if row.added else row.key
    line = f"{key}={row.value}".ljust(40)
    return f"{line}  # {about}" if about else line
