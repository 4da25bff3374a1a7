"""``triptych-report --watch``: the report grows with its runs."""

import time

from tests.study.fake_runs import make_run, running
from triptych.cli import report as cli
from triptych.run.read import read_runs
from triptych.study.monitor import watch_runs


def test_a_report_is_written_again_when_runs_have_changed_until_ctrl_c(tmp_path, monkeypatch, capsys):
    """One that cannot be written is a line, and the next is tried."""
    changes = [
        lambda: running(tmp_path, "epsilon", 1),
        lambda: None,
        lambda: make_run(tmp_path, "v", 1, 1.0),
        lambda: make_run(tmp_path, "x0", 1, 1.0),
    ]
    written = []

    def write():
        written.append(len(read_runs(tmp_path)))
        if written[-1] == 2:
            raise OSError("no\nroom")

    def sleep(_):
        if not changes:
            raise KeyboardInterrupt
        changes.pop(0)()

    monkeypatch.setattr(time, "sleep", sleep)
    watch_runs([tmp_path], write)
    assert written == [0, 1, 2, 3]
    assert capsys.readouterr().err == "the report could not be renewed: no room\n"


def test_a_sweep_that_has_no_run_yet_is_waited_for(tmp_path, monkeypatch, capsys):
    def sleep(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert cli.main([str(tmp_path), "--watch"]) == 0
    page = tmp_path / "report.html"
    assert capsys.readouterr().out == f"{page}: renewed as its runs grow; Ctrl-C ends it\n"
    assert "No run has reported a test bound yet" in page.read_text()
