"""End a run early: a signal, a number that is not finite, a lost process.

When one of several processes ends, the others see a broken connection, or nothing at all. Each
but the first writes its own error into the run's directory, and the first one reports it.
"""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.config.own_code import describe_error
from triptych.errors import Diverged, Interrupted, UserError
from triptych.files import load_object
from triptych.run.directory import RunDirectory
from triptych.run.processes import PREEMPTION, SIGNALS, SWEEP, launch, rank

APART = 1.0  # most seconds between two exchanges of signals, if steps are shorter
NEVER = 2**62  # later than any step
KINDS = ("the loss", "a weight")
PATIENCE = 5.0  # seconds to wait for errors and exit codes of other processes
STUCK = 10.0  # seconds in which the first process notices the loss of another
BROKEN = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|recvValue|sendBytes|socket timeout",
    re.I,
)


class Stop(pl.Callback):
    """Defer a signal to the end of a training step, once all ranks agree.

    Elsewhere, and at a second Ctrl-C, ``Interrupted`` is raised at once: waiting would save
    nothing. Ranks exchange signals at checkpoints, and after ``APART`` seconds or
    ``log_every_n_steps`` steps, whichever is sooner: at each step they would wait for the slowest.
    A loss that is not finite ends the run: on a CPU, in one process, at that step, elsewhere at
    logged or exchanged steps, and before anything is saved.
    """

    def __init__(self) -> None:
        self._bad: Tensor | None = None  # 2 step + kind of the first number that was not finite
        self.received: int | None = None
        self.began = False  # whether training has begun
        self._training = False
        self._next = 0  # step at which the processes ask each other again
        self._exchange = (0.0, 0)  # time and step of the last exchange
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        self._earlier = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._earlier.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Install the handlers, replacing earlier ones."""
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may set handlers
        for number in SIGNALS:
            # SIGHUP may be ignored, as by nohup: then the end of the terminal must not stop the
            # run.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def request(self) -> None:
        """Ask the run to stop as SIGTERM does, unless a signal already did."""
        self.received = self.received or int(signal.SIGTERM)

    def _receive(self, number: int, _: Any) -> None:
        again = self.received is not None
        # SLURM sends a signal to a job's step and its script, and workers of a sweep forward
        # Ctrl-C.
        if again and (number != signal.SIGINT or os.environ.get(SWEEP)):
            return
        self.received = self.received or number
        if again or not self._training:
            raise Interrupted(self.received)

    def agreed(self, trainer: pl.Trainer, look: bool = False) -> int | None:
        """Return the signal if any process received one; all processes call it together.

        With ``look`` at any step, otherwise at agreed steps. Diverged: a process saw a loss or
        weight
        that is not finite.
        """
        if trainer.world_size > 1:
            received, first = self._ask_all(trainer, look)
        else:
            received, first = self.received is not None, self._first_bad(trainer, look)
        if first < NEVER:
            raise Diverged(KINDS[first % 2], first // 2)
        if not received:
            return None
        return self.received or int(signal.SIGTERM)

    def _first_bad(self, trainer: Any, look: bool) -> int:
        """Return this process's first number that is not finite, encoded with its step.

        Reading it on a GPU waits for the device, so there it is read at logged steps only.
        """
        if self._bad is None:
            return NEVER
        logged = trainer.global_step % trainer.log_every_n_steps == 0
        if look or logged or self._bad.device.type == "cpu":
            return int(self._bad)
        return NEVER

    def _ask_all(self, trainer: Any, look: bool) -> tuple[bool, int]:
        """Return whether any process received a signal, and the first bad number of any process."""
        step = trainer.global_step
        if not look and step < self._next:
            return False, NEVER
        (before, step_before), now = self._exchange, time.monotonic()
        self._exchange = (now, step)
        pace = int(1e6 * (now - before)) // max(1, step - step_before)  # microseconds of one step
        received = int(self.received is not None)
        bad = NEVER if self._bad is None else int(self._bad)
        message = torch.tensor([received, -bad, pace], device=trainer.strategy.root_device)
        any_received, first, slowest = trainer.strategy.reduce(message, reduce_op="max").tolist()
        # The interval follows the slowest process, so that all ask again at the same step.
        pause = max(1, min(trainer.log_every_n_steps, int(1e6 * APART) // max(1, int(slowest))))
        self._next = step + pause
        return bool(any_received), -int(first)

    def check_weights(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raise Diverged, in all processes, if a weight is not finite, before it is saved."""
        finite = torch.stack([p.detach().isfinite().all() for p in module.parameters()]).all()
        self._note(finite, trainer.global_step, kind=1)
        self.agreed(trainer, look=True)

    def _note(self, finite: Tensor, step: int, kind: int = 0) -> None:
        bad = torch.where(finite, NEVER, 2 * step + kind)
        if self._bad is not None:
            bad = torch.minimum(self._bad, bad)
        self._bad = bad

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        # On other devices, reading the loss would wait for them.
        if loss.device.type == "cpu" and math.isfinite(loss.item()):
            return
        step = trainer.fit_loop.epoch_loop.total_batch_idx // trainer.accumulate_grad_batches + 1
        self._note(loss.detach().isfinite(), step)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Lightning's handlers, which it has just set, communicate with other processes.
        self.listen()
        self.began = self._training = True

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop_alone(trainer)  # The last checkpoint was saved before this validation.

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._training = False
        self._stop_alone(trainer)

    def _stop_alone(self, trainer: pl.Trainer) -> None:
        if self.received is not None and trainer.world_size == 1:
            raise Interrupted(self.received, trainer.global_step)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.listen()
        self.received = None  # The signal came too late for all processes to agree.

    def on_exception(self, *_: Any) -> None:
        self._training = False


