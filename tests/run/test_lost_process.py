"""One of several processes is killed or fails: an interruption, or a failure with its message."""

import json
import os
import re
import signal
from types import SimpleNamespace

import pytest

from tests.run.commands import command, end, problems, start, wait_for
from tests.run.hooks import at_the_fifth_loss
from tests.run.test_kill import descendants, is_gone
from triptych.errors import Interrupted
from triptych.run.directory import RunDirectory
from triptych.run.stopping import Peers, is_broken_connection

LONG = (
    "trainer=ddp_sim",
    "trainer.max_steps=400",
    "trainer.val_check_interval=20",
    "data.batch_size=48",
)


def lines(text: str) -> list[str]:
    """Return the lines of stderr without Lightning's advice and greeting."""
    known = "sync_dist|Initializing distributed|distributed_backend=|All distributed processes|---"
    return [line for line in problems(text) if not re.search(known, line)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moment", ["at its start", "in the fit"])
def test_killed_ddp_process_interrupts_run_with_one_line(root, moment):
    line = command("name=many", *LONG, "trainer.devices=3")
    folder = RunDirectory(root / "logs" / "runs" / "many")
    process = start(line, root)
    if moment == "in the fit":
        wait_for((folder / "checkpoints" / "last.ckpt").exists, process)
    started = wait_for(
        lambda: len(found := sorted(descendants(process.pid))) == 2 and found, process
    )
    os.kill(started[1], signal.SIGKILL)
    _, said = process.communicate(timeout=150)
    assert process.returncode == 137, said
    told = "interrupted: process 2 was killed (SIGKILL); repeat the same command to resume"
    assert lines(said) == [told], said
    assert folder.status == "interrupted" and not (folder / "summary.json").exists()
    wait_for(lambda: all(map(is_gone, started)), None, 30.0)
    end(line, root)
    assert folder.status == "finished"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_error_of_other_rank_fails_the_run(root):
    line = command("name=many", *LONG, "trainer.devices=2")
    stumble = 'if rank == 1: raise ValueError("the second one stumbles")'
    done = end(line, root, code=1, **at_the_fifth_loss(root, stumble))
    folder = RunDirectory(root / "logs" / "runs" / "many")
    told = "process 1: ValueError: the second one stumbles"
    assert folder.status == "failed" and (folder.summary() or {})["error"].startswith(told)
    assert len(lines(done.stderr)) == 1 and lines(done.stderr)[0].startswith(f"error: {told}"), (
        done.stderr
    )
    assert "the second one stumbles" in (folder / "train.log").read_text()
    assert "retry=true" in end(line, root, code=1).stderr
    end([*line, "retry=true"], root)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rank_zero_waiting_in_library_is_ended_when_peer_dies(root):
    """The first process waits without an error, because a lost process goes unnoticed.

    This happens under NCCL.
    """
    line = command("name=many", *LONG, "trainer.devices=2")
    fault = "os.kill(os.getpid(), signal.SIGSEGV) if rank == 1 else time.sleep(300)"
    done = end(line, root, code=128 + signal.SIGSEGV, **at_the_fifth_loss(root, fault))
    told = "interrupted: process 1 was killed (SIGSEGV); repeat the same command to resume"
    assert lines(done.stderr) == [told]
    assert not (root / "logs" / "runs" / "many" / "summary.json").exists()


def test_is_broken_connection_recognizes_gloo_and_nccl_errors():
    gloo = (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
        "[127.0.0.1]:1"
    )
    broken = (gloo, "NCCL error: remote process exited or there was a network error", "Broken pipe")
    for text in (*broken, "mat1 and mat2 shapes cannot be multiplied", "CUDA out of memory"):
        assert is_broken_connection(RuntimeError(text)) is (text in broken)
        assert not is_broken_connection(ValueError(text))


@pytest.mark.parametrize("code", [-signal.SIGKILL, 128 + signal.SIGKILL])
def test_peers_reason_names_killed_process_and_signal(tmp_path, code):
    """The first process sees a broken connection; exit codes tell who was killed, and how."""
    peers = Peers(RunDirectory(tmp_path), lambda _: None)
    peers.children = [
        SimpleNamespace(poll=lambda: None),
        SimpleNamespace(poll=lambda: code),
    ]
    found = peers.original_error(
        RuntimeError("gloo/transport/tcp/pair.cc:553] Connection closed by peer")
    )
    assert isinstance(found, Interrupted) and (found.signal, found.lost_process) == (
        signal.SIGKILL,
        "process 2",
    )
    assert (
        str(found)
        == "interrupted: process 2 was killed (SIGKILL); repeat the same command to resume"
    )


def test_peers_ignore_error_file_of_earlier_launch(tmp_path):
    (tmp_path / ".error-1.json").write_text(json.dumps({"token": "an earlier one", "error": "old"}))
    (tmp_path / ".error-2.json").write_text(json.dumps({"token": str(os.getpid()), "error": "new"}))
    reason = Peers(RunDirectory(tmp_path), lambda _: None).original_error(
        RuntimeError("gloo: connection closed")
    )
    assert str(reason).startswith("process 2: new")
