"""Limits of untrusted files; an environment variable raises each.

Nothing that lies in a run's directory, a checkpoint or a data folder can raise one.
"""

import os

from triptych.errors import UserError

MIB = 2**20
LIMITS = {
    "TRIPTYCH_MAX_CONFIG": 4 * MIB,  # bytes of a config.yaml
    "TRIPTYCH_MAX_NODES": 50_000,  # values in a configuration; aliases are refused
    "TRIPTYCH_MAX_JSON": 64 * MIB,  # bytes of summary.json and its like
    "TRIPTYCH_MAX_TABLE": 512 * MIB,  # bytes of metrics.csv
    "TRIPTYCH_MAX_ITEMS": 64 * MIB,  # bytes of the arrays in items.npz, unpacked
    "TRIPTYCH_MAX_DATA": 256 * MIB,  # bytes of an idx file once unpacked
    "TRIPTYCH_MAX_PIXELS": 50_000_000,  # of one image in a data folder
}
DEPTH = 32  # nested lists and groups in a configuration
TEXT = 8192  # characters of one value in it


def limit(name: str) -> int:
    """Return the limit of that name; UserError if its variable is no whole number of at least 1."""
    value = os.environ.get(name)
    if not value:
        return LIMITS[name]
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"{name}={value}: must be a whole number of at least 1")
    return int(value)
