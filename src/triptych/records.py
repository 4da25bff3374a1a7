"""Names for plain data that is read, handed on and written as it is."""

from typing import Any

Config = dict[str, Any]  # a resolved configuration, or one of its groups
Checkpoint = dict[str, Any]  # what a checkpoint holds
Entries = dict[str, Any]  # entries of summary.json, provenance.json, or a part of them