def requeue(stop: Interrupted) -> None:
    """Requeue this SLURM job if a signal stopped it; submitit does so itself."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or stop.signal not in PREEMPTION or "SUBMITIT_EXECUTOR" in os.environ:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scontrol", "requeue", job], timeout=60)


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, only reports the loss of another rank."""
    if isinstance(error, torch.distributed.DistError):
        return True
    if isinstance(error, RuntimeError | OSError) and BROKEN.search(str(error)):
        return True
    return error.__cause__ is not None and is_broken_connection(error.__cause__)


def failure_line(error: Exception) -> str:
    """Format an error in one line; unexpected errors with their type."""
    if isinstance(error, UserError):
        return str(error)
    return describe_error(error)


def leave_error(run: RunDirectory, error: Exception) -> None:
    """Write this rank's error for rank 0 to read."""
    if not run.path.is_dir():  # the first process was refused, too, and has removed the directory
        return
    # Without this file, the first process reports the loss without its reason.
    with suppress(Exception):
        token = launch() or str(os.getppid())
        run.write(f".error-{rank()}.json", {"token": token, "error": failure_line(error)})


class Peers:
    """The other ranks of a run, which its first process starts and watches.

    ``record`` writes a failure into the run's summary. Watching ends with the context.
    """

    def __init__(self, run: RunDirectory, record: Callable[[Exception], None]):
        self.run, self.record = run, record
        self.children: list[subprocess.Popen[Any]] = []
        self._settled = threading.Event()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_watching()

    def start(self, trainer: pl.Trainer) -> None:
        """Start and watch this machine's other ranks, unless they have been started otherwise.

        Lightning starts none if LOCAL_RANK is set: its own watch would kill all processes,
        including the
        first one, without a message.
        """
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if trainer.world_size == 1 or environment is None or environment.creates_processes_externally:
            return
        os.environ |= {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(trainer.world_size),
        }
        command = [sys.executable, "-m", "triptych.cli.train", f"resume={self.run.path}"]
        for local_rank in range(1, trainer.num_devices):
            ranked = os.environ | {"LOCAL_RANK": str(local_rank)}
            self.children.append(subprocess.Popen(command, env=ranked))
        threading.Thread(target=self._watch, daemon=True).start()

    def stop_watching(self) -> None:
        """Stop watching, because only the first process works from here on."""
        self._settled.set()

    def reason(self, error: Exception | None) -> Exception | Interrupted:
        """Return the error that ended the run.

        ``error``: this rank's, which may only be a lost connection.
        """
        self._settled.set()
        if error is not None and not is_broken_connection(error):
            return error
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            report = self._first_report()
            if report is not None:
                number, line = report
                return UserError(f"process {number}: {line} (traceback: {self.run / 'train.log'})")
            for number, child in enumerate(self.children, 1):
                code = child.poll()
                if code is not None and code < 0:
                    return Interrupted(-code, lost=f"process {number}")
            time.sleep(0.05)
        return Interrupted(int(signal.SIGKILL), lost="another process")

    def end(self) -> None:
        """Kill the remaining ranks: they wait in a collective and have nothing to save."""
        for child in self.children:
            if child.poll() is None:
                child.kill()

    def _first_report(self) -> tuple[int, str] | None:
        """Return the number of the rank that first left an error of this launch, and the error."""
        token = launch() or str(os.getpid())
        reports = []
        for path in self.run.path.glob(".error-*.json"):
            record = load_object(path)
            if record.get("token") == token:
                number = int(path.stem.rpartition("-")[2])
                reports.append((path.stat().st_mtime, number, str(record["error"])))
        if not reports:
            return None
        _, number, line = min(reports)
        return number, line

    def _watch(self) -> None:
        """End this process if it hangs in a collective with a rank that has ended."""
        while not self._settled.wait(0.5):
            codes = [child.poll() for child in self.children]
            if all(code == 0 for code in codes):
                return
            if any(codes) and not self._settled.wait(STUCK):
                self._end_stuck()

    def _end_stuck(self) -> None:
        reason, code = self.reason(None), 1
        try:
            if isinstance(reason, Interrupted):
                code = 128 + reason.signal
                print(reason, file=sys.stderr, flush=True)
            else:
                print(f"error: {reason}", file=sys.stderr, flush=True)
                self.record(reason)
        finally:
            self.end()
            os._exit(code)
