"""A run is rebuilt from its directory alone, even if the configs have changed since."""

import json
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

import triptych
from tests.run.commands import command, end
from triptych.errors import mask_password
from triptych.run import provenance
from triptych.run.directory import RunDirectory

REPOSITORY = Path(triptych.__file__).parents[2]


def commit(folder: Path) -> list[str]:
    """Make a git repository of ``folder`` with a first commit of everything in it."""
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e"]
    for line in (["init", "-q"], ["add", "-f", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *line], check=True)
    return git


def test_code_that_git_does_not_know_yet_is_noted(root):
    repository = root / "repository"
    package = repository / "src" / "triptych"
    package.mkdir(parents=True)
    (package / "old.py").write_text("old = 1\n")
    commit(repository)
    assert not provenance.git_state(repository, "src", "configs")["dirty"]
    (repository / "notes.txt").write_text("no code")
    assert not provenance.git_state(repository, "src", "configs")["dirty"]
    (package / "my_net.py").write_text("new = 2\n")
    assert provenance.git_state(repository, "src", "configs")["dirty"]


def test_git_state_reads_changes_that_are_not_utf_8(root):
    repository = root / "repository"
    file = repository / "src" / "names.txt"
    file.parent.mkdir(parents=True)
    file.write_text("cafe\n")
    commit(repository)
    file.write_bytes(b"caf\xe9\n")
    assert "caf\ufffd" in provenance.git_state(repository, "src")["diff"]


def test_git_state_omits_ignored_hidden_and_secret_files(root):
    """Changes of hidden files, and of files named after a key or a password, are not recorded."""
    package = root / "repository" / "src" / "triptych"
    secrets = ".env .envrc .ssh/id server.pem id_rsa secrets.yaml wandb-token.txt API_KEY".split()
    code = ["tokens.py", "password_net.py", "secretary.py", "net.yaml"]
    for content in ("old\n", "KEY=hunter2\n"):
        for name in secrets:
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(content)
        for name in code:
            (package / name).write_text(content.replace("KEY=hunter2", "new"))
        if content == "old\n":
            commit(root / "repository")
    state = provenance.git_state(root / "repository", "src")
    assert (
        "hunter2" not in state["diff"]
        and state["diff"].count("+new") == len(code)
        and state["dirty"]
    )


def test_a_password_in_a_url_is_masked(root, monkeypatch):
    text = "a=postgresql://me:se@cret@host/db?x=1 http://host/@here"
    assert mask_password(text) == "a=postgresql://***@host/db?x=1 http://host/@here"
    url = "https://me:hun%40ter2@host:5000/x?a=b@c"
    monkeypatch.setattr("sys.argv", ["triptych-train", "x"])
    monkeypatch.setattr(
        "sys.orig_argv", ["python", "triptych-train", f"logger.mlflow.tracking_uri='{url}'"]
    )
    record = provenance.new_provenance(
        RunDirectory(root / "run"), [f"logger.mlflow.tracking_uri={url}"], {}, {}
    )
    assert record["overrides"] == ["logger.mlflow.tracking_uri=https://***@host:5000/x?a=b@c"]
    assert record["command"][1] == "logger.mlflow.tracking_uri='https://***@host:5000/x?a=b@c'"


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("-P /x/triptych-train", "triptych-train"),
        ("-m triptych.cli.train", "triptych.cli.train"),
        ("", "python"),
    ],
)
def test_provenance_command_is_the_typed_one(words, program, monkeypatch):
    """Hydra's arguments may differ: ``fast_dev_run=5`` becomes two of them, ``false`` none."""
    typed = ["trainer.fast_dev_run=5", "trainer.fast_dev_run=false"] if words else []
    monkeypatch.setattr("sys.orig_argv", ["/bin/python", *words.split(), *typed])
    monkeypatch.setattr("sys.argv", [program, "debug=fdr", "trainer.max_steps=5", "seed=1"])
    assert provenance.command() == [program, *typed]


def test_a_package_of_ones_own_is_recorded_by_its_repository(root, monkeypatch):
    """A package outside a repository, or ignored by git, has no commit."""
    kept, loose, hidden = (
        root / "kept" / "lab_kept",
        root / "lab_loose.py",
        root / "kept" / "lab_hidden",
    )
    for file in (kept / "net.py", loose, root / "kept" / "lab_file.py"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("class Net: ...\n")
    git = ["git", "-C", str(root / "kept"), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    (root / "kept" / ".gitignore").write_text("lab_hidden\n")
    shutil.copytree(kept, hidden)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    (kept / "more.py").write_text("new = 1\n")
    (kept / "net.py").write_text("class Net: pass\n")
    for folder in (root, root / "kept"):
        monkeypatch.syspath_prepend(str(folder))
    names = (
        "lab_kept.net.Net lab_loose.Net lab_hidden.net.Net lab_file.Net triptych.networks.mlp.MLP"
    )
    config = {"parts": [{"_target_": name} for name in (*names.split(), "torch.optim.AdamW")]}
    own = provenance.new_provenance(RunDirectory(root / "run"), [], {}, config)["own"]
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert own.keys() == {"lab_kept", "lab_loose", "lab_hidden", "lab_file"}
    assert own["lab_file"]["commit"] == own["lab_kept"]["commit"] == head.strip()
    assert "+class Net: pass" in own["lab_kept"]["diff"] and own["lab_kept"]["dirty"]
    assert own["lab_loose"] == own["lab_hidden"] == {}


@pytest.mark.slow
def test_resume_works_after_configs_changed(root):
    """A copy of the repository is used, whose configs change and vanish before the run ends."""
    copy = root / "copy"
    for folder in ("src", "configs"):
        shutil.copytree(REPOSITORY / folder, copy / folder)
    there = {"PYTHONPATH": str(copy / "src")}
    end(command("name=mine"), root, **there)
    folder = root / "logs" / "runs" / "mine"
    first = json.loads((folder / "summary.json").read_text())
    digits = copy / "configs" / "data" / "digits.yaml"
    digits.write_text(digits.read_text().replace("val_size: 150", "val_size: 10"))
    assert "data.val_size: 150 -> 10" in end(command("name=mine"), root, code=1, **there).stderr
    shutil.rmtree(copy / "configs")
    (folder / "summary.json").unlink()
    for checkpoint in (folder / "checkpoints").iterdir():
        checkpoint.unlink()  # from the start
    end([*command()[:3], f"resume={folder}"], root, **there)
    second = json.loads((folder / "summary.json").read_text())
    for key in ("test", "val", "train", "overrides", "choices", "seed"):
        assert first[key] == second[key], key
    record = json.loads((folder / "provenance.json").read_text())
    for key in ("id", "overrides", "choices", "started", "git", "packages"):
        assert key in record, key
    assert record["command"][1:] == command("name=mine")[3:]
    executions = record["executions"]
    assert [e["step"] for e in executions] == [0, 0] and executions[0]["device"] == "cpu"
    assert executions[0]["host"] == socket.gethostname() and executions[0]["world_size"] == 1


@pytest.mark.slow
def test_a_cell_records_the_command_of_its_sweep_and_each_execution(root):
    """The launcher's workers have commands of their own, and a path needs quotes."""
    place = root / "with = and ,"
    line = command("-m", "hydra/launcher=submitit_local", "seed=1", f"paths.data_dir={place}")
    end(line, root)
    [record] = root.rglob("provenance.json")
    assert json.loads(record.read_text())["command"][1:] == line[3:]
    (record.parent / "summary.json").unlink()
    end(line, root)
    assert [e["step"] for e in json.loads(record.read_text())["executions"]] == [0, 6]
