"""The processes of a run: ranks, launchers, the lock of a directory, and ends of parents."""

import errno
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from triptych.config.identity import cores, has_gpu
from triptych.errors import Busy, StorageError, UserError
from triptych.files import open_regular, storage_errors

# Variables that make a process one of several ranks. A job that inherited them would train only on
# that rank's share of the data.
DISTRIBUTED = {
    *(
        "RANK",
        "LOCAL_RANK",
        "NODE_RANK",
        "GROUP_RANK",
        "ROLE_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
    ),
    *("MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"),
}
# Environment variables: process id of the parent, and of the sweep's command.
PARENT, SWEEP = "TRIPTYCH_PARENT", "TRIPTYCH_SWEEP"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # signals that end a command
PREEMPTION = (signal.SIGUSR1, signal.SIGUSR2)  # what SLURM's --signal sends
SIGNALS = (*ENDING, *PREEMPTION)  # signals that stop a run
PATIENCE = 60.0  # seconds to wait for rank 0 to prepare the directory, or for SLURM to end a job
MOST_PER_CORE = 4  # processes of a run for each CPU core; more would only fill the memory
GRACE = 30.0  # seconds that a process has to end after SIGTERM
# Errors of file systems without flock, where a lock file of filelock is used instead.
NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
FALLBACK_LOCK = ".lock.owner"  # name of that lock file
_held: list[tuple[Path, IO[str]]] = []  # directories that this process has locked, and lock files


def _launcher_variables() -> tuple[str, ...]:
    """Return the environment variable of the rank, and then those that identify the launch.

    These are the names of variables that torchrun or srun sets.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return (
            "RANK",
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
            "MASTER_ADDR",
            "MASTER_PORT",
        )
    if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        return "SLURM_PROCID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"
    return ("LOCAL_RANK",)  # Rank 0 of a run has started this process, or there is only one.


def rank() -> int:
    """Return this process's rank, before torch.distributed is initialised."""
    return int(os.environ.get(_launcher_variables()[0], 0))


def launch_id() -> str:
    """Return an identifier that all ranks of torchrun or srun share; "" for a single process."""
    return " ".join(f"{name}={os.environ.get(name, '')}" for name in _launcher_variables()[1:])


def check_cpu_processes(trainer: Mapping[str, Any], key: str = "trainer.devices") -> str:
    """Return a warning if a run has more processes on the CPU than this machine has cores, or "".

    UserError: it has more than four a core. ``trainer``: has "devices" and "accelerator".
    """
    accelerator, processes = trainer["accelerator"], str(trainer["devices"])
    if accelerator != "cpu" and (accelerator != "auto" or has_gpu()):
        return ""
    if launch_id():  # srun sets no such variable: each of its processes has cores of its own
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not processes.isdigit() or int(processes) <= cores():
        return ""
    problem = f"{key}={trainer['devices']}: {processes} processes on {cores()} CPU cores"
    most = MOST_PER_CORE * cores()
    if int(processes) > most:
        raise UserError(f"{problem}; use at most {most}")
    return f"{problem}; more than {cores()} are no faster"


def announce_directory(folder: Path) -> None:
    """As rank 0, write the file that tells the other ranks that the directory is ready."""
    if launch_id():
        with storage_errors(folder / ".launch"):
            (folder / ".launch").write_text(launch_id())


def await_announcement(folder: Path) -> None:
    """Wait until rank 0 has announced the directory; UserError if it takes too long."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with suppress(OSError):
            if (folder / ".launch").read_text() == launch_id():
                return
        time.sleep(0.1)
    raise UserError(
        f"{folder}: rank 0 did not prepare it within {PATIENCE:.0f} s; see the error of rank 0"
    )


def is_alive(pid: int) -> bool:
    """Return whether a process with this id exists on this machine."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def end_with_parent() -> None:
    """Have this process stopped when its parent ends, as for a sweep's jobs and a run's ranks."""
    parent = int(os.environ.get(PARENT, 0))
    os.environ[PARENT] = str(os.getpid())  # for the ranks that this process starts
    if parent not in (0, os.getpid()):
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    """Stop this process, first by SIGTERM, as soon as ``parent`` is not its parent any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    # Rank 0 gets time to save a checkpoint; the other ranks have nothing to save.
    time.sleep(GRACE if rank() == 0 else 2.0)
    os._exit(1)


def set_handlers(
    numbers: Iterable[int], handler: Callable[[int, Any], None] | signal.Handlers
) -> None:
    """Set a handler for signals, but keep ignored ones ignored; in other threads, do nothing.

    Under nohup, closing the terminal must not stop a run.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python allows this only in the main thread.
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def parse_local_pid(owner_text: str | None) -> int | None:
    """Return the process id in a text of ``describe_process``; None for another machine."""
    host, _, number = (owner_text or "").rpartition("@")[2].rpartition(" pid ")
    return int(number) if host == socket.gethostname() and number.isdecimal() else None


