"""When to stop: by Ctrl-C, by kill, by a SLURM that wants the machine back; or because nothing is finite."""

import math
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from triptych.errors import Diverged, Interrupted
from triptych.run.processes import SIGNALS, WANTED_BACK

APART = 1.0  # seconds at most, if steps are shorter, between two questions of processes whether to stop
NEVER = 2**62  # later than any step
KINDS = ("the loss", "a weight")


class Stop(pl.Callback):
    """Defer a signal to the end of a training step, once all ranks agree.

    Elsewhere, and at a second Ctrl-C, ``Interrupted`` is raised at once: waiting would save nothing. Ranks
    exchange signals at checkpoints, and after ``APART`` seconds or ``log_every_n_steps`` steps, whichever is
    sooner: at each step they would wait for the slowest. A loss that is not finite ends the run: on a CPU, in
    one process, at that step, elsewhere at logged or exchanged steps, and before anything is saved.
    """

    def __init__(self) -> None:
        self._bad: Tensor | None = None  # 2 step + kind of the first that was not finite, on the device
        self.received: int | None = None
        self.began = False  # whether training has
        self._training = False
        self._next = 0  # step at which the processes ask each other again
        self._exchange = (0.0, 0)  # when, and at which step, they last did
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
        """Install the handlers, in place of those that were there."""
        if threading.current_thread() is not threading.main_thread():
            return  # no other thread may
        for number in SIGNALS:
            # ignored, as by nohup: the end of the terminal must not stop the run
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        if self.received is not None and number != signal.SIGINT:
            return  # on its way out: SLURM says it to a job's step and to its script
        again, self.received = self.received is not None, self.received or number
        if again or not self._training:
            raise Interrupted(self.received)

    def agreed(self, trainer: pl.Trainer, look: bool = False) -> int | None:
        """Return the signal if any process received one; Diverged: one saw a number that is not finite."""
        lightning: Any = trainer  # its attributes are set where mypy does not look
        every: int = lightning.log_every_n_steps
        received, first = self.received is not None, NEVER
        if trainer.world_size > 1:
            if not look and trainer.global_step < self._next:
                return None
            (before, at), self._exchange = self._exchange, (time.monotonic(), trainer.global_step)
            pace = int(1e6 * (self._exchange[0] - before)) // max(1, trainer.global_step - at)  # of one step
            bad = NEVER if self._bad is None else int(self._bad)
            message = torch.tensor([int(received), -bad, pace], device=trainer.strategy.root_device)
            answer = lightning.strategy.reduce(message, reduce_op="max").tolist()
            received, first = bool(answer[0]), -int(answer[1])
            # the slowest process's, so that all ask again at the same step
            self._next = trainer.global_step + max(1, min(every, int(1e6 * APART) // max(1, int(answer[2]))))
        elif self._bad is not None and (
            look or self._bad.device.type == "cpu" or trainer.global_step % every == 0
        ):
            first = int(self._bad)
        if first < NEVER:
            raise Diverged(KINDS[first % 2], first // 2)
        return (self.received or int(signal.SIGTERM)) if received else None

    def look_at_weights(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raise Diverged, in all processes, if a weight is not finite: none such is saved."""
        finite = torch.stack([p.detach().isfinite().all() for p in module.parameters()]).all()
        self._note(finite, trainer.global_step, kind=1)
        self.agreed(trainer, look=True)

    def _note(self, finite: Tensor, step: int, kind: int = 0) -> None:
        bad = torch.where(finite, NEVER, 2 * step + kind)
        self._bad = bad if self._bad is None else torch.minimum(self._bad, bad)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        # elsewhere looking would wait for the device
        seen = loss is not None and loss.device.type == "cpu" and math.isfinite(loss.item())
        if loss is not None and not seen:
            step = trainer.fit_loop.epoch_loop.total_batch_idx // trainer.accumulate_grad_batches + 1
            self._note(loss.detach().isfinite(), step)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.listen()  # Lightning's own, set a moment ago, talk to other processes from within a handler
        self.began = self._training = True

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.received is not None and trainer.world_size == 1:
            raise Interrupted(self.received, trainer.global_step)  # the last checkpoint is from before

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._training = False
        if self.received is not None and trainer.world_size == 1:
            raise Interrupted(self.received, trainer.global_step)

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.listen()
        self.received = None  # came too late for all processes to agree on

    def on_exception(self, *_: Any) -> None:
        self._training = False


def requeue(stop: Interrupted) -> None:
    """Requeue this SLURM job if a signal stopped it; submitit does so itself."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or stop.signal not in WANTED_BACK or "SUBMITIT_EXECUTOR" in os.environ:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["scontrol", "requeue", job], timeout=60)
