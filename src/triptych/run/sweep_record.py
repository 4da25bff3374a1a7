"""Define and read a sweep's records: ``sweep.json``, and ``looks.json`` with the interim looks.

A look is an interim analysis of a sweep with ``until=decided``. A value of a wrong type makes a
whole record unreadable. Unknown entries are kept in ``record``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from triptych.declare import Ge, Le, Positive, Whole
from triptych.errors import Unreadable
from triptych.files import read_record
from triptych.records import Entries
from triptych.run.parsing import error_line
from triptych.run.provenance_file import check_type, entries_of_class

SWEEP, LOOKS = "sweep.json", "looks.json"
SCHEMA: Final = 1
LookCount = Annotated[int, Ge(1), Le(1_000_000)]


class Record:
    """Base class of records that are read from files; without a file, a record is empty."""

    @classmethod
    def from_dict(cls, record: Entries) -> Self:
        """Build the record from a file's content; ValueError if a value has a wrong type."""
        return cls(**entries_of_class(cls, record, {}))

    @classmethod
    def read_file(cls, file: Path) -> Self:
        """Read the record from a file; raises Unreadable if the file is malformed."""
        if file.is_symlink():  # In an untrusted sweep it could lead to any file.
            raise Unreadable(f"{file}: symbolic link; put the file itself there")
        try:
            return cls.from_dict(read_record(file) or {})
        except ValueError as error:
            raise Unreadable(f"{file}: {error_line(error)}") from error


@dataclass(frozen=True)
class Looks(Record):
    """The interim looks of a sweep with ``until=decided`` (a group-sequential design).

    Attributes:
        schema: version of the file's format; files without it are of version 1.
        looks: number of planned looks.
        equal_within: margin within which settings count as equal, or None.
        look: number of the current look, from 1.
        seeds: the seeds of each look.
        reported: whether the sweep was already reported before its looks were planned.
    """

    schema: Literal[1] = SCHEMA
    looks: LookCount = 1
    equal_within: Positive | None = None
    look: LookCount = 1
    seeds: Sequence[Sequence[int]] = ()
    reported: bool = False

    @classmethod
    def read(cls, sweep: Path) -> Self:
        """Read the looks in a sweep's directory; raises Unreadable if they are malformed."""
        return cls.read_file(sweep / LOOKS)


@dataclass(frozen=True)
class Tuning(Record):
    """The hyperparameters that a sweep tunes, and the chosen values once they are known.

    A point is a choice of values: a list of overrides, one per key in ``keys``. ``points`` are the
    points that are tried with ``seeds``. ``best`` is {setting: its best point}; ``equal`` is the
    point for all settings.
    """

    keys: Sequence[str] = ()
    points: Sequence[Sequence[str]] = ()
    equal: Sequence[str] = ()
    best: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    @classmethod
    def from_dict(cls, record: Entries) -> Self:
        """Parse an entry ``tuning``; ValueError if a value's type or a point is wrong."""
        tuning = super().from_dict(record)
        for point in tuning.points:
            if not 0 < len(point) == len(tuning.keys):
                raise ValueError(
                    f"tuning.points: {point} must have one value for each of {tuning.keys}"
                )
        for setting, point in tuning.best.items():
            if point not in tuning.points:
                raise ValueError(f"tuning.best.{setting}={point}: must be one of tuning.points")
        return tuning

    def plan_entries(self, settings: Sequence[str]) -> Entries:
        """Return what identifies the plan of a tuned sweep over these settings."""
        return {
            "hydra.sweeper.tune": sorted(self.points),
            "hydra.sweeper.tuning_seeds": sorted(self.seeds),
            "settings": sorted(settings),
        }


@dataclass(frozen=True)
class SweepRecord(Record):
    """The record of a sweep (``sweep.json``); missing entries are empty.

    Attributes:
        schema: version of the file's format; files without it are of version 1.
        command: the last command line.
        shared: overrides common to all runs.
        named: keys that are part of the runs' names, as they differ between runs of this command or
            an earlier one.
        expected: the number of runs.
        equal_within: the margin within which the report counts settings as equal, or None.
        until, tuning: the interim looks and the tuning, for a sweep in rounds.
        paper, paper_name, paper_axes, paper_settings, scale, machine: the claims of a paper, if the
            sweep tests them.
        claims_changed: whether claims or their seeds were changed after results were known.
        record: all entries of the file.
    """

    schema: Literal[1] = SCHEMA
    command: Sequence[str] | str = ()
    title: str = ""
    shared: Sequence[str] = ()
    named: Sequence[str] = ()
    expected: Whole = 0
    equal_within: Positive | None = None
    until: Looks | None = None
    tuning: Tuning = field(default_factory=Tuning)
    paper: Entries = field(default_factory=dict)
    paper_name: str = ""
    paper_axes: Entries = field(default_factory=dict)
    paper_settings: str = ""
    scale: Literal["small", "paper"] = "small"
    machine: str = ""
    claims_changed: bool = False
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_dict(cls, record: Entries) -> Self:
        """Parse the content of the file; ValueError if a value has a wrong type."""
        known = entries_of_class(cls, record, {}) | {"record": record}
        for name, kind in (("until", Looks), ("tuning", Tuning)):
            if name in known:
                known[name] = kind.from_dict(check_type(name, Entries, known[name]))
        return cls(**known)

    @classmethod
    def read(cls, sweep: Path) -> Self:
        """Read the record in a sweep's directory; raises Unreadable if it is malformed."""
        return cls.read_file(sweep / SWEEP)
