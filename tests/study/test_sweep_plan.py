"""A sweep is planned as a whole: refused before it writes, and never with another one's cells."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from tests import forked
from tests.conftest import TINY
from tests.refusal import refused, refused_command
from tests.run.commands import command, environment, start
from triptych.errors import Busy, Unreadable, UserError
from triptych.run.sweep_record import Looks, SweepRecord
from triptych.study import sweep
from triptych.study.sweep_plan import Reservation

from .fake_runs import edit, make_run

TRAIN = "triptych.cli.train"
GRID = {f"seed={seed}": ["name=s", f"seed={seed}", "trainer.max_steps=5"] for seed in "12"}


@pytest.fixture
def folder(root) -> Path:
    """The directory of sweep ``s``, with the records of an earlier command."""
    folder = root / "logs" / "sweeps" / "s"
    folder.mkdir(parents=True)
    for name in ("report.html", "results.csv", "sweep.json", "multirun.yaml"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def cell(prepared):
    """``cell("seed=1", "objective=v", ...)``: make a finished cell of sweep ``s``.

    Its arguments are its name and further overrides.
    """

    def make(name: str, *overrides: str) -> None:
        run = prepared("name=s", *overrides, path=f"../sweeps/s/{name}")
        run.write("summary.json", {"schema": 1, "status": "finished"})

    return make


def composed() -> DictConfig:
    """Return the parts of a command's configuration that a reservation reads."""
    hydra = {"sweeper": {"_target_": "RoundsSweeper"}, "overrides": {"task": ["name=s"]}}
    return OmegaConf.create({"name": "s", "force": False, "hydra": hydra})


def contents(folder: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("more", [[], ["plan=true"]], ids=str)
def test_sweep_with_other_run_in_cell_is_refused_before_writing(folder, cell, door, tiny, more):
    """Report, table and record stay, and the other cell does not start."""
    cell("seed=1", "seed=1", "trainer.max_steps=5")
    before = contents(folder.parent)
    done = door(
        TRAIN, "-m", "name=s", "seed=1,2", "logger=csv", "callbacks.ema.others=[]", *tiny, *more
    )
    fix = "choose another name, or force=true to start over"
    refused_command(
        done,
        f"{folder}: 1 of its runs exist with other settings (trainer.max_steps: 5 -> 6); {fix}",
    )
    assert contents(folder.parent) == before


def test_sweep_with_file_in_place_of_cell_is_refused_before_writing(folder, inside, tiny):
    (folder / "seed=1").write_text("mine")
    before = contents(folder.parent)
    done = inside(TRAIN, "-m", "name=s", "seed=1,2", "logger=csv", *tiny)
    problem = "symbolic link or file where the sweep needs a run's directory; move it away"
    refused_command(done, f"{folder / 'seed=1'}: {problem}")
    assert contents(folder.parent) == before


@pytest.mark.parametrize("begun", [False, True])
def test_all_refused_settings_are_reported_in_one_line_per_cause(root, inside, begun):
    """A setting that contradicts itself counts as one that has a value out of range."""
    place = root / "logs" / "sweeps" / "s"
    if begun:
        place.mkdir(parents=True)
        (place / "sweep.json").write_text("{}")
    before = contents(root)
    typed = ["denoiser=mlp", "denoiser.network.width=8,0", "trainer.max_steps=2,null", "seed=1,2,3"]
    done = inside(TRAIN, "-m", "name=s", *typed)
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("error: denoiser.network.width=0: must be ")
    assert first.endswith(" (6 of 12 runs)")
    assert second.strip().startswith("trainer.max_steps=null: training length is not set")
    assert second.endswith(" (3 of 12 runs)")
    assert contents(root) == before and place.exists() == begun


def test_seed_out_of_range_is_refused_before_writing(root, inside):
    done = inside(TRAIN, "-m", "name=s", "denoiser=mlp,resnet", "seed=1,-2")
    refused_command(done, "seed=-2: must be a whole number from 0 ")
    assert not (root / "logs").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "link") for name in ("report.html", "multirun.yaml", "study.db", ".commands")),
        *((name, "directory") for name in ("report.html", "results.csv", "study.db")),
    ],
)
def test_sweep_with_link_or_directory_as_record_is_refused(folder, inside, tiny, name, kind):
    """A link may lead out of the sweep, and a report cannot replace a directory."""
    place, outside = folder / name, folder.parent / "outside"
    place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(outside)
    else:
        place.mkdir()
    before = contents(folder.parent)
    done = inside(TRAIN, "-m", "name=s", "seed=1,2", "logger=csv", *tiny)
    problem = "symbolic link or directory where the sweep writes a file; move it away"
    refused_command(done, f"{place}: {problem}")
    assert contents(folder.parent) == before and not outside.exists()


