"""Commands as a person types them, for tests that start, kill and watch them."""

import os
import sys
from pathlib import Path

from tests.conftest import TINY


def command(*arguments: str) -> list[str]:
    """``triptych-train`` on a tiny run, without W&B."""
    given = {a.split("=")[0] for a in arguments}
    tiny = [o for o in TINY if o.split("=")[0] not in given]
    return [sys.executable, "-m", "triptych.cli.train", *arguments, "logger=csv", *tiny]


def environment(root: Path, **more: str) -> dict[str, str]:
    """Of such a command: its own root, one thread."""
    return os.environ | {"TRIPTYCH_ROOT": str(root), "OMP_NUM_THREADS": "1"} | more
