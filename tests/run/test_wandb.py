"""W&B has the figures of metrics.csv at their training steps, and never stops a run."""

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run import accidents
from tests.run.accidents import stop_after, stopped
from tests.run.commands import command, end, environment, start, wait_for
from tests.run.wandb_files import directories, last_step, records, rows
from tests.run.wandb_server import KEY, Server
from triptych.run import wandb as ours_of_wandb
from triptych.run.checkpoints import CheckpointSaver
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.loggers import build_loggers, import_libraries
from triptych.run.metrics import flatten_metrics, grouping_settings
from triptych.run.provenance_file import Provenance
from triptych.run.wandb import describe_run

TIMES = {"time", "train/images_per_second"}  # of a machine: no two starts have the same
BANDS = ((-10.0, -6.4), (-6.4, -2.8), (-2.8, 0.8), (0.8, 4.4), (4.4, 8.0))  # of the ring's gammas
PLAUSIBLE = "f" * 40


def with_wandb(*arguments: str) -> list[str]:
    return [a.replace("logger=csv", "logger=wandb") for a in command(*arguments)]


def table(folder) -> dict[int, dict[str, float]]:
    """Return metrics.csv as {step: {name: value}}."""
    found = accidents.rows(folder)
    return {int(row.pop("step")): {k: float(v) for k, v in row.items() if v} for row in found}


def merged(rows: list[dict]) -> dict[int, dict]:
    """Return {training step: figures} of W&B's rows; repeated rows of a resumed run are equal."""
    steps: dict[int, dict] = {}
    for row in rows:
        into = steps.setdefault(row["trainer/global_step"], {})
        for name in {*row} & {*into} - TIMES:
            assert (
                row[name] == into[name] or name[0] == "_" or ("/" in name and "samples" in name)
            ), name
        into.update(row)
    return dict(sorted(steps.items()))


def check_same(
    ours: dict[int, dict[str, float]], theirs: list[dict], kills: tuple[int, ...] = ()
) -> None:
    """Check that W&B has the steps and values of metrics.csv, and no other steps.

    Figures that a run has once are no curves.
    ``kills``: steps from which killed runs went on. Of the last two seconds before, W&B may lack
    rows.
    """
    steps = merged(theirs)
    late = {
        step
        for at in kills
        for step in ours
        if step <= at and ours[at]["time"] - ours[step]["time"] < 2
    }
    assert {*ours} - late <= {*steps} <= {*ours}
    for step, row in ours.items():
        if step not in steps or step in late:
            continue
        curves = {
            k: v for k, v in row.items() if not k.startswith(("test/", "final/")) and k not in TIMES
        }
        assert {k: steps[step][k] for k in curves} == pytest.approx(curves, rel=1e-12)
        assert steps[step]["time"] >= 0
    assert not [name for row in theirs for name in row if name.startswith(("test/", "final/"))]


def only(folder):
    [found] = directories(folder / "wandb")
    return found


