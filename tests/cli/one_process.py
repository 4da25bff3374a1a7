"""Run many commands in one process, each like its console script, and print JSON results.

``TRIPTYCH_ROOT=ROOT python one_process.py < LINES``: a line is a JSON list, the command's module
and its arguments. No run starts.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

from tests import references
from triptych.cli import evaluate, report, sample, train
from triptych.run import jobs, processes

DOORS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "sample": sample.main,
    "report": lambda: sys.exit(report.main()),
}


class Begun(BaseException):
    """Raised where a run's process would have been started."""


def begin(*_: object) -> None:
    raise Begun


def answer(door: str, arguments: list[str], root: Path) -> dict:
    """Return a command's exit code, or "begun" if it was not refused, and what it has done.

    That is: both streams, CPU seconds, new files, and heavy modules.
    """
    GlobalHydra.instance().clear()
    os.environ.pop(processes.PARENT, None)
    sys.argv = [f"triptych-{door}", *arguments]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    out, err = io.StringIO(), io.StringIO()
    began, code = time.process_time(), None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            DOORS[door]()
    except SystemExit as ended:
        code = ended.code
    except Begun:
        code = "begun"
    except BaseException as error:
        code = f"traceback: {error!r}"
    seconds = time.process_time() - began
    left = [str(path) for path in root.rglob("*") if before.get(path) != path.stat().st_mtime_ns]
    for path in {*root.rglob("*")} - {*before}:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    heavy = [name for name in ("torch",) if name in sys.modules]
    said = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "left": left}
    return said | {"seconds": seconds, "heavy": heavy}


if __name__ == "__main__":
    train.os.execv = jobs.run_job = begin  # type: ignore[assignment]
    start = time.process_time()  # imports and all
    references.share_files()
    for line in sys.stdin:
        door, *arguments = json.loads(line)
        found = answer(door, arguments, Path(os.environ["TRIPTYCH_ROOT"]))
        print(json.dumps(found | {"start": start}), flush=True)
