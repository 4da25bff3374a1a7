"""Describe and read ``provenance.json``, as a whole: a value of another type makes all of it unreadable."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from triptych.declare import refusal
from triptych.run.parsing import parse_time

Entries = dict[str, Any]
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
PATHS = {  # of fields that are not top-level entries of their name
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
    """One start of a run: its machine, code, packages and data, and what of them had changed."""

    host: str = ""
    device: str = ""
    sources: str = ""  # a digest of the code
    versions: Entries = field(default_factory=dict)
    data: Entries = field(default_factory=dict)
    changed: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from; what is not recorded is empty.

    Attributes:
        id: of the run, whatever its directory is called.
        overrides, choices, command, commit, dirty: of the command that began it.
        fingerprint, split, data_changed, description, shared: of its data; ``shared``: items also in train.
        aside: the name under which ``force=true`` has kept the run that was here before.
        fit_of, fit_memory: the run of its sweep whose fit it has, and the bytes that this took.
        executions, started: its starts, and when it began. record: the entries of the file.
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
        """Parse a file's record; ValueError: a value has another type, or the id other characters."""
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


def entries(kind: Any, record: Entries, paths: Mapping[str, str]) -> Entries:
    """Return the entries of ``record`` that ``kind`` has fields for; ValueError: one has another type.

    ``paths``: of fields that are not top-level entries of their name.
    """
    known = {}
    for one in fields(kind):
        group, _, key = paths.get(one.name, one.name).rpartition(".")
        node = check(group, Entries, record.get(group) or {}) if group else record
        if one.name not in ("executions", "started", "record") and node.get(key) is not None:
            known[one.name] = check(f"{group}.{key}".lstrip("."), one.type, node[key])
    return known


def check(key: str, kind: Any, value: Any) -> Any:
    """Return ``value`` if it has that type, else raise ValueError."""
    if line := refusal(key, kind, value):
        raise ValueError(line)
    return value
