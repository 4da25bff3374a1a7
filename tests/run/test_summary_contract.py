"""One dataclass writes ``summary.json`` and reads it: strict with its own, lenient with a stranger's."""

import json

import pytest

from triptych.run.read import read_run
from triptych.run.summary import Summary

FIGURE = {"mean": 1.5, "stderr": 0.1, "n": 3}
NOTHING = FIGURE | {"mean": 0.0}
BOUND = {"bpd": FIGURE, "bpd_prior": NOTHING, "bpd_reconstruction": NOTHING, "bpd_diffusion": FIGURE}


def test_what_is_written_is_read(tmp_path):
    record = Summary.of(
        {"overrides": ["seed=2"], "choices": {"data": "digits"}}, "finished", seed=2, test=BOUND
    ).record()
    assert record["schema"] == 1 and record["samples"] is None and "val" not in record
    (tmp_path / "summary.json").write_text(json.dumps(record))
    run = read_run(tmp_path)
    assert (run.status, run.seed, run.test["bpd"].mean) == ("finished", 2, 1.5)


def test_a_key_that_is_not_ours_cannot_be_written_and_is_passed_over_when_read(tmp_path):
    with pytest.raises(TypeError, match="tset"):
        Summary.of({}, "finished", tset={"bpd": FIGURE})
    said = Summary.read({"schema": 1, "status": "failed", "error": "x", "theirs": 3})
    assert said.record() == {"schema": 1, "status": "failed", "error": "x"}


@pytest.mark.parametrize(
    ("record", "words"),
    [([], "not a JSON object"), ({"schema": 2}, "schema 2"), ({"schema": 1, "status": "x"}, "status 'x'")],
)
def test_what_is_no_summary_is_refused(record, words):
    with pytest.raises(ValueError, match=words):
        Summary.read(record)
