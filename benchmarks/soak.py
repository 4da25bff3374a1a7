"""Check that a long sweep of tiny jobs does not leak memory, open files or threads.

    python benchmarks/soak.py [jobs]        200 by default, about 4 s per job and core

It prints a row every tenth of the way. It needs Linux, because it reads /proc.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = (
    "trainer.max_steps=2 trainer.val_check_interval=2 trainer.accelerator=cpu bound.repeats=1 "
    "bound.val_repeats=1 samples.n=0 denoiser.network.width=8 denoiser.network.blocks=1 logger=csv"
).split()


def look(pid: int) -> tuple[float, int, int]:
    """Return (resident MiB, open files, threads) of a process."""
    status = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":" in line
    )
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"])


def main() -> None:
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as root:
        seeds = ",".join(map(str, range(jobs)))
        line = [
            sys.executable,
            "-m",
            "triptych.cli.train",
            "-m",
            "hydra/launcher=local",
            "name=soak",
        ]
        log = open(Path(root) / "output", "wb")
        environment = os.environ | {"TRIPTYCH_ROOT": root, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*line, f"seed={seeds}", *TINY], stdout=log, stderr=log, env=environment
        )
        began, reported = time.monotonic(), -1
        print(f"{'jobs':>5} {'seconds':>8} {'MiB':>7} {'files':>6} {'threads':>8}")
        while process.poll() is None:
            time.sleep(1.0)
            done = len(list(Path(root).glob("logs/sweeps/*/*/summary.json")))
            if done // max(1, jobs // 10) > reported:
                reported = done // max(1, jobs // 10)
                try:
                    memory, files, threads = look(process.pid)
                except (OSError, KeyError):
                    break
                seconds = time.monotonic() - began
                print(f"{done:5d} {seconds:8.0f} {memory:7.1f} {files:6d} {threads:8d}", flush=True)
        done = len(list(Path(root).glob("logs/sweeps/*/*/summary.json")))
        print(f"exit code {process.wait()}, {done} of {jobs} runs finished")
        if process.returncode:
            print((Path(root) / "output").read_text()[-2000:])


if __name__ == "__main__":
    main()
