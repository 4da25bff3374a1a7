"""A real SLURM on this machine for a test, with its own munged, controller, node and free ports.

Needs root and the packages ``slurm-wlm`` and ``munge``; nothing outside of its folder is touched.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
MinJobAge=300
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")


def missing() -> str:
    """Return why no cluster can be started here, or ""."""
    if os.name != "posix" or os.geteuid() != 0:
        return "SLURM's daemons need root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [p for p in PROGRAMS if shutil.which(p, path=path) is None]
    return (
        f"not installed: {', '.join(absent)} (Debian: apt-get install slurm-wlm munge)"
        if absent
        else ""
    )


class Cluster:
    """``with Cluster(folder) as cluster: cluster.run("sinfo")``.

    RuntimeError, with the logs, if it does not start.
    """

    def __init__(self, folder: Path, cpus: int = 2):
        self.folder, self.cpus = folder, cpus
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        }

    def __enter__(self) -> "Cluster":
        folder = self.folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 3 // 4
        controller, node = _free_ports(2)
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                host=host,
                folder=folder,
                controller=controller,
                node=node,
                cpus=self.cpus,
                memory=memory,
            )
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {n: f"{folder}/munge.{n}" for n in ("socket", "pid", "log", "seed")}
        flags = [f"--{name}-file={files[name]}" for name in ("pid", "log", "seed")]
        self.run("munged", "--force", f"--key-file={key}", f"--socket={files['socket']}", *flags)
        self.run("slurmctld")
        self.run("slurmd", "-N", host)
        until = time.monotonic() + 30
        while "idle" not in self.run("sinfo", "-h", "-o", "%T", check=False):
            if time.monotonic() > until:
                logs = "".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
                self.__exit__()
                raise RuntimeError(f"the node did not come up:\n{logs}")
            time.sleep(0.5)
        return self

    def run(self, *line: str, check: bool = True) -> str:
        """Return the output of a command that talks to this cluster."""
        done = subprocess.run(
            line, capture_output=True, text=True, env=self.environment, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(line)}: {done.stdout}{done.stderr}")
        return done.stdout

    def __exit__(self, *_: object) -> None:
        daemons = [_pid(self.folder / f"{name}.pid") for name in ("slurmd", "slurmctld", "munge")]
        self.run("scancel", "--full", "--user=root", check=False)
        until = time.monotonic() + 15
        while self.run("squeue", "-h", check=False).strip() and time.monotonic() < until:
            time.sleep(0.5)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in filter(None, daemons):
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            time.sleep(2.0)


def _pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