def stop_descendants(pids: Iterable[int], signal_number: int = signal.SIGTERM) -> None:
    """Send a signal to those of ``pids`` that descend from this process; wait until they end."""
    parents = _parent_pids()
    mine = {pid for pid in pids if _is_descendant(pid, parents)}
    for pid in mine:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)
    until = time.monotonic() + GRACE
    while mine & set(_parent_pids()) and time.monotonic() < until:
        time.sleep(0.2)


def _is_descendant(pid: int, parents: dict[int, int]) -> bool:
    """Return whether a process descends from this one, given {process id: parent's id}."""
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def _parent_pids() -> dict[int, int]:
    """Return {process id: parent's id} of all processes; {} if they cannot be listed."""
    command = ["ps", "-A", "-o", "pid=,ppid=,state="]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return {}
    rows = map(str.split, listed.stdout.splitlines())
    return {int(pid): int(parent) for pid, parent, state, *_ in rows if state[0] != "Z"}


def describe_process() -> str:
    """Return a description of this process: "USER@HOST pid N"."""
    import getpass

    user = str(os.getuid())
    with suppress(OSError, KeyError):
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()} pid {os.getpid()}"


class Lockable:
    """A directory with a lock that one process, or one launch of ranks, can hold at a time."""

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()

    @contextmanager
    def lock(self, timeout: float = 0.0) -> Iterator[None]:
        """Lock the directory within this context; create it if needed.

        Raises Busy, which names the owner, if another process still holds the lock after
        ``timeout`` seconds.
        """
        folder, until = self.path, time.monotonic() + timeout
        while True:
            with self._open_lock() as file, ExitStack() as stack:
                while not _try_lock(file, stack, folder):
                    if time.monotonic() > until:
                        file.seek(0)
                        holder = file.read().strip() or "unknown"
                        raise Busy(
                            f"{folder}: another process is using it ({holder}); wait until it ends"
                        )
                    time.sleep(0.05)
                if not _is_lock_file_in(folder, file):
                    continue  # The former owner has removed or renamed the directory; try again.
                with storage_errors(folder / ".lock"):
                    file.truncate(0)
                    # Bypass the file object's buffer, which closing the file would write again.
                    os.write(file.fileno(), describe_process().encode())
                _held.append((folder, file))
                try:
                    yield
                finally:
                    _held.remove((folder, file))
                return

    def _open_lock(self) -> IO[str]:
        """Open the lock file; create it and the directory if needed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return open(self.path / ".lock", "a+", opener=_open_without_links)
        except OSError as error:
            problem = os.strerror(error.errno or 0)
            raise StorageError(f"{self.path}: cannot be written ({problem})") from error

    def holder(self) -> str | None:
        """Return the description of the process that holds the lock; None if it is free."""
        try:
            file = open_regular(self.path / ".lock")
        except OSError:
            return None
        with file, ExitStack() as stack:
            if _try_lock(file, stack, self.path, shared=True):
                return None
            return file.read().decode(errors="replace").strip() or "unknown"

    def clear_owner(self) -> None:
        """Remove the owner's description from the lock file, unless a process holds the lock."""
        if self.holder() is None:
            with suppress(OSError):
                os.truncate(self.path / ".lock", 0)


def check_lock_is_held(path: Path) -> None:
    """Raise StorageError if ``path`` is in a directory whose lock this process has lost.

    The lock is lost if the directory was moved or deleted.
    """
    for folder, file in _held:
        if path.is_relative_to(folder) and not _is_lock_file_in(folder, file):
            raise StorageError(
                f"{folder}: moved or deleted while the run was using it; the run stops"
            )


def _open_without_links(path: str, flags: int) -> int:
    """Open a file, as the argument ``opener`` of ``open``; raise OSError for a symbolic link.

    A lock file that is a link would be another place's, and taking the lock empties it.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_lock_file_in(folder: Path, file: IO[str]) -> bool:
    """Return whether the open ``file`` is still the lock file in ``folder``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(folder / ".lock"))
    except OSError:
        return False


def _try_lock(file: Any, stack: ExitStack, folder: Path, shared: bool = False) -> bool:
    """Try to lock a directory, with flock on ``file`` or a lock file beside it; True on success."""
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
    from filelock import SoftFileLock, Timeout

    try:
        stack.enter_context(SoftFileLock(folder / FALLBACK_LOCK, timeout=0))
        return True
    except Timeout:
        return False
