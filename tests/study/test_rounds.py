"""Sweeps in rounds: equal budgets, fresh seeds, no choice by the test set, and resuming."""

import json

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from hydra_plugins.triptych_rounds.sweeper import RoundsSweeper
from tests.refusal import refused
from tests.run.commands import command, end
from tests.study.fake_runs import metrics, sweep_hook
from triptych.config.identity import register_resolvers
from triptych.config.source import CONFIGS
from triptych.errors import UserError
from triptych.run.sweep_record import SweepRecord
from triptych.study.rounds import (
    Composer,
    check_rounds,
    choose_point,
    compose_cell,
    grid_jobs,
    seed_rounds,
    setting_names,
    settings_and_seeds,
)

GRID = [[f"objective={o}", f"seed={s}"] for o in ("x0", "v") for s in (1, 2, 3)]


def trials(figures: dict[tuple[str, str], list[float]]) -> dict:
    return {
        ((f"objective={o}",), (f"optimizer.lr={lr}",)): values
        for (o, lr), values in figures.items()
    }


@pytest.fixture
def master():
    """The composed configuration of a sweep's command."""
    register_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        yield loader.load_configuration("train", [], RunMode.MULTIRUN)


@pytest.mark.parametrize(
    "job",
    [
        ["seed=2", "objective=v", "optimizer.lr=0.02"],
        ["data=mixture", "optimizer.lr=1", "name='a=b'", "data.means=[[0.5,1]]", "seed=3"],
        ["objective/loss=v", "callbacks.ema=null", "trainer.max_steps=${seed}"],
        ["objective/loss=p2", "experiment=ring", "trainer.max_steps=7"],
        ["seed=4", "+data.more=b", "~callbacks.ema"],
        ["+callbacks.more={a:1}", "callbacks.more.a=2"],
        ["callbacks.ema.decay=0.5", "~callbacks.ema"],
        ["objective=nope", "seed=1"],
        ["objective=v", "optimizer.lrr=1"],
        ["denoiser.network.width=[", "seed=1"],
    ],
    ids=",".join,
)
def test_composer_gives_configuration_or_error_of_hydra(master, job):
    """Also after a run with the same choices and other values."""

    def outcome(compose):
        try:
            cell = compose()
        except HydraException as error:
            return type(error), str(error)
        del cell.hydra.job.override_dirname
        return OmegaConf.to_container(cell), OmegaConf.is_struct(cell)

    composer = Composer(master)
    outcome(lambda: composer.compose([*job, "optimizer.lr=0.5"]))
    expected = outcome(lambda: compose_cell(master, job))
    assert outcome(lambda: composer.compose(job)) == expected


def test_choose_point_gives_best_value_per_setting_and_common_value():
    found = trials({
        ("x0", ".1"): [2.0, 2.2], ("x0", ".2"): [2.4, 2.4], ("x0", ".4"): [3.0, 3.0],
        ("v", ".1"): [2.0, 2.0], ("v", ".2"): [1.5, 1.7], ("v", ".4"): [1.5, 1.5],
    })  # fmt: skip
    equal, best = choose_point(found)
    assert best == {("objective=x0",): ("optimizer.lr=.1",), ("objective=v",): ("optimizer.lr=.4",)}
    assert equal == ("optimizer.lr=.2",)  # (2.4 + 1.6) / 2 = 2.0, against 2.05 and 2.25


def test_choose_point_excludes_values_with_diverged_seed():
    nan = float("nan")
    found = trials(
        {
            ("x0", ".1"): [1.0, nan],
            ("x0", ".2"): [2.0, 2.0],
            ("v", ".1"): [1, 1],
            ("v", ".2"): [2, 2],
        }
    )
    equal, best = choose_point(found)
    assert best[("objective=x0",)] == ("optimizer.lr=.2",) and equal == ("optimizer.lr=.2",)
    with pytest.raises(UserError, match="objective=x0 has no value"):
        choose_point(trials({("x0", ".1"): [nan], ("v", ".1"): [1.0]}))


def test_seeds_after_ends_at_max_seeds():
    assert [len(r) for r in seed_rounds([1, 2, 3], 12)] == [3, 5, 8, 12]
    assert seed_rounds([11, 12, 13], 6) == [
        [11, 12, 13],
        [11, 12, 13, 14, 15],
        [11, 12, 13, 14, 15, 16],
    ]
    assert seed_rounds([1, 2, 3], 3) == [[1, 2, 3]]
    for first, most in (([1], 12), ([1, 2, 3], 2)):
        with pytest.raises(UserError, match="max_seeds"):
            seed_rounds(first, most)


