"""Describe and read ``provenance.json``; a value of another type makes all of it unreadable."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from triptych.declare import refusal
from triptych.run.parsing import parse_time

Entries = dict[str, Any]
DERIVED = ("executions", "started", "record")  # fields that are derived from other entries
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
PATHS = {  # the paths of nested entries, by the names of their fields
    "commit": "git.commit",
    "dirty": "git.dirty",
    "fingerprint": "data.fingerprint",
    "split": "data.split",
    "data_changed": "data.changed",
    "description": "data.description",
    "shared": "data.shared",
    "fit_of": "fit_of.run",
    "fit_memory": "fit_of.memory",
}


@dataclass(frozen=True)
class Execution:
    """One start of a run: its machine, code, packages and data, and a line on changes."""

    host: str = ""
    device: str = ""
    sources: str = ""  # a digest of the code
    versions: Entries = field(default_factory=dict)
    data: Entries = field(default_factory=dict)
    changed: str = ""


@dataclass(frozen=True)
class Provenance:
    """The origin of a run; what is not recorded is empty.

    Attributes:
        id: identifies the run, whatever its directory is called.
        overrides, choices, command, commit, dirty: the command that began it, and its code.
        fingerprint, split, data_changed, description, shared: its data; ``shared`` counts items of
            other splits that are also in train.
        aside: the name under which ``force=true`` has kept the run that was here before.
        fit_of, fit_memory: the run of its sweep whose fit it has, and the bytes that this took.
        executions, started: its starts, and when it began.
        record: all entries of the file.
    """

    id: str = ""
    overrides: Sequence[str] = ()
    choices: Entries = field(default_factory=dict)
    command: Sequence[str] = ()
    commit: str = ""
    dirty: bool = False
    fingerprint: str = ""
    split: str = ""
    data_changed: bool = False
    description: str = ""
    shared: Entries = field(default_factory=dict)
    aside: str = ""
    fit_of: str = ""
    fit_memory: float = 0.0
    executions: Sequence[Execution] = ()
    started: datetime | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def last(self) -> Execution:
        """The last start; an empty one before the first."""
        return self.executions[-1] if self.executions else Execution()

    @classmethod
    def from_json(cls, record: Entries) -> Self:
        """Parse a file's record.

        ValueError: a value has another type, or the id other characters.
        """
        starts = check("executions", Sequence[Entries], record.get("executions") or [])
        known = {
            "executions": [Execution(**entries(Execution, start, {})) for start in starts],
            "started": parse_time(check("started", str, record.get("started") or "")),
            "record": record,
        }
        provenance = cls(**entries(cls, record, PATHS) | known)
        if provenance.id and not ID.fullmatch(provenance.id):
            raise ValueError(f"id={provenance.id}: must be letters, digits, - and _")
        return provenance


def entries(record_class: Any, record: Entries, paths: Mapping[str, str]) -> Entries:
    """Return the entries of a record for which its class has fields; ValueError: another type.

    ``paths``: the paths of nested entries, by the names of their fields.
    """
    known = {}
    for entry in fields(record_class):
        if entry.name in DERIVED:
            continue
        path = paths.get(entry.name, entry.name)
        value = _value_at(record, path)
        if value is not None:
            known[entry.name] = check(path, entry.type, value)
    return known


def _value_at(record: Entries, path: str) -> Any:
    """Return an entry of a record or of one of its groups; None if there is none."""
    group, _, key = path.rpartition(".")
    if not group:
        return record.get(key)
    return check(group, Entries, record.get(group) or {}).get(key)


def check(key: str, kind: Any, value: Any) -> Any:
    """Return ``value`` if it has the declared type ``kind``, else raise ValueError."""
    line = refusal(key, kind, value)
    if line:
        raise ValueError(line)
    return value