@pytest.mark.parametrize("name", ["report.html", "results.csv", "multirun.yaml"])
def test_sweep_does_not_replace_files_of_others(root, door, tiny, name):
    folder = root / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    done = door(TRAIN, "-m", f"hydra.sweep.dir={folder}", "seed=1,2", "logger=csv", *tiny)
    refused_command(done, f"{folder / name}: not written by a sweep, which would replace it")
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]


def test_forced_sweep_with_missing_init_from_changes_no_file(folder, inside, tiny):
    before = contents(folder)
    typed = ("name=s", "seed=1,2", "logger=csv", *tiny, "force=true", "init_from=/nowhere")
    done = inside(TRAIN, "-m", *typed)
    refused_command(done, "init_from=/nowhere: no such file")
    assert contents(folder) == before


def test_sweep_around_other_runs_is_refused(root, door, finished, tiny):
    """Within a sweep's directory they could not go on."""
    finished()
    place = root / "logs"
    before = contents(place)
    done = door(TRAIN, "-m", f"hydra.sweep.dir={place}", "seed=1,2", "logger=csv", *tiny)
    refused_command(done, f"hydra.sweep.dir={place}: holds other runs or sweeps")
    assert contents(place) == before


@pytest.mark.parametrize("name", ["sweep.json", "looks.json"])
def test_linked_sweep_record_is_refused(folder, name):
    outside = folder.parent / "outside.json"
    outside.write_text("{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    read = {"sweep.json": SweepRecord.read, "looks.json": Looks.read}[name]
    refused(
        lambda: read(folder),
        f"{folder / name}: symbolic link; put the file itself there",
        error=Unreadable,
    )


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (
            ["objective=x0,nonsense", "hydra.sweeper.tune={optimizer.lr: '0.01'}"],
            "objective=nonsense",
        ),
        (["objective=x0", "hydra.sweeper.tune={optimizer.lr: '0.01,fast'}"], "optimizer.lr='fast'"),
        (["until=decided"], "until=decided: not supported together with tuning; use until=null"),
    ],
)
def test_tuned_sweep_with_invalid_value_is_refused_before_writing(root, inside, typed, problem):
    done = inside(TRAIN, "-m", "ablation=objectives_tuned", "name=s", *typed)
    refused_command(done, problem)
    assert not (root / "logs").exists()


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        (
            ["objective=x0,v", "hydra.sweeper.tune={optimizer.lr: '0.01,fast'}"],
            "optimizer.lr='fast'",
        ),
        (
            ["objective=x0,v", "hydra.sweeper.params={optimizer.lr: '0.01,fast'}"],
            "optimizer.lr='fast'",
        ),
        (
            ["hydra/sweeper=search", "hydra.sweeper.params={objective: 'choice(x0,x1)'}"],
            "objective=x1",
        ),
    ],
)
def test_sweeper_params_keys_need_no_plus(inside, typed, problem):
    """The keys are known, because it is their values that are refused."""
    refused_command(inside(TRAIN, "-m", "name=s", *typed), problem)


