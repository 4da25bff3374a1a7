"""Arguments that a person types, in any order."""

import os
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import version

import pytest
from omegaconf import OmegaConf

from tests.refusal import refused
from triptych import __main__ as package
from triptych.cli import evaluate, export, report, sample, train
from triptych.cli.arguments import read_command_line
from triptych.cli.outputs import check_output_file
from triptych.config.compose import compose_command
from triptych.config.source import CONFIGS


@pytest.mark.parametrize(
    "typed, overrides, several",
    [
        ("objective=x0,v -m seed=1", "objective=x0,v seed=1", True),
        ("seed=1,2 --multirun", "seed=1,2", True),
        (
            "seed=1 --config-dir /etc objective=v",
            "seed=1 objective=v hydra.searchpath=['file:///etc']",
            False,
        ),
        (
            "seed=1 -cd /etc -m objective=v",
            "seed=1 objective=v hydra.searchpath=['file:///etc']",
            True,
        ),
        ("--config-dir=/etc objective=v", "objective=v hydra.searchpath=['file:///etc']", False),
        ("~guidance seed=1 -m", "~guidance seed=1", True),
    ],
)
def test_options_may_stand_anywhere(typed, overrides, several):
    options = read_command_line(typed.split(), "train")
    assert (options.overrides, options.hydra is not None) == (overrides.split(), several)


@pytest.mark.parametrize(
    "typed, key, value",
    [
        ("trained=null", "trained", None),
        ("--data.root=None", "data.root", None),
        ("paths.log_dir=./null", "paths.log_dir", "./null"),
        ("name=2024_01", "name", "2024_01"),
        ("name=2024", "name", 2024),
        ("name=a=b", "name", "a=b"),
        ("paths.log_dir=/x/objective=v,seed=1", "paths.log_dir", "/x/objective=v,seed=1"),
        ("+condition_from.label=/x/seed=1", "condition_from.label", "/x/seed=1"),
    ],
)
def test_override_values_for_paths_and_names_are_parsed_literally(typed, key, value):
    overrides = read_command_line(["data=folder", typed], "train").overrides
    assert OmegaConf.select(compose_command("train", overrides), key) == value


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "report": report,
    "export": export,
}


@pytest.mark.parametrize("module", [*COMMANDS.values(), package], ids=[*COMMANDS, "package"])
def test_each_command_prints_its_version(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["triptych", "seed=1", "--version"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0 and capsys.readouterr().out == f"triptych {version('triptych')}\n"


def test_the_package_lists_its_commands(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["triptych", "--help"])
    package.main()
    listed = re.findall(r"^triptych-\w+", capsys.readouterr().out, re.MULTILINE)
    scripts = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]["scripts"]
    assert listed == [*scripts] == [f"triptych-{name}" for name in COMMANDS]
    monkeypatch.setattr("sys.argv", ["triptych", "train"])
    with pytest.raises(SystemExit, match="error: python -m triptych only lists the commands"):
        package.main()


def test_an_option_without_its_value_is_refused():
    refused(lambda: read_command_line(["seed=1", "--config-dir"], "train"), "--config-dir")


def show(typed: str) -> float:
    """Return the CPU seconds of a command that shows a configuration, including imports."""
    program = "import sys, time; from triptych.cli.train import main\n"
    program += "try: main()\nfinally: print(time.process_time(), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program, *typed.split()], capture_output=True, text=True
    )
    assert done.returncode == 0 and "max_steps:" in done.stdout, done.stderr
    return float(done.stderr.split()[-1])


def test_cfg_takes_at_most_two_cpu_seconds():
    """The limit allows for a busy machine, which takes twice as long as a quiet one.

    Torch's import alone would take four times as long.
    """
    assert any(show("ablation=samplers --cfg all --resolve") <= 2.0 for _ in range(5))


@pytest.mark.parametrize(
    "name", ["summary.json", "config.yaml", "checkpoints/last.ckpt", "new.json"]
)
def test_out_inside_run_directory_is_refused(prepared, name):
    run = prepared()
    refused(lambda: check_output_file("out", str(run / name)), "; choose another place")
    check_output_file("out", str(run.path.parent / "figures.json"))


def test_out_inside_sweep_directory_is_refused(tmp_path):
    for name in ("sweep.json", "multirun.yaml"):
        (tmp_path / name).write_text("{}")
    refused(
        lambda: check_output_file("items", str(tmp_path / "a/b/c.json")),
        "run's or sweep's directory",
    )


def test_out_must_be_regular_file(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "other.json")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "link.json", tmp_path / "pipe", "/dev/stdout", "/dev/null"):
        refused(
            partial(check_output_file, "out", str(place)),
            "not a regular file; choose another place",
        )


def test_out_inside_run_that_has_lost_a_record_is_refused(finished):
    run = finished()
    (run / "provenance.json").unlink()
    refused(lambda: check_output_file("out", str(run / "summary.json")), "; choose another place")
