"""Run the claims that need no training: each sweep as its command does, in this process.

Only where a run's own process would begin it goes on here, so that torch is imported once.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.data.helpers import write_mnist
from triptych.cli import train as door
from triptych.config.check import CONFIGS
from triptych.config.compose import compose_command
from triptych.run.build import build_experiment
from triptych.run.directory import RunDirectory
from triptych.run.execute import execute
from triptych.run.prepare import prepare
from triptych.run.request import resolve
from triptych.run.untrusted import OWN
from triptych.study.rounds import grid_jobs
from triptych.study.study import read_study

EXACT = sorted(
    f.stem for f in (CONFIGS / "paper").glob("*.yaml") if "/ablation/base/exact" in f.read_text()
)
# Results that follow from theory with an exact denoiser; only a sweep can test other claims.
KNOWN = {
    ("vdm_steps", "falls"): "holds",  # a finer partition has a lower bound (VDM, app. F)
    ("vdm_schedules", "same_bound"): "holds",  # the endpoints alone matter (VDM, eq. 18)
    ("iddpm_few_steps", "learned"): "holds",  # the optimal variance is the bound's minimum
    ("sde_likelihood", "one_density"): "holds",  # one density, whatever the process
    ("ncsn_langevin", "annealed"): "reproduced",
    ("ncsn_langevin", "plain"): "reproduced",  # no path between modes as far apart as these
}


def job(argument: str, log: Path) -> int:
    """Replace ``jobs.run_job``."""
    path = argument.partition("=")[2]
    os.environ[OWN] = path
    execute(RunDirectory(path))
    return 0


def sweep(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Path:
    """Run ``triptych-train -m paper=NAME ...`` and return its directory."""
    monkeypatch.setattr(door.jobs, "run_job", job)
    line = ["triptych-train", "-m", f"paper={name}", "hydra/launcher=basic", *overrides]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert ended.value.code == 0
    (directory,) = (root / "logs" / "sweeps").iterdir()
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_exact_paper_claims_are_decided_as_known(name, root, monkeypatch, capsys):
    directory = sweep(name, root, monkeypatch)
    out = capsys.readouterr().out
    published = read_study([directory]).published
    assert published is not None and not published.changed
    assert json.loads((directory / "sweep.json").read_text())["paper_name"] == name
    for judgement in published.judgements:
        assert not any(measured.trouble for measured in judgement.measured), judgement.line
        assert judgement.word == KNOWN.get((name, judgement.claim.name), judgement.word), (
            judgement.line
        )
        assert f"{judgement.word}: {judgement.claim.says}" in out


# A claim's `otherwise`, or another ingredient, under which the claim is contradicted.
SETTINGS = "hydra.sweeper.settings"
EDM = (
    "'process=edm','process.sigma_data=0.75','schedule=linear','objective=edm',"
    "'objective.output.sigma_data=0.75','objective/loss=edm','objective.loss.sigma_data=0.75',"
    "'objective/times=log_normal','objective.times.mean=-6','objective.loss.mean=-6'"
)
LINEAR = (
    "'objective=velocity','objective/loss=path_velocity','process=rectified','schedule=straight',"
    "'sampler.steps=1'"
)
OTHERWISE = [
    ("guidance_interval", "limited", f"{SETTINGS}.everywhere=['guidance.scale=1']"),
    ("guidance_interval", "early", f"{SETTINGS}.from_the_start=['guidance.scale=1']"),
    ("guidance_interval", "late", f"{SETTINGS}.to_the_end=['guidance.scale=8']"),
    ("ncsn_langevin", "annealed", "sampler.steps=1"),
    ("ncsn_langevin", "plain", "data.means=[[-0.3,-0.3],[0.3,0.3]]"),
    ("vdm_steps", "saturates", "schedule.gamma_min=-30"),
    ("sit_paths", "path", f"{SETTINGS}.linear=[{LINEAR}]"),
    ("edm_training", "loss", f"{SETTINGS}.edm=[{EDM}]"),
    ("vdm_endpoints", "clean", "seed=1,2,3"),  # too few steps to learn endpoints
]


# Trained networks: a planted effect shows after a few steps.
def steps(n: int) -> list[str]:
    return [f"trainer.max_steps={n}", f"trainer.val_check_interval={n}"]


SMALL_SAMPLES = ["measures.n=300", "data.test_size=100", "bound.repeats=1"]
CHEAPER = {
    "sit_paths": [*steps(200), *SMALL_SAMPLES],
    "edm_training": [
        *steps(200),
        *("bound.repeats=1", "setting=vp_preconditioned,ve_preconditioned,edm"),
        *(f"~paper.claims.{other}" for other in ("rescue", "neutral", "augmentation")),
    ],
    "vdm_endpoints": [*steps(60), "samples.n=0"],
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name, claim, planted", OTHERWISE, ids=lambda value: value if len(value) < 20 else ""
)
def test_changed_ingredient_contradicts_claim(name, claim, planted, root, monkeypatch):
    if compose_command("train", [f"paper={name}"]).measures.classifier:
        classifier = compose_command("train", ["experiment=digits_classifier", "logger=csv"])
        path = root / "logs" / "runs" / "digits_classifier"
        execute(prepare(resolve(classifier, path)))
    directory = sweep(name, root, monkeypatch, planted, *CHEAPER.get(name, []), "seed=1,2,3")
    published = read_study([directory]).published
    assert published is not None
    judgement = next(j for j in published.judgements if j.claim.name == claim)
    assert judgement.word == "contradicted", judgement.line


def test_exact_papers_exist():
    assert len(EXACT) >= 7 and {name for name, _ in KNOWN} <= set(EXACT)


@pytest.mark.parametrize(
    "name", sorted({f.stem for f in (CONFIGS / "paper").glob("*.yaml")} - set(EXACT))
)
def test_every_setting_of_trained_paper_builds(name, root):
    """Each value of each axis is built, in as few runs as possible."""
    write_mnist(
        root / "data" / "FashionMNIST", train=1100, ending=""
    )  # the machine may not have it
    unmeasured = [
        "measures.n=0",
        "measures.classifier=null",
        "measures.over=null",
        "measures.values=[]",
    ]
    unmeasured.append("~paper.claims")  # which may refer to what is measured
    jobs = grid_jobs(compose_command("train", [f"paper={name}"]).hydra.sweeper, ["seed=1"])
    left = {value for job in jobs for value in job}
    assert left
    while left:
        job = max(jobs, key=lambda job: len(left.intersection(job)))
        left.difference_update(job)
        cfg = compose_command("train", [f"paper={name}", *job, *unmeasured])
        config = resolve(cfg, root).config
        model = build_experiment(config, download=False).model
        assert model.loss is not None
        if name == "ddpm_fashion":
            assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6