def test_expected_includes_cells_reserved_by_other_command(folder, monkeypatch):
    other = Reservation(folder)
    other.reserve(composed(), {"seed=1": GRID["seed=1"], "seed=3": GRID["seed=1"]})
    hook = sweep.SweepHook()
    hook.root, hook.cells, hook.reservation = folder, ["seed=1", "seed=2"], Reservation(folder)
    assert hook._count_expected_runs() == 3
    other.release()
    assert hook._count_expected_runs() == 2


def test_expected_counts_copy_of_a_run_once(folder):
    for name in ("seed=1", "copy"):
        edit(make_run(folder, "v", 1, 2.0, overrides=[name]) / "provenance.json", id="a1")
    hook = sweep.SweepHook()
    hook.root, hook.cells, hook.reservation = folder, ["seed=1", "seed=2"], Reservation(folder)
    assert hook._count_expected_runs() == 2


def test_tuned_sweep_with_other_trial_is_refused_before_writing(folder, cell, door, tiny):
    trial = [
        "ablation=objectives_tuned",
        "objective=x0",
        "optimizer.lr=0.01",
        "seed=101",
        "test=false",
    ]
    cell("objective=x0,optimizer.lr=0.01,seed=101,test=false", *trial, "trainer.max_steps=5")
    before = contents(folder.parent)
    tuning = ["hydra.sweeper.tuning_seeds='101'", "hydra.sweeper.tune={optimizer.lr: '0.01'}"]
    grid = ["ablation=objectives_tuned", "objective=x0", "seed=1,2"]
    done = door(
        TRAIN, "-m", "name=s", *grid, *tuning, "logger=csv", "callbacks.ema.others=[]", *tiny
    )
    assert done.returncode == 1
    assert (
        "1 of its runs exist with other settings (trainer.max_steps: 5 -> 6)"
        in done.stderr.splitlines()[-1]
    )
    assert contents(folder.parent) == before


TUNED = {
    "keys": ["optimizer.lr"], "seeds": [101], "points": [["optimizer.lr=0.01"], ["optimizer.lr=0.02"]],
    "equal": ["optimizer.lr=0.01"],
    "best": {"objective=x0": ["optimizer.lr=0.02"], "objective=v": ["optimizer.lr=0.01"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["hydra.sweeper.tune={optimizer.lr: '0.01'}"], "hydra.sweeper.tune: "),
        (["hydra.sweeper.tune={optimizer.lr: '0.01,0.02,0.04'}"], "hydra.sweeper.tune: "),
        (
            ["hydra.sweeper.tuning_seeds='101,102'"],
            "hydra.sweeper.tuning_seeds: [101] -> [101, 102]",
        ),
        (["objective=x0"], "settings: ['objective=v', 'objective=x0'] -> "),
        (["hydra.sweeper.tune=null"], "hydra.sweeper.tune: "),
        (["test=false"], "test: this sweep's tuning sets it; leave it out"),
    ],
)
def test_tuned_sweep_refuses_changed_tuning_keys(folder, inside, tiny, overrides, problem):
    """Finished runs have the chosen values; with another choice they would be compared nowhere."""
    (folder / "sweep.json").write_text(json.dumps({"tuning": TUNED, "title": "s"}))
    before = contents(folder.parent)
    line = ["hydra.sweeper.tune={optimizer.lr: '0.01,0.02'}", "hydra.sweeper.tuning_seeds='101'"]
    keys = {one.partition("=")[0] for one in overrides}
    typed = [
        *(one for one in [*line, "objective=x0,v"] if one.partition("=")[0] not in keys),
        *overrides,
    ]
    done = inside(
        TRAIN, "-m", "ablation=objectives_tuned", "name=s", "seed=1", "logger=csv", *tiny, *typed
    )
    assert done.returncode == 1 and problem in done.stderr.splitlines()[-1]
    assert contents(folder.parent) == before


def test_finished_sweep_is_not_run_again_on_other_machine(folder, cell, inside, tiny):
    cell("seed=1", "seed=1")
    (run,) = folder.glob("seed=*")
    before = contents(run)
    line = ["-m", "name=s", "seed=1", "logger=csv", "callbacks.ema.others=[]", *tiny, "threads=2"]
    done = inside(TRAIN, *line)
    assert done.returncode == 0 and done.stderr.startswith("sweep s: 1 run in ")
    assert contents(run) == before, "not even a job's log"


