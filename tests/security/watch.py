"""Record a process's effects outside one folder, by Python's audit events.

``python watch.py FOLDER LOG MODULE ARGUMENTS...`` runs a module under watch.
"""

import os
import runpy
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
COMMANDS = (
    *(
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
    ),
    *("pty.spawn", "os.startfile"),
)
CODE = ("pickle.find_class", "cpython.run_file")
NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
FILES = (
    *(
        "os.remove",
        "os.rename",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
    ),
    *("os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile", "shutil.unpack_archive"),
)


class Watch:
    """Record in ``seen`` what happens while ``on``; only ``folder`` may be written to."""

    def __init__(self, folder: str):
        self.folder, self.on, self.seen = os.path.realpath(folder), False, []
        sys.addaudithook(self._event)

    def _event(self, name: str, arguments: tuple) -> None:
        if not self.on:
            return
        if name == "open":
            path, mode, flags = arguments
            writing = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & WRITES)
            if not writing or self._inside(path):
                return
        elif name in FILES:
            if all(
                self._inside(a) for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)
            ):
                return
        elif name not in COMMANDS and name not in CODE and name not in NETWORK:
            return
        self.seen.append(f"{name} {arguments!r}"[:300])

    def _inside(self, path) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        real = os.path.realpath(os.fsdecode(path))
        return real == os.devnull or real.startswith(self.folder + os.sep) or real == self.folder


if __name__ == "__main__":
    folder, log, module, *rest = sys.argv[1:]
    watch = Watch(folder)
    sys.argv = [module, *rest]
    watch.on = True
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        watch.on = False
        with open(log, "w") as file:
            file.write("\n".join(watch.seen))
