"""Describe and read a sweep's records: ``sweep.json``, and ``looks.json`` with each look's seeds.

A value of another type makes the whole record unreadable; unknown entries are kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from triptych.declare import Ge, Le, Positive, Whole
from triptych.errors import Unreadable
from triptych.files import read_record
from triptych.run.parsing import error_line
from triptych.run.provenance_file import Entries, check, entries

SWEEP, LOOKS = "sweep.json", "looks.json"
LookCount = Annotated[int, Ge(1), Le(1_000_000)]


class Record:
    """A record that is read as a whole; an empty one if there is none."""

    @classmethod
    def from_dict(cls, record: Entries) -> Self:
        """Parse a file's record; ValueError: a value has another type."""
        return cls(**entries(cls, record, {}))

    @classmethod
    def read_file(cls, file: Path) -> Self:
        """Read a record; Unreadable: it is malformed."""
        if file.is_symlink():  # in an untrusted sweep it may lead to any file
            raise Unreadable(f"{file}: a link; put the file itself there")
        try:
            return cls.from_dict(read_record(file) or {})
        except ValueError as error:
            raise Unreadable(f"{file}: {error_line(error)}") from error


@dataclass(frozen=True)
class Looks(Record):
    """The looks of a sweep until=decided: how many are planned, the last, and the seeds of each."""

    looks: LookCount = 1
    equal_within: Positive | None = None
    look: LookCount = 1
    seeds: Sequence[Sequence[int]] = ()

    @classmethod
    def read(cls, sweep: Path) -> Self:
        """Read a sweep's looks; Unreadable: they are malformed."""
        return cls.read_file(sweep / LOOKS)


@dataclass(frozen=True)
class Tuning(Record):
    """The tuned keys and the chosen points: ``best`` for each setting, ``equal`` for all.

    A point is a list of overrides, one for each key.
    """

    keys: Sequence[str] = ()
    points: Sequence[Sequence[str]] = ()
    equal: Sequence[str] = ()
    best: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    @classmethod
    def from_dict(cls, record: Entries) -> Self:
        """Parse an entry ``tuning``; ValueError: a value has another type, or a point is none."""
        tuning = super().from_dict(record)
        for point in tuning.points:
            if not 0 < len(point) == len(tuning.keys):
                raise ValueError(f"tuning.points: {point} must have a value of each of {tuning.keys}")
        for setting, point in tuning.best.items():
            if point not in tuning.points:
                raise ValueError(f"tuning.best.{setting}={point}: must be one of tuning.points")
        return tuning

    def rule(self, settings: Sequence[str]) -> Entries:
        """Return the entries that determine which runs a sweep over these settings has."""
        return {
            "hydra.sweeper.tune": sorted(self.points),
            "hydra.sweeper.tuning_seeds": sorted(self.seeds),
            "settings": sorted(settings),
        }


@dataclass(frozen=True)
class SweepRecord(Record):
    """The record of a sweep; what is not recorded is empty.

    Attributes:
        command: as it was typed last. shared: overrides that all of its runs have.
        named: keys that differ between its runs, or did in an earlier command; the runs' names have
            them.
        expected: the number of runs. equal_within: the margin of its report.
        until, tuning: the looks and the tuning of a sweep in rounds.
        paper, paper_name, paper_axes, paper_settings, scale, machine: a paper's claims, where the
            sweep tests them.
        claims_changed: whether claims or their seeds were changed once results were known.
        record: the entries of the file.
    """

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
        """Parse a file's record; ValueError: a value has another type."""
        known = entries(cls, record, {}) | {"record": record}
        for name, kind in (("until", Looks), ("tuning", Tuning)):
            if name in known:
                known[name] = kind.from_dict(check(name, Entries, known[name]))
        return cls(**known)

    @classmethod
    def read(cls, sweep: Path) -> Self:
        """Read the record in a sweep's directory; Unreadable: it is malformed."""
        return cls.read_file(sweep / SWEEP)
