"""Names for plain data that is read, handed on and written as it is."""

from typing import Any

Config = dict[str, Any]  # a resolved configuration, or a group of one
Checkpoint = dict[str, Any]  # what a checkpoint holds
Entries = dict[str, Any]  # of summary.json, of provenance.json, or of a part of one
