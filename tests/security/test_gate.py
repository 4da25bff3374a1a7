"""A run's directory is checked before it is read or written: each attack, by each command."""

import json
import os
import random
import shutil
import zipfile

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.study.fake_runs import make_run
from triptych.cli import train
from triptych.cli.report import main
from triptych.cli.resume import print_finished
from triptych.config.compose import compose_command
from triptych.errors import UserError
from triptych.run.checkpoints import newest_readable
from triptych.run.directory import RunDirectory, log_line
from triptych.run.execute import execute
from triptych.run.metrics import MetricsCsv
from triptych.run.prepare import prepare
from triptych.run.read import read_run
from triptych.run.reopen import reopen
from triptych.run.request import resolve
from triptych.run.untrusted import (
    OWN,
    adopt_trained_config,
    check_checkpoint,
    check_init_from,
    check_run,
    read_checkpoint,
)
from triptych.study.render import write_report

from .strangers import RING, TINY, configuration, save_run

pytestmark = pytest.mark.timeout(120)  # a pipe that is opened is waited for without end
PLACES = int(os.environ.get("TRIPTYCH_FUZZ", "40"))  # bytes changed of each file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """``finished(seed)``: the directory of a finished short run, made once."""
    known = {}

    def of(seed=1):
        if seed not in known:
            folder = tmp_path_factory.mktemp(f"seed{seed}") / "run"
            more = ("trainer.log_every_n_steps=1", f"seed={seed}")
            execute(RunDirectory(save_run(folder, configuration(*more))))
            known[seed] = folder
        return known[seed]

    return of


@pytest.fixture
def run(finished, root):
    """Return a copy of that directory, which a test may damage."""
    return shutil.copytree(finished(), root / "copy")


def last(run):
    return run / "checkpoints" / "last.ckpt"


# checkpoints


def test_flipped_bit_in_checkpoint_tensor_is_detected(run):
    with zipfile.ZipFile(last(run)) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    before, after = last(run).read_bytes().split(tensor)
    last(run).write_bytes(before + bytes([tensor[0] ^ 1]) + tensor[1:] + after)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(last(run))


def test_checkpoint_of_other_run_is_refused(run, finished):
    shutil.copy(last(finished(2)), last(run))
    with pytest.raises(UserError, match="another run.*seed: 1 -> 2"):
        read_checkpoint(last(run))
    for name in ("best.ckpt", "last.ckpt"):
        shutil.copy(last(finished(2)), run / "checkpoints" / name)
    with pytest.raises(
        UserError, match="another run.*seed: 1 -> 2"
    ):  # a start over would overwrite them
        newest_readable(RunDirectory(run).checkpoints())


def test_finished_run_without_config_is_not_restarted(run):
    (run / "config.yaml").unlink()
    with pytest.raises(
        UserError, match="run without config.yaml; choose another name, or force=true"
    ):
        same_name(run)
    assert (run / "summary.json").exists()


@pytest.mark.parametrize(
    "change", ["compile=true", "threads=2", "paths.root_dir=/x", "data.root=/x"]
)
def test_checkpoint_matches_run_with_other_machine_keys(run, change):
    """This holds wherever its data are."""
    config = OmegaConf.load(run / "config.yaml")
    config.merge_with_dotlist([change])
    OmegaConf.save(config, run / "config.yaml")
    assert read_checkpoint(last(run))["global_step"] == 2


def test_lost_checkpoint_of_finished_run_is_reported(run, monkeypatch, capsys):
    last(run).unlink()
    monkeypatch.setattr("sys.argv", ["triptych-train", f"resume={run}"])
    train.main()
    out, error = capsys.readouterr()
    assert "bound" in out and "last.ckpt" in error and error.count("\n") == 1
    print_finished(RunDirectory(run))  # The same command was typed again.
    out, error = capsys.readouterr()
    assert "bound" in out and "last.ckpt" in error and error.count("\n") == 1


# Commands: a planted file is refused, or the run is "unreadable", and no outside file is touched.


def resume(run):
    check_run(RunDirectory(run))


def own(run):
    """As for ``resume``, in the process that the user's own command has started."""
    os.environ[OWN] = str(run)
    resume(run)


def same_name(run):
    prepare(resolve(compose_command("train", [*TINY, *RING]), run))


def report(run):
    if (found := read_run(run)).status == "unreadable":
        raise UserError(found.error)


