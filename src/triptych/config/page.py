"""``docs/keys.md``: ``python -m triptych.config.page > docs/keys.md``; a test says whether it is current."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from triptych.config.describe import KeyRow, chain, comment, comments, key_rows, read_yaml
from triptych.config.folders import CONFIGS
from triptych.config.keys import FREE_GROUPS, Key, find_key
from triptych.config.schema import COMMANDS
from triptych.declare import Role

PAGE = """# Keys

Every key that a command takes: its values, what the key is to a run (its role), and its comment.
`python -m triptych.config.page > docs/keys.md` makes this page from the declarations: the annotation of an
argument where a class takes it, else [`config/schema.py`](../src/triptych/config/schema.py). A key with a `+`
is listed by no file, and is typed with the plus.

An axis of a comparison is `identity` (changes the result), `drawing` (how samples are drawn and measured) or
`split` (which items train and validate). Runs that differ in `data` or `judged` (which items test) are not
compared. `path`, `loading`, `machine`, `reporting`, `output`, `label`, `seed` and `start` leave the result as
it is, or pair runs.
"""


def keys_page(folders: Sequence[Path] = (CONFIGS,)) -> str:
    """``docs/keys.md``: the keys of each command, then those of each group's files in ``folders``."""
    parts = [PAGE]
    for command, table in COMMANDS.items():
        file = CONFIGS / f"{command}.yaml"
        own = key_rows(
            {key: value for key, value in read_yaml(file).items() if key != "defaults"}, Key(table)
        )
        rows = [(row._replace(comment=comment(row.key, file)), "") for row in own]
        parts.append(_section(f"`triptych-{command}`, at the top", [], rows))
    groups = {file.parent.relative_to(at).as_posix() for at in folders for file in at.rglob("*.yaml")}
    for group in sorted(groups - {".", "hydra", "hydra/launcher"}):
        if group.split("/")[0] in FREE_GROUPS or group.endswith("/base"):  # parts of other files
            continue
        files = sorted(file for at in folders for file in (at / group).glob("*.yaml"))
        rows = [(row, file.stem) for file in files for row in _of_file(file, group)]
        parts.append(_section(f"`{group}`", [(file.stem, comments(file)[""]) for file in files], rows))
    return "\n".join(parts)


def _of_file(file: Path, group: str) -> Iterator[KeyRow]:
    """The keys that one file of a group sets, or takes over from another, with their comments."""
    merged = OmegaConf.merge(*(read_yaml(one) for one in reversed(chain(file))))
    config: dict[str, Any] = OmegaConf.to_container(merged)  # type: ignore[assignment]
    config.pop("defaults", None)
    if not config:  # a choice named none
        return
    place = group.replace("/", ".")
    for row in key_rows(config, find_key(place), place):
        yield row._replace(comment=comment(row.key, file, group))


def _section(title: str, choices: Sequence[tuple[str, str]], rows: Sequence[tuple[KeyRow, str]]) -> str:
    """One table; keys that are the same in several files have one line."""
    lines = [f"## {title}", ""]
    lines += [f"- `{name}`{': ' * bool(text)}{text}" for name, text in choices]
    merged: dict[tuple[str, str, Role], list[tuple[KeyRow, str]]] = {}
    for row, choice in rows:
        merged.setdefault((row.key, row.values, row.role), []).append((row, choice))
    if merged:
        lines += [""] * bool(choices) + ["| key | default | values | role | |", "|---|---|---|---|---|"]
    with_keys = sum(name != "none" for name, _ in choices)
    for (key, takes, role), several in merged.items():
        values = _by_choice([(f"`{row.value}`", choice) for row, choice in several], with_keys)
        text = _by_choice([(row.comment, choice) for row, choice in several], 0)
        cells = [f"`{'+' * all(row.added for row, _ in several)}{key}`", values, takes, role, text]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _by_choice(entries: Sequence[tuple[str, str]], choices: int) -> str:
    """What all files say, or each thing that is said with the files that say it."""
    by: dict[str, list[str]] = {}
    for text, choice in entries:
        by.setdefault(text, []).append(choice)
    alike = len(by) == 1 and len(entries) >= choices
    return ", ".join(text + ("" if alike else f" ({', '.join(names)})") for text, names in by.items() if text)


if __name__ == "__main__":
    print(keys_page(), end="")
