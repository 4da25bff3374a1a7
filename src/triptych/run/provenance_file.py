"""Define and read ``provenance.json``; a value of a wrong type makes the whole file unreadable."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from triptych.declare import type_error_line
from triptych.records import Entries
from triptych.run.parsing import parse_time

DERIVED_FIELDS = ("executions", "started", "record")  # fields that ``from_json`` computes
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# {field: path of its entry in the file}, for fields that are not top-level entries of their name
PATHS = {
    "commit": "git.commit",
    "dirty": "git.dirty",
    "fingerprint": "data.fingerprint",
    "split": "data.split",
    "data_changed": "data.changed",
    "description": "data.description",
    "shared": "data.shared",
    "source": "source.path",
    "source_digest": "source.digest",
    "fit_of": "fit_of.run",
    "fit_memory": "fit_of.memory",
}


@dataclass(frozen=True)
class Execution:
    """The machine of one start of a run."""

    host: str = ""
    device: str = ""


@dataclass(frozen=True)
class Provenance:
    """How a run was started: command, code, data and executions; missing entries are empty.

    Attributes:
        id: identifies the run, also if its directory is renamed.
        overrides, choices, command: those of the command that first started it.
        commit, dirty: the git state of this project's code at that time.
        fingerprint, split, data_changed, description, shared: its data. ``shared`` counts items of
            other splits that are also in train.
        aside: new name of the directory of an earlier run that ``force=true`` has replaced.
        source, source_digest: the other run or file from which the run took weights, if any, and
            a digest of these weights.
        fit_of, fit_memory: the run of the same sweep from which the fit was copied, and the peak
            memory of that fit in bytes.
        executions, started: its starts, and the time of the first.
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
    source: str = ""
    source_digest: str = ""
    fit_of: str = ""
    fit_memory: float = 0.0
    executions: Sequence[Execution] = ()
    started: datetime | None = None
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def last(self) -> Execution:
        """The last start; an empty ``Execution`` before the first."""
        return self.executions[-1] if self.executions else Execution()

    @property
    def code(self) -> Entries:
        """The state of code and packages when the run was created."""
        return {name: self.record.get(name) for name in ("git", "own", "packages")}

    @classmethod
    def from_json(cls, record: Entries) -> Self:
        """Parse the content of the file.

        Raises ValueError if a value has a wrong type, or if the id has characters that are not
        allowed.
        """
        starts = check_type("executions", Sequence[Entries], record.get("executions") or [])
        known = {
            "executions": [Execution(**entries_of_class(Execution, start, {})) for start in starts],
            "started": parse_time(check_type("started", str, record.get("started") or "")),
            "record": record,
        }
        provenance = cls(**entries_of_class(cls, record, PATHS) | known)
        if provenance.id and not ID.fullmatch(provenance.id):
            raise ValueError(f"id={provenance.id}: must be letters, digits, - and _")
        return provenance


def entries_of_class(record_class: Any, record: Entries, paths: Mapping[str, str]) -> Entries:
    """Return those entries of a record that are fields of the class ``record_class``.

    ``paths`` is {field: path of its entry}, for fields that are not top-level entries of the same
    name. Raises ValueError if an entry has a wrong type.
    """
    known = {}
    for entry in fields(record_class):
        if entry.name in DERIVED_FIELDS:
            continue
        path = paths.get(entry.name, entry.name)
        value = _value_at(record, path)
        if value is not None:
            known[entry.name] = check_type(path, entry.type, value)
    return known


def _value_at(record: Entries, path: str) -> Any:
    """Return the entry at "key" or "group.key" of a record; None if there is none."""
    group, _, key = path.rpartition(".")
    if not group:
        return record.get(key)
    return check_type(group, Entries, record.get(group) or {}).get(key)


def check_type(key: str, kind: Any, value: Any) -> Any:
    """Return ``value`` if it has the declared type ``kind``; raise ValueError otherwise."""
    line = type_error_line(key, kind, value)
    if line:
        raise ValueError(line)
    return value
