"""The space from which a search draws, and how it reports each trial's figure."""

import time
from types import SimpleNamespace

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hydra_plugins.triptych_search._space import optuna_distribution, probe_jobs
from hydra_plugins.triptych_search.sweeper import OptunaSweeper, _TrialMonitor
from tests.refusal import refused, refused_command
from tests.study.fake_runs import make_run
from triptych.config.check import check_optimized_metric
from triptych.errors import UserError
from triptych.run.directory import PRUNE, RunDirectory
from triptych.study import sweep


def drawn_from(text: str):
    return optuna_distribution(OverridesParser.create().parse_override(text))


@pytest.mark.parametrize(
    ("text", "space"),
    [
        ("a=range(0.5,3.5,1)", CategoricalDistribution([0.5, 1.5, 2.5])),
        ("a=range(4,1,-1)", CategoricalDistribution([4, 3, 2])),
        ("a=range(1,6,2)", IntDistribution(1, 5, step=2)),
        ("a=int(interval(1,9))", IntDistribution(1, 9)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=x,y", CategoricalDistribution(["x", "y"])),
    ],
)
def test_distribution_matches_hydra_sweep_syntax(text, space):
    assert drawn_from(text) == space


@pytest.mark.parametrize("text", ["a=glob(e*)", "a=range(3,1)", "a=tag(log,range(1,9))"])
def test_distribution_refuses_glob_empty_range_and_range_with_log(text):
    refused(lambda: drawn_from(text), "list ")


@pytest.fixture
def search(tmp_path, monkeypatch):
    """``search(figures, *typed, metric=...)``: a search whose trials give these values of psnr."""

    def run(figures, *typed: str, metric: str = "val.bound.mean", first: int = 0):
        sweeper = OptunaSweeper(
            len(figures), 1, 1, False, 0, 0, {"optimizer.lr": "interval(0.1,0.2)"}
        )
        sweeper.config = OmegaConf.create(
            {"optimized_metric": metric, "hydra": {"sweep": {"dir": str(tmp_path)}}}
        )
        asked = [[]] * first

        def launch(overrides, initial_job_idx):
            asked.append(overrides[0])
            make_run(tmp_path, "v", 1, 2.0, overrides=[str(len(asked))], metrics={"psnr": "higher"})
            return [SimpleNamespace(return_value=figures[len(asked) - 1])]

        hook = SimpleNamespace(
            reserve=lambda cells: None, plan=lambda jobs: {}, expect=lambda jobs: None
        )
        hook.root, hook.cell_directory_name = tmp_path, lambda job: str(len(asked) + 1)
        monkeypatch.setattr(sweep, "current_hook", lambda: hook)
        sweeper.launcher = SimpleNamespace(launch=launch)
        monkeypatch.setattr(sweeper, "validate_batch_is_legal", lambda batch: None)
        sweeper._search([*typed])
        return asked, optuna.load_study(
            study_name="search", storage=f"sqlite:///{tmp_path}/study.db"
        )

    return run


def test_typed_value_replaces_searched_parameter(search):
    asked, study = search([1.0], "optimizer.lr=0.01", "optimizer.weight_decay=interval(0,1)")
    assert asked[0][0] == "optimizer.lr=0.01" and {*study.best_params} == {"optimizer.weight_decay"}


@pytest.mark.parametrize(("metric", "best"), [("val.psnr.mean", 1), ("val.bound.mean", 0)])
def test_search_maximizes_metric_where_higher_is_better(search, capsys, metric, best):
    figures = [8.5, 8.7, 8.6]
    _, study = search(figures, metric=metric)
    assert study.best_trial.number == best
    assert f"best of 3 trials: {figures[best]:.4f}" in capsys.readouterr().out


def test_search_refuses_optimized_metric_missing_in_run(search):
    with pytest.raises(UserError, match=r"optimized_metric=val\.none\.mean: 1 lacks this metric"):
        search([None], metric="val.none.mean")


def test_resumed_search_refuses_other_optimized_metric(search):
    search([1.0], metric="val.psnr.mean")
    refused(
        lambda: search([1.0, 1.0], metric="val.bound.mean", first=1),
        "optimized_metric=val.bound.mean: this search optimises val.psnr.mean; choose another name",
    )


@pytest.mark.parametrize(
    "metric",
    [
        *("val.bond.mean", "val.bound", "cost.nonsense", "seconds.fot", "estimator.stderr"),
        *("baselines.unifrom.mean", "measures.fidd.mean"),
    ],
)
def test_unknown_optimized_metric_is_refused_before_writing(root, inside, metric):
    done = inside(
        "triptych.cli.train", "-m", "hparams_search=optuna", "name=s", f"optimized_metric={metric}"
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(
        f"error: optimized_metric={metric}: no such metric is recorded; must be like val.bound.mean"
    )
    assert not (root / "logs").exists()


def test_optimized_metric_of_test_with_test_false_is_refused(root, inside):
    typed = ["optimized_metric=test.bpd.mean", "test=false"]
    done = inside("triptych.cli.train", "-m", "hparams_search=optuna", "name=s", *typed)
    assert done.returncode == 1 and "no such metric is recorded" in done.stderr
    assert not (root / "logs").exists()


@pytest.mark.parametrize(
    "metric",
    [
        *("test.bpd_prior.mean", "val.psnr.stderr", "measures.fid.mean", "measures.psnr.stderr"),
        *("seconds.fit", "cost.memory", "estimator.variance", "baselines.histogram.mean"),
    ],
)
def test_optimized_metric_accepts_any_figure_of_summary(metric):
    check_optimized_metric({"optimized_metric": metric, "metrics": {"psnr": {}}})


def test_optimized_metric_names_metric_with_special_characters():
    config = {"optimized_metric": "val.bound.mean", "metrics": {"snr(db": {}}}
    refused(lambda: check_optimized_metric(config), "metrics.snr(db: must be a name of letters")


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("objective=choice(epsilon,nonsense)", "objective=nonsense: no such choice"),
        ("objective=glob(*)", "objective=glob(*): cannot be searched over"),
        ("optimizer.lr=interval(0.1,0.01)", "optimizer.lr=interval(0.1,0.01): "),
        ("optimizer.lr=interval(-0.1,0.1)", "optimizer.lr=-0.1: must be "),
        ("trainer.max_steps=choice(6,many)", "trainer.max_steps='many': must be "),
    ],
)
def test_search_space_with_invalid_value_is_refused_before_writing(root, inside, typed, problem):
    done = inside("triptych.cli.train", "-m", "hparams_search=optuna", "name=s", typed)
    refused_command(done, problem)
    assert not (root / "logs").exists()


