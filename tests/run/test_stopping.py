"""How often several processes exchange whether to stop."""

import signal
from types import SimpleNamespace

import pytest
import torch

from triptych.errors import Diverged, Interrupted
from triptych.run.processes import SWEEP
from triptych.run.stopping import Stop


class Trainer(SimpleNamespace):
    """Two processes, of which the other one answers ``other``.

    ``steps``: those at which they have exchanged signals.
    """

    def __init__(self, clock: list[float], seconds: float):
        super().__init__(world_size=2, log_every_n_steps=20, global_step=0, steps=[], other=0)
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=self.reduce)
        self.clock, self.seconds = clock, seconds

    def reduce(self, asked, reduce_op):
        self.steps.append(self.global_step)
        asked[0] = max(int(asked[0]), self.other)
        return asked

    def step(self) -> None:
        self.global_step += 1
        self.clock[0] += self.seconds


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("seconds", "apart"), [(0.001, 20), (0.25, 4), (3.0, 1)])
def test_stop_is_synchronized_every_second_or_twenty_steps(clock, seconds, apart):
    trainer, stop = Trainer(clock, seconds), Stop()
    for _ in range(200):
        trainer.step()
        assert stop.agreed_signal(trainer) is None
    gaps = {b - a for a, b in zip(trainer.steps[1:], trainer.steps[2:], strict=False)}
    assert gaps == {apart}


def test_stop_of_other_process_is_noticed_within_twenty_steps(clock):
    trainer, stop = Trainer(clock, 0.001), Stop()
    for _ in range(45):
        trainer.step()
        stop.agreed_signal(trainer)
    trainer.other = 1
    assert (
        stop.agreed_signal(trainer) is None and stop.agreed_signal(trainer, force=True) is not None
    )
    waited = 0
    while stop.agreed_signal(trainer) is None:
        trainer.step()
        waited += 1
    assert waited <= 20


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_job_tolerates_sigint_from_sweep_and_worker(monkeypatch, first):
    """The job saves its step on the first signal.

    In a run without a sweep, a second Ctrl-C comes from a user who does not want to wait.
    """
    stop = Stop()
    stop._training = True
    with monkeypatch.context() as patch:
        patch.setenv(SWEEP, "1")
        stop._handle_signal(first, None)
        stop._handle_signal(signal.SIGINT, None)
    with pytest.raises(Interrupted, match=first.name):
        stop._handle_signal(signal.SIGINT, None)


def test_signals_are_ignored_only_while_result_is_written():
    """Loggers are closed after it: Ctrl-C must be able to end a hanging upload."""
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        with stop.end_of_run():
            signal.raise_signal(signal.SIGTERM)
        assert stop.received is None and signal.getsignal(signal.SIGTERM) is before


def test_divergence_is_reported_at_its_own_step(clock):
    trainer, stop = Trainer(clock, 0.001), Stop()
    with pytest.raises(Diverged, match="diverged at step 33"):
        for _ in range(60):
            trainer.step()
            stop._note_non_finite(torch.tensor(trainer.global_step != 33), trainer.global_step)
            stop.agreed_signal(trainer)
