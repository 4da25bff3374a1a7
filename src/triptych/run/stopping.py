"""End a run early: after a signal, for a loss or weight that is not finite, or a dead rank.

When one rank ends, the others see a broken connection, or hang. Every rank except rank 0 writes its
error to a file in the run's directory, and rank 0 reports it.
"""

import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.config.own_code import describe_error
from triptych.errors import Diverged, Interrupted, UserError
from triptych.files import load_object
from triptych.run.directory import RunDirectory
from triptych.run.processes import (
    PREEMPTION,
    SIGNALS,
    SWEEP,
    launch_id,
    rank,
    set_handlers,
)

EXCHANGE = 1.0  # maximum seconds between exchanges of signals, if steps are shorter
NEVER = 2**62  # a number larger than any step
KINDS = ("the loss", "a weight")  # what is not finite; the index is part of a code (see Stop)
PATIENCE = 5.0  # seconds to wait for the errors and exit codes of other ranks
HANG_SECONDS = 10.0  # seconds after which rank 0 counts as hanging if another rank is lost
BROKEN = re.compile(
    r"gloo|nccl|connection (was )?(closed|reset|refused)|"
    r"broken pipe|recvValue|sendBytes|socket timeout",
    re.I,
)


class Stop(pl.Callback):
    """A callback that defers signals until all ranks agree to stop, and detects divergence.

    Outside of training, and at a second Ctrl-C, ``Interrupted`` is raised at once, as waiting would
    save nothing. Ranks exchange received signals at checkpoints, and every ``EXCHANGE`` seconds or
    ``log_every_n_steps`` steps, whichever comes first. An exchange at every step would make all
    ranks wait for the slowest.

    A loss that is not finite ends the run before the next checkpoint is saved. A single process on
    a CPU detects it in the same step; otherwise it is detected at logged or exchanged steps.
    """

    def __init__(self) -> None:
        # Code of the first loss or weight that was not finite: 2 * step + index in ``KINDS``.
        self._first_bad: Tensor | None = None
        self.received: int | None = None
        self.training_began = False  # whether training has started
        self._training = False
        self._next = 0  # step of the next exchange among ranks
        self._exchange = (0.0, 0)  # time and step of the last exchange
        self._earlier: dict[int, Any] = {}  # handlers that ``__exit__`` restores

    def __enter__(self) -> "Stop":
        self._earlier = {number: signal.getsignal(number) for number in SIGNALS}
        self.install_handlers()
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._earlier.items():
                signal.signal(number, handler)

    def install_handlers(self) -> None:
        """Replace the current signal handlers by those of this callback."""
        set_handlers(SIGNALS, self._handle_signal)

    @contextmanager
    def end_of_run(self) -> Iterator[None]:
        """Ignore signals while a result is written; from then on, this callback has no handlers.

        The run has ended, so that nothing is left to interrupt but the loggers' uploads.
        """
        set_handlers(SIGNALS, signal.SIG_IGN)
        try:
            yield
        finally:
            self.__exit__()

    def request_stop(self) -> None:
        """Make the run stop, as if it had received SIGTERM."""
        self.received = self.received or int(signal.SIGTERM)

    def _handle_signal(self, signal_number: int, _: Any) -> None:
        """Remember a signal; outside of training, or at a second Ctrl-C, raise Interrupted."""
        again = self.received is not None
        # Ignore repetitions of one request: SLURM signals both a job's step and its script, and a
        # sweep's workers forward Ctrl-C.
        if again and (signal_number != signal.SIGINT or os.environ.get(SWEEP)):
            return
        self.received = self.received or signal_number
        if again or not self._training:
            raise Interrupted(self.received)

    def agreed_signal(self, trainer: pl.Trainer, force: bool = False) -> int | None:
        """Return the signal to stop with if any rank has received a signal, else None.

        This is a collective operation, so all ranks must call it. Without ``force``, ranks exchange
        information only at scheduled steps. Raises Diverged in all ranks if one has seen a loss or
        weight that is not finite.
        """
        if trainer.world_size > 1:
            received, first = self._exchange_with_ranks(trainer, force)
        else:
            received, first = self.received is not None, self._first_non_finite(trainer, force)
        if first < NEVER:
            raise Diverged(KINDS[first % 2], first // 2)
        if not received:
            return None
        return self.received or int(signal.SIGTERM)

    def _first_non_finite(self, trainer: Any, force: bool) -> int:
        """Return a code for the first loss or weight that is not finite; ``NEVER`` if all are.

        The code is 2 * step + index in ``KINDS``. This is for a single process. Reading it from a
        GPU waits for the device, so on a GPU it is read only at logged steps.
        """
        if self._first_bad is None:
            return NEVER
        logged = trainer.global_step % trainer.log_every_n_steps == 0
        if force or logged or self._first_bad.device.type == "cpu":
            return int(self._first_bad)
        return NEVER

    def _exchange_with_ranks(self, trainer: Any, force: bool) -> tuple[bool, int]:
        """Return whether any rank received a signal, and the lowest code of all ranks.

        The code is that of ``_first_non_finite``.
        """
        step = trainer.global_step
        if not force and step < self._next:
            return False, NEVER
        (before, step_before), now = self._exchange, time.monotonic()
        self._exchange = (now, step)
        pace = int(1e6 * (now - before)) // max(1, step - step_before)  # microseconds of one step
        received = int(self.received is not None)
        bad = NEVER if self._first_bad is None else int(self._first_bad)
        message = torch.tensor([received, -bad, pace], device=trainer.strategy.root_device)
        any_received, first, slowest = trainer.strategy.reduce(message, reduce_op="max").tolist()
        # All ranks use the pace of the slowest, so that they agree on the next step of exchange.
        pause = max(1, min(trainer.log_every_n_steps, int(1e6 * EXCHANGE) // max(1, int(slowest))))
        self._next = step + pause
        return bool(any_received), -int(first)

    def check_weights(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raise Diverged in all ranks if a weight is not finite, so that it is never saved."""
        finite = torch.stack([p.detach().isfinite().all() for p in module.parameters()]).all()
        self._note_non_finite(finite, trainer.global_step, kind=1)
        self.agreed_signal(trainer, force=True)

    def _note_non_finite(self, finite: Tensor, step: int, kind: int = 0) -> None:
        """Remember the first step at which ``finite`` was false, and ``kind``, a KINDS index."""
        bad = torch.where(finite, NEVER, 2 * step + kind)
        if self._first_bad is not None:
            bad = torch.minimum(self._first_bad, bad)
        self._first_bad = bad

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None:
            return
        # On other devices, reading the loss would wait for the device.
        if loss.device.type == "cpu" and math.isfinite(loss.item()):
            return
        step = trainer.fit_loop.epoch_loop.total_batch_idx // trainer.accumulate_grad_batches + 1
        self._note_non_finite(loss.detach().isfinite(), step)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # Replace the handlers that Lightning has just set, which communicate with other ranks.
        self.install_handlers()
        self.training_began = self._training = True

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        # Validation can be interrupted: the last checkpoint was saved before it.
        self._raise_if_single_process(trainer)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._training = False
        self._raise_if_single_process(trainer)

    def _raise_if_single_process(self, trainer: pl.Trainer) -> None:
        """Raise Interrupted if a single process has received a signal."""
        if self.received is not None and trainer.world_size == 1:
            raise Interrupted(self.received, trainer.global_step)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.install_handlers()
        self.received = None  # Drop a signal that came too late in the fit for ranks to agree on.

    def on_exception(self, *_: Any) -> None:
        self._training = False


def requeue(stop: Interrupted) -> None:
    """Requeue this SLURM job after a preemption signal, unless submitit itself does so."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or stop.signal not in PREEMPTION or "SUBMITIT_EXECUTOR" in os.environ:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scontrol", "requeue", job], timeout=60)


def is_broken_connection(error: BaseException) -> bool:
    """Return whether an error only reports that the connection to another rank was lost."""
    if isinstance(error, torch.distributed.DistError):
        return True
    if isinstance(error, RuntimeError | OSError) and BROKEN.search(str(error)):
        return True
    return error.__cause__ is not None and is_broken_connection(error.__cause__)


def failure_line(error: Exception) -> str:
    """Format an error in one line; for unexpected errors, with their type."""
    if isinstance(error, UserError):
        return str(error)
    return describe_error(error)


def write_error_file(run: RunDirectory, error: Exception) -> None:
    """Write this rank's error to a file, for rank 0 to report."""
    if not run.path.is_dir():  # Rank 0 had the same error and has removed the directory.
        return
    with suppress(Exception):  # If this fails, rank 0 reports a lost process without the reason.
        token = launch_id() or str(os.getppid())
        run.write(f".error-{rank()}.json", {"token": token, "error": failure_line(error)})


class Peers:
    """The other ranks of a run on this machine, which rank 0 starts and watches.

    ``record`` writes a failure into the run's result. When the ``with`` block ends, rank 0 stops
    watching.
    """

    def __init__(self, run: RunDirectory, record: Callable[[Exception], None]):
        self.run, self.record = run, record
        self.children: list[subprocess.Popen[Any]] = []
        self._watch_ended = threading.Event()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_watching()

    def start(self, trainer: pl.Trainer) -> None:
        """Start and watch this machine's other ranks, unless a launcher has started them.

        Setting LOCAL_RANK keeps Lightning from starting ranks itself. Its own watcher would kill
        all processes, including rank 0, without reporting the reason.
        """
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if (
            trainer.world_size == 1
            or environment is None
            or environment.creates_processes_externally
        ):
            return
        variables = {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(trainer.world_size),
        }
        os.environ |= variables
        command = [sys.executable, "-m", "triptych.cli.train", f"resume={self.run.path}"]
        for local_rank in range(1, trainer.num_devices):
            ranked = os.environ | variables | {"LOCAL_RANK": str(local_rank)}
            self.children.append(subprocess.Popen(command, env=ranked))
        threading.Thread(target=self._watch, daemon=True).start()

    def stop_watching(self) -> None:
        """Stop watching the other ranks, when only rank 0 has work left."""
        self._watch_ended.set()

    def original_error(self, error: Exception | None) -> Exception | Interrupted:
        """Return the error that made the run end, perhaps that of another rank.

        ``error`` is this rank's error, perhaps only a lost connection; None if this rank hangs.
        """
        self._watch_ended.set()
        if error is not None and not is_broken_connection(error):
            return error
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            report = self._first_report()
            if report is not None:
                number, line = report
                return UserError(f"process {number}: {line} (traceback: {self.run / 'train.log'})")
            for number, child in enumerate(self.children, 1):
                code = child.poll() or 0
                if code < 0:
                    return Interrupted(-code, lost_process=f"process {number}")
                if code > 128:  # The rank has ended itself after a signal.
                    return Interrupted(code - 128, lost_process=f"process {number}")
            time.sleep(0.05)
        return Interrupted(int(signal.SIGKILL), lost_process="another process")

    def end(self) -> None:
        """Kill the remaining ranks: they wait in a collective and have nothing to save."""
        for child in self.children:
            if child.poll() is None:
                child.kill()

    def _first_report(self) -> tuple[int, str] | None:
        """Return (rank, error) of the first error file of this launch; None if there is none."""
        token = launch_id() or str(os.getpid())
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
        """End this process if another rank has failed and this rank hangs in a collective."""
        while not self._watch_ended.wait(0.5):
            codes = [child.poll() for child in self.children]
            if all(code == 0 for code in codes):
                return
            if any(codes) and not self._watch_ended.wait(HANG_SECONDS):
                self._end_hanging_process()

    def _end_hanging_process(self) -> None:
        """Record and print the original error, and exit at once."""
        reason, code = self.original_error(None), 1
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
