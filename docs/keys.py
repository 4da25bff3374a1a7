"""Write the page of all keys: python docs/keys.py > docs/keys.md; a test checks it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from triptych.config.compose import to_plain
from triptych.config.describe import KeyRow, file_comments, inheritance_chain, key_rows, read_yaml
from triptych.config.keys import FREE_GROUPS, Key, find_key
from triptych.config.schema import COMMANDS
from triptych.config.source import CONFIGS, config_groups
from triptych.declare import Role

PAGE = """# Keys

One line per key: name, default, values, and role if not `identity`.
`triptych-train CHOICES --help` prints those of CHOICES, with comments. Keys with a `+` stand in no
file; the plus is optional. "by choice": the group's file decides. Several lines: limits depend on
the choice.

Roles: `identity` (changes the result), `drawing` (how samples are drawn and measured) and
`split` (which items train and validate) are axes. Runs that differ in `data` or `judged` (which
items test) are not compared. `path`, `loading`, `machine`, `reporting`, `output`, `label`, `seed`
and `start` leave the result unchanged, or pair runs.
"""

SHORT = {
    "a whole number of at least": "integer ≥",
    "a whole number from": "integer from",
    "a number of at least": "number ≥",
    "a number above": "number >",
    "a number in": "number in",
    "true or false": "boolean",
}


def keys_page(folders: Sequence[Path] = (CONFIGS,)) -> str:
    """Return ``docs/keys.md``: the keys of each command, then those of each group of files.

    ``folders``: where the groups' files are.
    """
    parts = [PAGE]
    for command, table in COMMANDS.items():
        config = {
            k: v for k, v in read_yaml(CONFIGS / f"{command}.yaml").items() if k != "defaults"
        }
        parts.append(
            _section(f"`triptych-{command}`, at the top", [], key_rows(config, Key(table)))
        )
    for group in config_groups(folders):
        part = group.split("/")[0] in FREE_GROUPS or group.endswith("/base")  # used by other files
        if part or group in ("hydra", "hydra/launcher"):
            continue
        files = sorted(file for at in folders for file in (at / group).glob("*.yaml"))
        keys = (row for file in files for row in _rows(file, group))
        parts.append(
            _section(f"`{group}`", [(file.stem, file_comments(file)[""]) for file in files], keys)
        )
    page = "\n".join(parts)
    for words, short in SHORT.items():
        page = page.replace(words, short)
    return page


def _rows(file: Path, group: str) -> Iterator[KeyRow]:
    """Yield the keys that a file of a group sets or inherits."""
    merged = OmegaConf.merge(*(read_yaml(one) for one in reversed(inheritance_chain(file))))
    config = to_plain(merged, resolve=False)
    config.pop("defaults", None)
    if config:  # a choice called none has no keys
        place = group.replace("/", ".")
        yield from key_rows(config, find_key(place), place)


def _section(title: str, choices: Sequence[tuple[str, str]], keys: Iterable[KeyRow]) -> str:
    """Return the choices of a group and its keys; a key that several files share has one line."""
    merged: dict[tuple[str, str, Role], list[KeyRow]] = {}
    for row in keys:
        merged.setdefault((row.key, row.values, row.role), []).append(row)
    lines = [f"- `{name}`{': ' * bool(text)}{text}" for name, text in choices]
    lines += [""] if lines and merged else []
    for (key, kind, role), same in merged.items():
        values = {row.value for row in same}
        value = f"`{values.pop()}`" if len(values) == 1 else "by choice"
        plus = "+" * all(row.added for row in same)
        lines.append(
            f"- `{plus}{key}` {value}: {kind}" + (f"; {role}" if role != Role.IDENTITY else "")
        )
    return "\n".join([f"## {title}", "", *lines, ""])


if __name__ == "__main__":
    print(keys_page(), end="")