def sync(server: Server, root, *paths) -> None:
    """Run the command that a user types to upload, with the stand-in as the server."""
    line = [sys.executable, "-m", "wandb", "sync", *map(str, paths)]
    there = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}
    environ = environment(root, **there)
    done = subprocess.run(line, capture_output=True, text=True, env=environ, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr


def steps_done(folder) -> int:
    """Return the last step that a checkpoint has: that of the table's last validation."""
    if not list(folder.glob("checkpoints/last.ckpt")):
        return 0
    return max((step for step, row in table(folder).items() if "val/bpd" in row), default=0)


def test_wandb_history_is_complete_after_failure_and_resume(prepared):
    """In one process, the run stops after step 8, and its last checkpoint has step 6."""
    run = stop_after(prepared("trainer.max_steps=12", csv=False), 8)
    assert last_step(only(run.path)) < 8
    assert execute(run)["status"] == "finished"
    both = directories(run / "wandb")
    assert len(both) == 2 and {path.name.split("-")[3] for path in both} == {run.provenance.id}
    check_same(table(run.path), rows(*both))
    assert len(table(run.path)) == 13
    links = [path.readlink() for path in run.path.rglob("*") if path.is_symlink()]
    assert links and not any(
        link.is_absolute() for link in links
    )  # so that it can be moved, and resumed


def test_wandb_history_has_no_gap_after_signal(prepared):
    """The run saves within a step, before Lightning logs that step's row."""
    run = stopped(prepared("trainer.max_steps=9", csv=False), at=5)
    assert execute(run)["status"] == "finished"
    check_same(table(run.path), rows(*directories(run / "wandb")))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_loses_at_most_two_seconds_after_kill(root, mode):
    """The run is killed twice; its three directories have one id and the rows of metrics.csv."""
    long = ("trainer.max_steps=240", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5")
    folder = root / "logs" / "runs" / "mine"
    with Server() as server:
        there = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "WANDB_MODE": mode}
        line, at = with_wandb("name=mine", *long), 0
        for _ in range(2):  # each after a checkpoint further on
            process = start(line, root, **there)
            wait_for(lambda at=at: steps_done(folder) > at, process)
            at = steps_done(folder)
            process.kill()
            process.communicate()
        end(line, root, **there)
        provenance = json.loads((folder / "provenance.json").read_text())
        assert len(provenance["executions"]) == 3
        kills = tuple(start["step"] for start in provenance["executions"][1:])
        summary, ours = json.loads((folder / "summary.json").read_text()), table(folder)
        assert len(ours) == 48 + 12
        starts = directories(folder / "wandb")
        assert {path.name.startswith("offline-") for path in starts} == {mode == "offline"}
        if mode == "offline":
            assert len(starts) == 3 and {provenance["id"] in path.name for path in starts} == {True}
            check_same(ours, rows(*starts), kills)
            sync(server, root, *starts)
        check_same(ours, server.history(provenance["id"]), kills)
        assert server.summaries[provenance["id"]]["test/bpd"] == summary["test"]["bpd"]["mean"]


@pytest.mark.parametrize("listens", [False, True])
def test_unreachable_wandb_server_switches_to_offline(prepared, monkeypatch, capfd, listens):
    """The address does not answer, as without a network, or accepts connections without a reply."""
    import wandb  # noqa: F401  # its import is not what is measured

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen(50)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", PLAUSIBLE)
        run, seconds = prepared(csv=False), {}
        for mode in ("offline", ""):  # the first one starts what the other finds
            monkeypatch.setenv("WANDB_MODE", mode)
            began = time.perf_counter()
            loggers = build_loggers(run, 0, float)
            loggers[1].log_metrics({"train/loss": 1.0}, 5)
            seconds[mode] = time.perf_counter() - began
            loggers[1].close({})
    assert seconds[""] - seconds["offline"] < 10
    _, folder = directories(run / "wandb")  # of the start that failed there is none
    [said] = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert said.startswith("W&B: offline (") and f"`wandb sync {folder}`" in said
    assert [row["train/loss"] for row in rows(folder)] == [1.0]


def test_wandb_rows_are_written_soon_after_logging(prepared):
    """A kill keeps what was written; at W&B's own rate, a short run would have written nothing."""
    run = prepared(csv=False)
    loggers = build_loggers(run, 0, float)
    for step in range(0, 200, 10):
        for logger in loggers:
            logger.log_metrics({"train/loss": 1.0}, step)
    wait_for(lambda: last_step(*directories(run / "wandb")) >= 190, None, 15)
    assert [row["trainer/global_step"] for row in rows(only(run.path))] == [*range(0, 200, 10)]
    loggers[1].close(None)


@pytest.mark.slow
def test_wandb_loses_no_row_if_network_fails(prepared, monkeypatch, capsys, root):
    """The server closes the connection of an online run and does not answer any more."""
    after_a_step = CheckpointSaver.on_train_batch_end
    with Server() as server:
        for name, value in (("MODE", "online"), ("BASE_URL", server.url), ("API_KEY", KEY)):
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setattr(ours_of_wandb, "FINISH_TIMEOUT", 3.0)

        def then_hang_up(keep, trainer, *rest):
            after_a_step(keep, trainer, *rest)
            if trainer.global_step == 4:
                wait_for(lambda: "UpsertBucket" in server.operations, None, 15)  # it is online
                server.dead = True

        monkeypatch.setattr(CheckpointSaver, "on_train_batch_end", then_hang_up)
        run = prepared("trainer.max_steps=12", csv=False)
        began = time.monotonic()
        summary = execute(run)
        assert summary["status"] == "finished"
        assert time.monotonic() - began < 60
        said = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
        [folder] = re.findall("`wandb sync --include-online (.*?)`", said[-1])
        check_same(table(run.path), rows(only(run.path)))
        server.dead = False
        sync(server, root, "--include-online", folder)
        check_same(table(run.path), server.history(run.provenance.id))


def test_wandb_mode_disabled_does_not_import_wandb(prepared, monkeypatch):
    run, imported = prepared(csv=False), []
    monkeypatch.setattr(ours_of_wandb, "import_wandb", imported.append)
    import_libraries(run)
    assert imported == [run / "wandb"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    import_libraries(run)
    loggers = build_loggers(run, 0, float)
    assert len(imported) == 1
    assert len(loggers) == 1 and not (run / "wandb").exists()


@pytest.mark.slow
def test_wandb_writes_nothing_outside_run_directory(root):
    home, temporary = root / "home", root / "tmp"
    home.mkdir()
    temporary.mkdir()
    environ = environment(
        root, HOME=str(home), TMPDIR=str(temporary), MPLCONFIGDIR=str(root / "mpl")
    )
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        environ.pop(name, None)
    subprocess.run(with_wandb("name=ends"), env=environ, check=True, capture_output=True)
    assert not [p for p in home.rglob("*") if "wandb" in str(p.relative_to(home))]
    assert not list(temporary.iterdir()) or {p.name for p in temporary.iterdir()} == {
        "torchinductor_root"
    }


def test_wandb_receives_figures_panels_choices_and_artifact(prepared, monkeypatch):
    """The offline file has figures, panels, choices, the best step and the reported checkpoint."""
    small = ("data.train_size=500", "data.val_size=100", "data.test_size=200")
    own = ("measures.n=8", "measures.repeats=2", "logger.wandb.artifacts=true")
    run = prepared("experiment=ring", *small, *own, csv=False)
    monkeypatch.setenv("TRIPTYCH_OWN", str(run.path))
    summary = execute(run)
    [file] = only(run.path).glob("*.wandb")
    told: dict[str, object] = {}
    config: dict[str, object] = {}
    axes: dict[str, str] = {}
    registered, artifacts = None, {}
    for record in records(file):
        for item in [*record.summary.update, *record.run.summary.update]:
            told[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key or "|".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("metric"):
            axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        registered = record.run if record.HasField("run") and registered is None else registered
        if record.artifact.type == "model":
            [entry] = record.artifact.manifest.contents
            artifacts[record.artifact.name] = Path(entry.local_path).read_bytes()
    assert artifacts == {f"model-{run.provenance.id}": run.reported_checkpoint().read_bytes()}
    figures = flatten_metrics(summary.record)
    assert {name: told.get(name) for name in figures} == figures
    assert {"test/nats_per_dim_draw_stderr", "measures/sliced_wasserstein_stderr"} <= {*figures}
    bounds = [
        row["val/nats_per_dim"] for row in table(run.path).values() if "val/nats_per_dim" in row
    ]
    assert len(bounds) == 2 and told["val/nats_per_dim"] == {"min": min(bounds), "last": bounds[-1]}
    final = summary["val"]["nats_per_dim"]["stderr"]  # of other draws than those of validation
    assert table(run.path)[6]["val/bound_stderr"] == pytest.approx(final, 0.5)
    assert config["objective"] == "epsilon" and config["data"] == "ring" and config["seed"] == 1
    assert config["resolved"] == {k: v for k, v in run.config().items() if k != "logger"}
    assert config["measures/n"] == 8 and config["measures/repeats"] == 2  # as they were typed
    assert {name for name in table(run.path)[6] if name.startswith("val_levels/")} == {
        f"val_levels/epsilon_mse_gamma_{a}_to_{b}" for a, b in BANDS
    }
    assert axes.pop("trainer/global_step") == "" and {*axes.values()} == {"trainer/global_step"}
    assert "*" in axes
    assert (
        registered.run_group == ""
        and registered.job_type == "run"
        and "data=ring" in registered.tags
    )
    for name in ("noise_levels", "weighting", "schedule", "tweedie"):
        [path] = only(run.path).glob(f"files/media/table/panels/{name}_table_*.json")
        shown = json.loads(path.read_text())
        assert shown["columns"] == [*summary[name]]
        assert shown["data"] == [list(row) for row in zip(*summary[name].values(), strict=True)]
    pictures = {p.name.split("_")[0] for p in only(run.path).rglob("files/media/images/**/*.png")}
    assert pictures == {"samples", "final", "trajectory"}


def test_wandb_artifacts_are_skipped_for_untrusted_run(prepared, capsys):
    run = prepared("logger.wandb.artifacts=true", csv=False)
    wandb = build_loggers(run, 0, float)[1]
    wandb.close(None)
    assert not wandb.logger.artifacts and "artifacts are not sent" in capsys.readouterr().err


def test_wandb_settings_file_in_run_directory_is_ignored(root, monkeypatch):
    """W&B reads settings in the current folder and in its own folder, the run's directory."""
    folder = root / "run" / "wandb"
    for place in (root / "wandb", folder, folder / "config"):
        place.mkdir(parents=True)
        (place / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9\n")
    monkeypatch.chdir(root)
    wandb = ours_of_wandb.import_wandb(folder)
    wandb.teardown()
    assert wandb.setup().settings.base_url == wandb.Settings().base_url
    wandb.teardown()


def test_import_wandb_recreates_media_folder(tmp_path):
    """W&B makes the folder on import, before the forks, and removes it when a process ends."""
    ours_of_wandb.import_wandb(tmp_path)
    from wandb.sdk.data_types._private import MEDIA_TMP

    shutil.rmtree(MEDIA_TMP.name)
    ours_of_wandb.import_wandb(tmp_path)
    assert Path(MEDIA_TMP.name).is_dir()


def test_wandb_groups_cells_of_a_sweep(tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "sweep.json").write_text("{}")
    run = RunDirectory(tmp_path / "ours" / "objective=v,seed=1")
    choices = {"ablation": "objectives", "data": "digits"}
    command = ["triptych-train", "logger.mlflow.tracking_uri=http://me:secret@host/"]
    run.provenance = Provenance(id="x", choices=choices, command=tuple(command))
    found = describe_run({"tags": ["mine"]}, {}, run)
    assert found["notes"] == "triptych-train logger.mlflow.tracking_uri=http://***@host/"
    assert (
        found["group"] == "ours"
        and found["name"] == "objective=v,seed=1"
        and found["job_type"] == "cell"
    )
    assert found["tags"] == ["mine", "ablation=objectives", "data=digits"]
    asked = {"name": "n", "group": "other", "job_type": "j", "notes": "why", "tags": "one"}
    run.provenance = Provenance(id="x")
    found = describe_run(asked, {}, run)
    assert {**found, **asked, "tags": ["one"]} == found


def test_flat_figures_flattens_summary():
    row = {"value": 4, "evaluations": 8, "measures": {"fid": {"mean": 2.0, "stderr": None, "n": 9}}}
    summary = {
        "schema": 1,
        "steps": 7,
        "val": {"bpd": {"mean": 1.5, "stderr": 0.1, "n": 3, "draw_stderr": 0.01}},
        "estimator": {"variance": 1.0, "of": {"n": 2.0}},
        "measures_over": {"key": "evaluations", "rows": [row]},
        "uneven": {"a": [1], "b": [1, 2]},
        "curve": {"gamma": [0.0, 1.0], "error": [math.pi, 2.0]},
    }
    assert flatten_metrics(summary) == {
        "steps": 7,
        "final/val_bpd": 1.5,
        "final/val_bpd_stderr": 0.1,
        "final/val_bpd_n": 3,
        "final/val_bpd_draw_stderr": 0.01,
        "estimator/variance": 1.0,
        "estimator/of/n": 2.0,
        "measures_over/key": "evaluations",
    }


def test_wandb_config_has_flat_keys_for_overrides():
    config = {
        "seed": 1,
        "optimizer": {"lr": 0.1, "eps": 1},
        "model": {"n": [1, 2]},
        "logger": {"x": 1},
    }
    typed = ["optimizer.lr=0.1", "+model.n=[1,2]", "seed=1", "logger.x=1", "objective=v"]
    flat = {"objective": "v", "seed": 1, "optimizer/lr": 0.1, "model/n": [1, 2]}
    assert grouping_settings({"objective": "v"}, config, typed) == flat