def test_grid_applies_setting_overrides_unless_typed():
    sweeper = {
        "params": {"seed": "1,2", "setting": "small,large"},
        "settings": {"small": ["model.width=4"], "large": ["model.width=8", "model.depth=2"]},
    }
    assert grid_jobs(sweeper, []) == [
        ["setting=small", "model.width=4", "seed=1"],
        ["setting=large", "model.width=8", "model.depth=2", "seed=1"],
        ["setting=small", "model.width=4", "seed=2"],
        ["setting=large", "model.width=8", "model.depth=2", "seed=2"],
    ]
    assert grid_jobs(sweeper, ["seed=3", "setting=large", "model.width=16"]) == [
        ["setting=large", "model.depth=2", "seed=3", "model.width=16"]
    ]
    added = {"settings": {"small": ["+model.heads=2", "~model.depth", "model.width=4"]}}
    assert grid_jobs(added, ["seed=1", "setting=small", "+model.heads=4", "model.depth=3"]) == [
        ["setting=small", "model.width=4", "seed=1", "+model.heads=4", "model.depth=3"]
    ]
    with pytest.raises(
        UserError, match="setting=huge: no such setting; settings here: small, large"
    ):
        grid_jobs(sweeper, ["setting=small,huge"])
    with pytest.raises(UserError, match="setting=small: no such setting; settings here: none"):
        grid_jobs({}, ["setting=small,large"])
    assert grid_jobs(sweeper, ["setting=null", "seed=1"]) == [["seed=1", "setting=null"]]


def test_settings_and_seeds_splits_grid():
    assert settings_and_seeds(GRID) == ([("objective=x0",), ("objective=v",)], [1, 2, 3])
    refused(lambda: settings_and_seeds([["objective=x0"], ["objective=v"]]), "seed")


def test_an_axis_without_values_is_refused():
    refused(lambda: grid_jobs({}, ["seed=range(4,1)", "objective=x0,v"]), "-m: a key has no values")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"until": "bored"}, "until='bored': must be null or decided"),
        ({"until": "decided"}, "until=decided: needs a sweep"),
        ({"setting": "vae"}, "setting=vae: needs a sweep; pass -m and an ablation that lists"),
        ({"max_seeds": 1}, "max_seeds=1: must be a whole number of at least 2"),
        ({"max_seeds": True}, "max_seeds=True"),
        ({"equal_within": -0.1}, "equal_within=-0.1: must be null or a number above 0"),
        ({"equal_within": float("nan")}, "equal_within=nan"),
    ],
)
def test_check_rounds_refuses_invalid_until_setting_and_max_seeds(config, message):
    with pytest.raises(UserError, match=message):
        check_rounds({"max_seeds": 12} | config, grid=False)


class Offline(RoundsSweeper):
    """A launcher that starts nothing: each run ends at once with the bound from ``bound``."""

    def __init__(self, root, bound, **options):
        super().__init__(**options)
        self.bound, self.batches = bound, []
        self.hook = sweep_hook(root, until="decided", max_seeds=12, equal_within=None, force=False)
        self.config = self.hook.config
        self.hook.before = SweepRecord.read(root)

    def _launch(self, jobs):
        self.batches.append(jobs)
        for job in jobs:
            told = dict(o.split("=", 1) for o in job)
            folder = self.hook.root / self.hook.cell_directory_name(job)
            folder.mkdir(parents=True, exist_ok=True)
            figure = metrics(self.bound(told), n=1)
            figures = {"val": figure} | ({} if told.get("test") == "false" else {"test": figure})
            (folder / "config.yaml").write_text("seed: 1\n")
            (folder / "summary.json").write_text(
                json.dumps({"schema": 1, "status": "finished", **figures})
            )


def test_tuning_uses_equal_budget_test_false_and_fresh_seeds(root):
    own = {"x0": "0.1", "v": "0.4"}

    def bound(told):
        return (
            2.0
            + (told["optimizer.lr"] != own[told["objective"]])
            + (told["optimizer.lr"] == "0.4") * 0.1
        )

    sweep = Offline(root, bound, tune={"optimizer.lr": "0.1,0.2,0.4"}, tuning_seeds="101,102")
    sweep._tune_and_run_grid(GRID)
    tuning, final = sweep.batches
    assert len(tuning) == 2 * 3 * 2 and all("test=false" in job for job in tuning)
    per = [sum(f"objective={o}" in job for job in tuning) for o in own]
    assert per[0] == per[1]
    assert not any("test=false" in job or "seed=101" in job or "seed=102" in job for job in final)
    record = json.loads((root / "sweep.json").read_text())
    assert record["tuning"]["equal"] == ["optimizer.lr=0.1"]
    assert record["tuning"]["best"] == {
        f"objective={o}": [f"optimizer.lr={lr}"] for o, lr in own.items()
    }
    # x0 is run once, because its own best point is the common one; v is run at both.
    assert len(final) == 3 * 3 and record["expected"] == len(tuning) + len(final)