def test_probe_jobs_cover_each_choice_and_both_ends():
    assert probe_jobs({"a": "choice(x,y)"}, ["c=1", "b=range(1,10)"]) == [
        ["c=1", "a=x", "b=1"],
        ["c=1", "a=y", "b=1"],
        ["c=1", "a=x", "b=9"],
    ]


def test_resumed_search_refuses_other_set_of_keys(search, tmp_path):
    decay = "optimizer.weight_decay=interval(0,1)"
    search([1.0], decay)
    problem = "a search cannot add or drop keys; choose another name"
    for key, other in (
        ("optimizer.lr", "optimizer.lr=0.15"),
        ("optimizer.eps", "optimizer.eps=interval(1,2)"),
    ):
        refused(lambda other=other: search([1.0, 1.0], decay, other, first=1), f"{key}: {problem}")
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(study.trials) == 1


def test_pruning_writes_prune_file_into_run_directory(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    (run / "metrics.csv").write_text("step,val/bpd\n10,2.0\n")
    (run / PRUNE).symlink_to(outside)
    trial = SimpleNamespace(report=lambda value, step: None, should_prune=lambda: True)
    with _TrialMonitor([trial], [run]):
        time.sleep(0.8)
    assert (run / PRUNE).is_file() and not outside.exists()


@pytest.mark.parametrize("measure", ["bpd", "nats_per_dim"])
def test_figure_test_bound_mean_is_in_unit_of_data(tmp_path, measure):
    run = RunDirectory(make_run(tmp_path, "v", 1, 2.0, measure=measure))
    assert (
        run.summary().figure("test.bound.mean") == 2.0
        and run.summary().figure("test.none.mean") is None
    )


def test_a_study_of_an_earlier_version_goes_on_with_the_figure_that_it_began_with(
    search, tmp_path, capsys
):
    study = optuna.create_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    study.add_trial(optuna.create_trial(params={}, distributions={}, value=1.5))
    search([2.0, 2.5])
    assert "best of 2 trials: 1.5000" in capsys.readouterr().out
    refused(
        lambda: search([0.0, 0.0, 8.0], metric="val.psnr.mean", first=2), "optimises val.bound.mean"
    )


def test_study_of_earlier_version_that_minimised_rising_metric_is_refused(search, tmp_path):
    study = optuna.create_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    study.add_trial(optuna.create_trial(params={}, distributions={}, value=1.5))
    refused(lambda: search([0.0, 8.0], metric="val.psnr.mean", first=1), "has minimised it so far")


def test_resumed_search_refuses_other_kind_of_values(search, tmp_path):
    search([1.0])
    known = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    for other in ("interval(0.1,0.2)", "choice(0.1,0.2)"):
        typed = (
            f"optimizer.lr=tag(log,{other})"
            if other.startswith("interval")
            else f"optimizer.lr={other}"
        )
        refused(
            lambda typed=typed: search([1.0, 1.0], typed, first=1),
            "optimizer.lr: its values do not fit",
        )
    again = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(again.trials) == len(known.trials) == 1


@pytest.mark.parametrize("ends", ["interval(2,1)", "tag(log,interval(0.0,1.0))"])
def test_search_refuses_empty_interval(search, ends):
    refused(lambda: search([1.0], f"optimizer.lr={ends}"), f"optimizer.lr={ends}: ")