def test_reserved_cells_refuse_other_settings(folder, door):
    """This holds before the runs start; equal settings share the cells, and others are free."""
    reservation = Reservation(folder)
    config = composed()
    reservation.reserve(config, GRID)
    before = contents(folder.parent)
    for plan in ([], ["plan=true"]):
        done = door(TRAIN, "-m", "name=s", "seed=1,2", "trainer.max_steps=7", *plan)
        refused_command(
            done,
            f"{folder}: ",
            " is running 2 of its runs with other settings (trainer.max_steps: '5' -> '7')",
        )
        assert contents(folder.parent) == before
    again = ["-m", "name=s", "seed=1,2", "trainer.max_steps=5"]
    done = door(TRAIN, *again, "force=true")
    assert done.returncode == Busy.exit_code and "is running this sweep; wait for it" in done.stderr
    assert contents(folder.parent) == before
    apart = Reservation(folder)
    shared = {name: [*job, "threads=2", "retry=true"] for name, job in GRID.items()}
    apart.reserve(config, shared | {"seed=3": ["seed=3", "trainer.max_steps=7"]})
    assert len(Reservation(folder).others()) == 2
    reservation.release()
    apart.release()
    assert contents(folder.parent).keys() < before.keys() and Reservation(folder).others() == []


def test_reservation_of_killed_command_is_released(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from omegaconf import OmegaConf;"
        "from triptych.study.sweep_plan import Reservation;"
        "reservation = Reservation(Path(sys.argv[1]));"
        "reservation.reserve(OmegaConf.create({}), {'seed=1': ['seed=1']});"
        "print('reserved', flush=True); time.sleep(60)"
    )
    line = [sys.executable, "-c", code, str(tmp_path)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "reserved\n"
    [(who, cells)] = Reservation(tmp_path).others()
    assert who.endswith(f"pid {process.pid}") and cells == {"seed=1": ["seed=1"]}
    process.kill()
    process.wait()
    assert Reservation(tmp_path).others() == []


def test_concurrent_reservations_of_same_cells_refuse_one(folder):
    """Each command reserves all of its cells or none."""
    config = composed()
    for attempt in range(20):
        pair = [Reservation(folder / str(attempt)) for _ in range(2)]
        refusals, ready = [], threading.Barrier(2)

        def begin(one: Reservation, steps: int, refusals=refusals, ready=ready) -> None:
            cells = {name: [*job[:2], f"trainer.max_steps={steps}"] for name, job in GRID.items()}
            ready.wait()
            try:
                one.reserve(config, cells)
            except UserError as error:
                refusals.append(str(error))

        both = [
            threading.Thread(target=begin, args=one) for one in zip(pair, (20, 400), strict=True)
        ]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        [refusal] = refusals
        assert "is running 2 of its runs with other settings" in refusal
        [(_, there)] = Reservation(folder / str(attempt)).others()
        assert {*there} == {*GRID}


def test_run_started_meanwhile_by_other_command_stops_sweep(
    folder, cell, inside, monkeypatch, tiny
):
    """A SLURM job may go on after its command was killed; its result is not this command's."""
    cell("seed=1", "seed=1", "trainer.max_steps=5")
    before = contents(folder / "seed=1")
    monkeypatch.setattr(sweep, "plan_cells", lambda *_: {})
    done = inside(TRAIN, "-m", "name=s", "seed=1", "logger=csv", *tiny)
    assert done.returncode == 1
    assert "holds another run (" in done.stderr.splitlines()[-1]
    assert contents(folder / "seed=1") == before


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("apart", [True, False], ids=["one after another", "at the same moment"])
def test_concurrent_sweeps_with_other_steps_refuse_one(root, apart):
    """One command is refused in one line, and the other one's runs are complete."""
    lines = [
        command("-m", "name=s", "seed=1,2", f"trainer.max_steps={steps}", "hydra/launcher=local")
        for steps in (20, 40)
    ]
    first = start(lines[0], root)
    if apart:
        while not (root / "logs/sweeps/s/sweep.json").exists():
            assert first.poll() is None
    second = start(lines[1], root)
    said = [process.communicate(timeout=500)[1] for process in (first, second)]
    codes = [process.returncode for process in (first, second)]
    assert sorted(codes) == [0, 1] and (not apart or codes == [0, 1]), said
    refusal = said[codes.index(1)].strip()
    assert refusal.startswith("error: ") and refusal.count("\n") == 0
    assert "is running 2 of its runs" in refusal or "2 of its runs exist with other" in refusal
    steps = {
        path.parent.name: path.read_text() for path in root.glob("logs/sweeps/s/*/summary.json")
    }
    kept = '"steps": 20' if codes[0] == 0 else '"steps": 40'
    assert len(steps) == 2 and all(kept in text for text in steps.values())


SWEPT = (
    "-m name=s denoiser=mlp data=ring data.train_size=60 data.val_size=20 data.test_size=30 "
    "lr_schedule.warmup_steps=1000"
).split()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """``swept("seed=1")``: a command in a root where it has already run, and what it said then."""
    root = tmp_path_factory.mktemp("swept")

    def run(*typed: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", TRAIN, *SWEPT, *TINY, "samples.n=0", *typed]
        return forked.run(line, environment(root), cwd=root)

    first = run("seed=1")
    assert first.returncode == 0, first.stderr
    return root / "logs" / "sweeps" / "s", first, run


@pytest.mark.parametrize(
    "typed",
    [
        [
            "hydra/launcher=local",
            "hydra.launcher.n_jobs=0",
        ],  # joblib refuses it once the records are written
        ["until=decided", "max_seeds=1"],
    ],
)
def test_refused_sweep_leaves_existing_records_unchanged(swept, typed):
    """It does not matter who refuses the sweep, and when."""
    folder, _, run = swept
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert folder / "sweep.json" in before and folder / "report.html" in before
    done = run("seed=1,2", *typed)
    assert done.returncode == 1, done.stderr
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {*after} - {*before} <= {folder / ".lock"}
    assert all(after[path] == content for path, content in before.items() if path.name != ".lock")


def test_sweep_whose_training_is_all_warm_up_says_so(swept):
    """Each run says it, too, but only in its ``train.log``."""
    _, done, _ = swept
    said = "lr_schedule.warmup_steps=1000: all 6 training steps are warm-up; lower it"
    assert done.stderr.count(said) == 1


def test_linked_cell_is_refused(folder, inside, tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (folder / "seed=1").symlink_to(tmp_path / "elsewhere")
    done = inside("triptych.cli.train", "-m", "name=s", "seed=1,2", *tiny)
    assert (
        done.returncode == 1
        and "symbolic link or file where the sweep needs a run's directory" in done.stderr
    )
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_sweep_inside_run_or_sweep_is_refused(folder, cell, inside, tiny):
    cell("seed=1")
    before = contents(folder.parent)
    for place in (folder / "seed=1", folder / "seed=1" / "more", folder / "more"):
        done = inside(TRAIN, "-m", f"hydra.sweep.dir='{place}'", "seed=3", "logger=csv", *tiny)
        refused_command(done, f"hydra.sweep.dir={place}: ", "choose another place")
    assert contents(folder.parent) == before


def test_force_with_refused_cell_moves_no_run_aside(root, cell, inside, tiny):
    place = root / "logs" / "sweeps" / "s"
    cell("trainer.max_steps=4")
    before = contents(place)
    typed = ["trainer.max_steps=4,null", "trainer.max_epochs=1", "force=true", "logger=csv"]
    tiny = [override for override in tiny if not override.startswith("trainer.max_steps")]
    done = inside(TRAIN, "-m", "name=s", *typed, *tiny)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert contents(place) == before