def test_recorded_tuning_choice_is_kept_during_rerun(root, monkeypatch):
    """The same command is killed before it has read its trials again."""
    options = {"tune": {"optimizer.lr": "0.1,0.2"}, "tuning_seeds": "101"}
    Offline(root, lambda told: float(told["optimizer.lr"]), **options)._tune_and_run_grid(GRID)
    chosen = json.loads((root / "sweep.json").read_text())["tuning"]
    again = Offline(root, lambda told: 1.0, **options)
    again.hook.record = lambda **facts: (
        facts.get("tuning") and again.batches.append(facts["tuning"])
    )
    monkeypatch.setattr(again, "_launch", lambda jobs: again.batches.append("launched"))
    again._tune_and_run_grid(GRID)
    assert again.batches[:2] == [chosen, "launched"]


def test_names_of_settings_omit_execution_keys():
    """Keys that set how or where runs are started or watched name no setting."""
    assert setting_names([("objective=x0", "plan=true", "threads=2", "name=s")]) == {
        ("objective=x0", "plan=true", "threads=2", "name=s"): "objective=x0"
    }
    assert [*setting_names([("setting=3", "a=1"), ("setting=4", "a=1")]).values()] == [
        "setting=3",
        "setting=4",
    ]


@pytest.mark.parametrize("seeds", [None, "1,102", "", "-1", "4294967296", "a,b"])
def test_tuning_seeds_must_be_valid_and_differ_from_report_seeds(root, seeds):
    sweep = Offline(root, lambda told: 2.0, tune={"optimizer.lr": "0.1,0.2"}, tuning_seeds=seeds)
    refused(lambda: sweep._tune_and_run_grid(GRID), "tuning_seeds")


def decides(monkeypatch, at: int) -> list[tuple]:
    """A ``decide`` that stops at a given look."""
    asked: list[tuple] = []

    def decide(root, look, looks, equal_within=None):
        asked.append((look, looks))
        return f"look {look}", {("v", "x0"): "same" if look >= at else "open"}

    monkeypatch.setattr("triptych.study.compare.decide_at_look", decide)
    return asked


@pytest.mark.parametrize(("at", "looks"), [(3, 3), (99, 4)])
def test_until_decided_adds_seeds_until_no_pair_is_open(root, monkeypatch, at, looks):
    asked = decides(monkeypatch, at)
    sweep = Offline(root, lambda told: 2.0)
    sweep._run_rounds_until_decided(GRID)
    assert asked == [(look, 4) for look in range(1, looks + 1)]
    assert [len(batch) for batch in sweep.batches] == [6, 10, 16, 24][:looks]
    for batch in sweep.batches:  # the same seeds for all
        x0, v = ({seed for first, seed in batch if first == f"objective={o}"} for o in ("x0", "v"))
        assert x0 == v
    until = json.loads((root / "sweep.json").read_text())["until"]
    assert until == {"looks": 4, "equal_within": None, "look": looks}


def test_until_decided_resumes_at_recorded_look(root, monkeypatch):
    decides(monkeypatch, at=3)
    Offline(root, lambda told: 2.0)._run_rounds_until_decided(GRID)
    asked = decides(monkeypatch, at=3)
    again = Offline(root, lambda told: 2.0)
    again._run_rounds_until_decided(GRID)
    assert asked == [(3, 4)] and [len(batch) for batch in again.batches] == [16]
    assert again.hook.next_look({"looks": 4, "equal_within": 0.5}) == 1, (
        "by another rule it begins anew"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_tuned_sweep_command_records_best_values(root):
    line = command(
        "-m", "ablation=objectives_tuned", "objective=x0,v", "seed=1,2", "hydra.sweeper.tuning_seeds='101'",
        "hydra.sweeper.tune={optimizer.lr: '0.0001,0.01'}",
    )  # fmt: skip
    end(line, root)
    [record] = root.glob("logs/sweeps/*/sweep.json")
    said = json.loads(record.read_text())
    assert set(said["tuning"]["best"]) == {"objective=x0", "objective=v"}
    found = [json.loads(p.read_text()) for p in record.parent.glob("*/summary.json")]
    assert len(found) == said["expected"] and all(s["status"] == "finished" for s in found)
    assert all(("test" in s) == (s["seed"] != 101) for s in found)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_until_decided_command_stops_and_is_idempotent(root):
    line = command("-m", "objective=x0,v", "seed=1,2", "until=decided", "max_seeds=3", "name=apart")
    end(line, root)
    [record] = root.glob("logs/sweeps/*/sweep.json")
    until = json.loads(record.read_text())["until"]
    assert until["looks"] == 2 and until["look"] in (1, 2)
    seeds = {json.loads(p.read_text())["seed"] for p in record.parent.glob("*/summary.json")}
    assert seeds == ({1, 2} if until["look"] == 1 else {1, 2, 3})
    stamps = {p: p.stat().st_mtime_ns for p in record.parent.glob("*/summary.json")}
    end(line, root)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
