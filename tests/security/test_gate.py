"""A run's directory is checked before it is read or written: each attack, by each command.

Each byte of a record is changed, too.
"""

import json
import os
import random
import shutil
import zipfile

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.refusal import refused
from tests.study.fake_runs import make_run
from triptych import files
from triptych.cli import train
from triptych.cli.report import main
from triptych.cli.resume import print_finished
from triptych.config.compose import compose_command
from triptych.errors import Unreadable, UserError
from triptych.run.checkpoints import newest_readable
from triptych.run.directory import RunDirectory, log_line, write_atomic
from triptych.run.execute import execute
from triptych.run.items import read_items
from triptych.run.metrics import MetricsCsv
from triptych.run.prepare import prepare
from triptych.run.read import read_run
from triptych.run.reopen import reopen
from triptych.run.request import resolve
from triptych.run.result import Result
from triptych.run.untrusted import (
    OWN,
    adopt_trained_config,
    check_checkpoint,
    check_init_from,
    check_reference,
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


def test_zip_bomb_checkpoint_is_skipped_without_loading(run, monkeypatch, capsys):
    bomb = run / "checkpoints" / "zz.ckpt"
    with (
        zipfile.ZipFile(last(run)) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in source.infolist():
            out.writestr(entry.filename, source.read(entry))
        out.writestr("archive/zeros", bytes(2**24))
    loaded, load = [], torch.load
    monkeypatch.setattr(
        torch, "load", lambda file, **more: loaded.append(file.name) or load(file, **more)
    )
    assert newest_readable(RunDirectory(run).checkpoints()) == last(run)
    assert "zz.ckpt" in capsys.readouterr().err and str(bomb) not in loaded


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


def test_finished_run_with_edited_config_is_refused_and_kept(run):
    """After an edit for a longer training, resuming would start again with the edited length."""
    before = {name: (run / name).read_bytes() for name in ("summary.json", "checkpoints/last.ckpt")}
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("max_steps: 2", "max_steps: 4"))
    with pytest.raises(Unreadable, match="config.yaml: damaged, or from another run; restore it"):
        execute(RunDirectory(run))
    assert {name: (run / name).read_bytes() for name in before} == before


def test_truncated_config_is_reported_instead_of_checkpoint(run):
    """Its only good file would have been removed, or the run called interrupted."""
    whole, damaged = (run / "config.yaml").read_text(), "config.yaml: damaged"
    (run / "config.yaml").write_text("".join(whole.splitlines(keepends=True)[:10]))
    kept = (
        "put back the file that was replaced, or copy the checkpoint to another folder and pass "
        "the copy"
    )
    assert "remove" not in refused(lambda: read_checkpoint(last(run)), kept)
    refused(lambda: check_reference("guide", str(run)), damaged)
    refused(lambda: adopt_trained_config({"trained": str(run)}, {}, []), damaged)
    (run / "summary.json").unlink()  # then either may be wrong
    assert "remove" not in refused(lambda: read_checkpoint(last(run)), "put back the file")


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


@pytest.mark.parametrize("spoil", [os.unlink, lambda path: os.truncate(path, 1000)])
def test_lost_checkpoint_of_finished_run_is_reported(run, monkeypatch, capsys, spoil):
    spoil(last(run))
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


def test_write_atomic_does_not_follow_link_at_temporary_name(root, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (root / "mine.txt").write_text("precious")
    (root / ".summary.json.guessed.tmp").symlink_to(root / "mine.txt")
    with pytest.raises((UserError, OSError)):
        write_atomic(root / "summary.json", "x")
    assert (root / "mine.txt").read_text() == "precious"


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


# summaries


def edit(run, unsealed=True, **test):
    record = json.loads((run / "summary.json").read_text())
    for key, mean in test.items():
        record["test"][key]["mean"] = mean
    if unsealed:
        record.pop("checksum", None)
    (run / "summary.json").write_text(json.dumps(record))


def test_edited_figure_fails_summary_checksum(run):
    edit(run, unsealed=False)
    assert read_run(run).status == "finished"  # the content counts, not how it is laid out
    edit(run, unsealed=False, gap=0.25)
    assert read_run(run).status == "unreadable" and "checksum" in read_run(run).error
    refused(lambda: RunDirectory(run).summary(), "checksum")


def test_summary_without_checksum_must_have_consistent_bound_terms(run):
    edit(run)
    assert read_run(run).status == "finished"
    edit(run, nats_per_dim=-1.2)
    assert "nats_per_dim" in read_run(run).error and read_run(run).status == "unreadable"


def test_summary_without_checksum_must_match_items_npz(run):
    test = json.loads((run / "summary.json").read_text())["test"]
    edit(run, **{key: test[key]["mean"] - 1 for key in ("nats_per_dim", "nats_per_dim_diffusion")})
    assert read_run(run).status == "unreadable" and "items.npz" in read_run(run).error


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "items.npz"])
def test_files_of_other_run_beside_summary_are_unreadable(run, finished, name):
    shutil.copy(finished(2) / name, run / name)
    assert read_run(run).status == "unreadable" and name in read_run(run).error


