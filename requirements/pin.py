"""Resolve the ranges of pyproject.toml for this Python, into requirements/pyXY.txt."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PIP = [
    sys.executable,
    "-m",
    "pip",
    "install",
    "--dry-run",
    "--ignore-installed",
    "--quiet",
    "--report",
    "-",
]


def main() -> None:
    """One ``name==version`` a line, for pip's option ``-c``."""
    report = subprocess.run(
        [*PIP, "-e", f"{HERE.parent}[dev]"], check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    found = [item["metadata"] for item in json.loads(report)["install"]]
    # 2.13.0+cpu is a build of 2.13.0: the pin is for either
    pins = {item["name"].lower(): item["version"].partition("+")[0] for item in found}
    pins.pop("triptych")
    version = "{}.{}".format(*sys.version_info)
    text = f"# Python {version}, by `make upgrade`; the ranges are those of pyproject.toml\n"
    text += "".join(f"{name}=={pins[name]}\n" for name in sorted(pins))
    (HERE / f"py{version.replace('.', '')}.txt").write_text(text)


if __name__ == "__main__":
    main()