DOORS = {
    "resume": resume,
    "own": own,
    "same name": same_name,
    "trained": lambda run: adopt_trained_config(configuration(f"trained={run}"), {}, []),
    "init_from": lambda run: check_init_from({"init_from": str(run)}),
    "ckpt": lambda run: check_checkpoint(str(run)),
    "guide": lambda run: reopen(str(run)),
    "report": report,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_every_command_refuses_pipes_and_outside_links_in_run(run, root, door):
    (root / "mine.txt").write_text("precious")
    for name in ("config.yaml", "metrics.csv", "checkpoints/x.ckpt", "train.log"):
        shutil.move(run / name, root / "aside") if (run / name).exists() else (
            root / "aside"
        ).touch()
        os.mkfifo(run / name)
        with pytest.raises(UserError, match=f"{name}: not a regular file"):
            door(run)
        (run / name).unlink()
        (run / name).symlink_to(root / "mine.txt")
        with pytest.raises(
            UserError, match=f"{name}: symbolic link to a place outside the run's directory"
        ):
            door(run)
        (run / name).unlink()
        shutil.move(root / "aside", run / name)
    assert (root / "mine.txt").read_text() == "precious"


def test_link_within_run_directory_is_accepted(run):
    (run / "latest").symlink_to("checkpoints")
    (run / "gone").symlink_to("nowhere")
    resume(run)


def test_a_report_is_not_written_through_a_link(run, root):
    (root / "mine.html").write_text("precious")
    (root / "sweep").mkdir()
    shutil.move(run, root / "sweep" / "run")
    (root / "sweep" / "report.html").symlink_to(root / "mine.html")
    write_report(root / "sweep")
    assert (root / "mine.html").read_text() == "precious"


def test_a_lock_is_not_taken_through_a_link(root):
    (root / "mine.txt").write_text("precious")
    (root / "run").mkdir()
    (root / "run" / ".lock").symlink_to(root / "mine.txt")
    with (
        pytest.raises(UserError, match="run: cannot be written"),
        RunDirectory(root / "run").lock(),
    ):
        pass
    assert (root / "mine.txt").read_text() == "precious"


def test_lock_file_that_is_a_pipe_does_not_block(root):
    os.mkfifo(root / ".lock")
    assert RunDirectory(root).holder() is None


# what is shown


EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\rfine"


def test_control_characters_are_escaped_in_report_and_log(root, capsys):
    run = root / "sweep" / f"seed=1{EVIL[:4]}"
    run.mkdir(parents=True)
    record = {"schema": 1, "status": "failed", "error": f"x{EVIL}", "overrides": [f"seed=1{EVIL}"]}
    record |= {"device": EVIL, "choices": {"data": EVIL, EVIL: "x"}}
    (run / "summary.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text(json.dumps({"seed": 1, "x": EVIL}))
    write_report(root / "sweep")
    log_line(RunDirectory(run), f"checkpoint skipped: {EVIL}")  # as of a checkpoint's name
    line = capsys.readouterr().err
    names = ("report.html", "results.csv", f"{run.name}/train.log")
    pages = [(root / "sweep" / name).read_bytes().decode() for name in names]
    for text in (line, *pages, str(RunDirectory(run).summary())):
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text) and "\r" not in text.replace(
            "\r\n", ""
        )
    assert "\\x1b" in line and "\\x1b" in pages[0]


def test_non_utf_8_names_are_escaped_in_report(root):
    """A directory's name is not UTF-8, a record has a surrogate, a sweep's name has ESC."""
    sweep = root / "sw\x1b[31meep"
    run = sweep / os.fsdecode(b"seed=1\xff")
    run.mkdir(parents=True)
    record = {"schema": 1, "status": "failed", "error": "x", "choices": {"data": "\ud800"}}
    (run / "summary.json").write_text(json.dumps(record))
    assert main([str(sweep)]) == 0
    pages = [(sweep / name).read_bytes().decode() for name in ("report.html", "results.csv")]
    assert not any("\x1b" in text for text in pages)
    assert r"seed=1\udcff" in pages[1]


# what libraries read where a command is typed


def test_matplotlibrc_in_current_folder_is_not_read(root, door):
    """It could start LaTeX, and reading a pipe would block."""
    make_run(root / "sweep", "v", 1, 2.0)
    os.mkfifo(root / "matplotlibrc")
    done = door("triptych.cli.report", "sweep", fresh=True)
    assert done.returncode == 0 and (root / "sweep" / "report.html").exists(), done.stderr


# tables


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00step,time\n\x80\x81,x\n",
        b"step,time,val/bpd\n1,x,2.5\n2,0.5,zz\n\xb2,1,1\n" + b"9" * 5000 + b",1,1\n",
        b'step,time\n1,"' + b"x" * 200_000,
        b"step,time\n1\n2,3,4,5\n,,,\n",
        b"",
    ],
)
def test_a_garbled_table_does_not_stop_a_run(root, text):
    from hydra_plugins.triptych_search.sweeper import _read_validation_bounds

    (root / "metrics.csv").write_bytes(text)
    assert len(_read_validation_bounds(root)) <= 1  # what a search looks at while it goes on
    table = MetricsCsv(root / "metrics.csv", float)
    table.truncate_after(100)
    for row in table.rows.values():
        assert all(np.isfinite(float(value)) for value in row.values())
    table.log_metrics({"x": 1.0}, 3)
    table.flush()
    assert "x" in (root / "metrics.csv").read_text().splitlines()[0]


# every byte


def weights(run):
    """Return all that a checkpoint gives; None if it is refused."""
    try:
        found = read_checkpoint(last(run))
    except UserError:
        return None
    tensors = {k: v.numpy().tobytes() for k, v in found["state_dict"].items()}
    rest = ("callbacks", "global_step", "triptych", "optimizer_states")
    return tensors, *(repr(found.get(key)) for key in rest)


def test_a_changed_byte_of_a_checkpoint_is_refused_or_harmless(run):
    before, whole = weights(run), last(run).read_bytes()
    assert before is not None
    choose = random.Random("checkpoint")
    for at in choose.sample(range(len(whole)), PLACES):
        data = bytearray(whole)
        data[at] = (data[at] + choose.randrange(1, 256)) % 256
        last(run).write_bytes(data)
        assert weights(run) in (None, before), f"byte {at}: {whole[at]} -> {data[at]}"