def test_summary_of_other_run_is_refused_by_config(run, finished):
    """Summary, items and table agree, but the configuration is another run's."""
    for name in ("summary.json", "metrics.csv", "items.npz"):
        shutil.copy(finished(2) / name, run / name)
    refused(lambda: RunDirectory(run).summary(), "config.yaml: damaged, or from another run")
    assert read_run(run).status == "unreadable"


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_failed_summary_of_other_run_is_unreadable(run, finished, status):
    """The failed result has no figures, and would call the setting untrainable."""
    other = RunDirectory(finished(2))
    result = Result.from_run(other.provenance, status, stage="fit", error="x", seed=2)
    shutil.copy(finished(2) / "config.yaml", run / "config.yaml")
    RunDirectory(run).record(result)
    assert read_run(run).status == status
    shutil.copy(finished(1) / "config.yaml", run / "config.yaml")
    assert read_run(run).status == RunDirectory(run).status == "unreadable"


def test_edited_provenance_of_finished_run_is_unreadable(run):
    record = json.loads((run / "provenance.json").read_text())
    (run / "provenance.json").write_text(json.dumps(record | {"git": {"commit": "0" * 40}}))
    assert read_run(run).status == "unreadable" and "provenance.json" in read_run(run).error


def test_checkpoint_of_other_step_than_summary_is_refused(run):
    """Both checkpoints have the run's configuration, but the figure is that of one of them."""
    checkpoint = torch.load(last(run), weights_only=True)
    torch.save(checkpoint | {"global_step": 1}, last(run))
    with pytest.raises(
        UserError, match="last.ckpt: differs from the checkpoint that the run's result reports"
    ):
        read_checkpoint(last(run))


def test_picture_that_does_not_match_digest_is_unreadable(run):
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / "final.png").write_bytes(b"own")
    record = json.loads((run / "summary.json").read_text()) | {"samples": "samples/final.png"}
    record.pop("checksum")
    RunDirectory(run).record(Result.from_json(record))
    assert read_run(run).status == "finished"
    (run / "samples" / "final.png").write_bytes(b"other")
    assert read_run(run).status == "unreadable" and "final.png" in read_run(run).error


def test_digests_of_files_outside_run_are_ignored(run, root, monkeypatch):
    (root / "mine.txt").write_text("precious")
    record = json.loads((run / "summary.json").read_text())
    record["digests"] |= {"../mine.txt": "0", str(root / "mine.txt"): "0"}
    record.pop("checksum")
    (run / "summary.json").write_text(json.dumps(record))
    assert read_run(run).status == "finished"


# every byte


def figures(run):
    """Return all that a report reads from a run's directory; None if it is refused."""
    found = read_run(run)
    if found.status == "unreadable":
        return None
    items = read_items(run)
    shown = {k: v for k, v in vars(found).items() if k not in ("dir", "config")}
    return repr(shown), found.histories(), None if items is None else items.total.tobytes()


def weights(run):
    """Return all that a checkpoint gives; None if it is refused."""
    try:
        found = read_checkpoint(last(run))
    except UserError:
        return None
    tensors = {k: v.numpy().tobytes() for k, v in found["state_dict"].items()}
    rest = ("callbacks", "global_step", "triptych", "optimizer_states")
    return tensors, *(repr(found.get(key)) for key in rest)


@pytest.mark.parametrize(
    "name", ["summary.json", "items.npz", "metrics.csv", "checkpoints/last.ckpt"]
)
def test_a_changed_byte_is_refused_or_harmless(run, name):
    look = weights if name.endswith("ckpt") else figures
    before, whole = look(run), (run / name).read_bytes()
    assert before is not None
    choose = random.Random(name)
    refused = 0
    for at in choose.sample(range(len(whole)), min(PLACES, len(whole))):
        data = bytearray(whole)
        data[at] = (data[at] + choose.randrange(1, 256)) % 256
        (run / name).write_bytes(data)
        after = look(run)
        assert after is None or after == before, f"byte {at}: {whole[at]} -> {data[at]}"
        refused += after is None
    print(f"{name}: {PLACES} places of {len(whole)} bytes, {refused} refused, the rest harmless")
