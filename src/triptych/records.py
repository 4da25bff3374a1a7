"""Type aliases for plain dictionaries that are read and written without a class."""

from typing import Any

Config = dict[str, Any]  # a resolved configuration, or one of its groups
Checkpoint = dict[str, Any]  # the content of a checkpoint
Entries = dict[str, Any]  # entries of summary.json, provenance.json, or a part of them
