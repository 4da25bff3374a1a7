"""A search keeps its study in the sweep's directory, resumes, and stops hopeless runs."""

import shutil
import subprocess
import time

import optuna
import pytest

from tests.run.commands import command, end
from tests.study.test_sweep_survives import killed_twice

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SPACE = ["hparams_search=optuna", "hydra.sweeper.n_jobs=2"]


def search(root, *arguments: str) -> subprocess.CompletedProcess:
    line = command(
        "-m", *SPACE, "trainer.max_steps=60", "trainer.val_check_interval=10", *arguments
    )
    return end(line, root)


def study(root):
    [path] = root.rglob("study.db")
    return optuna.load_study(study_name="search", storage=f"sqlite:///{path}")


def states(root) -> list[str]:
    return [trial.state.name for trial in study(root).trials]


def test_optuna_search_killed_twice_matches_undisturbed_one(root):
    long = ["trainer.max_steps=600", "trainer.val_check_interval=100"]
    line = command("-m", *SPACE, *long, "hydra.sweeper.n_trials=6", "hydra.sweeper.prune=false")
    _, found, untouched = killed_twice(line, root, (1, 3), lambda _: time.sleep(3.0))
    known, undisturbed = study(root / "noisy"), study(root / "quiet")
    assert [t.state.name for t in known.trials] == ["COMPLETE"] * 6
    assert [(t.params, t.value) for t in known.trials] == [
        (t.params, t.value) for t in undisturbed.trials
    ]
    assert {k: v for k, v in found.items() if k in untouched} == untouched
    assert len(found) == 6


def test_optuna_search_prunes_hopeless_runs(root):
    """After two good trials, one has a learning rate at which nothing is learned."""
    place = [
        "hydra.sweeper.prune_after_trials=2",
        "hydra.sweeper.n_jobs=1",
        "trainer.max_steps=1500",
    ]
    place += ["hydra.sweeper.params={optimizer.lr:'choice(0.01,0.02,1e-7)'}"]
    search(root, *place, "hydra.sweeper.n_trials=1")
    [path] = root.rglob("study.db")  # where it looks for one; ours has its trials told beforehand
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    planned = optuna.create_study(study_name="search", storage=f"sqlite:///{path}")
    for rate in (0.01, 0.02, 1e-7):
        planned.enqueue_trial({"optimizer.lr": rate})
    search(root, *place, "hydra.sweeper.n_trials=3")
    assert states(root) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert len(list(root.rglob("summary.json"))) == 2 and len(list(root.rglob("last.ckpt"))) == 3


def test_optuna_search_exits_with_1_if_all_trials_fail(root):
    beyond = [
        "checkpoint=best",
        "trainer.val_check_interval=choice(2000,3000)",
    ]  # no step is validated
    done = end(command("-m", *SPACE, "hydra.sweeper.n_trials=2", *beyond), root, code=1)
    assert "2 failed" in done.stdout


def test_unreadable_study_db_is_one_line(root, inside):
    file = root / "logs" / "sweeps" / "s" / "study.db"
    file.parent.mkdir(parents=True)
    file.write_text("garbage" * 100)
    done = inside("triptych.cli.train", "-m", "hparams_search=optuna", "name=s")
    *_, line = filter(None, done.stderr.splitlines())
    assert done.returncode == 1 and line.startswith(
        f"error: {file}: cannot be opened as a study of Optuna"
    )
