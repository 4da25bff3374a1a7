"""Models by choices of names: built, trained, evaluated, reopened and refused."""

import shutil

import pytest
from omegaconf import OmegaConf

import triptych
from tests.refusal import refused
from tests.run.commands import evaluated
from triptych.config.compose import compose_command, without_hydra
from triptych.data.build import build_data
from triptych.run.execute import execute
from triptych.run.model import build_model
from triptych.run.reopen import reopen
from triptych.study.rounds import grid_jobs

POINTS = "data=ring data.train_size=300 data.val_size=50 data.test_size=100".split()
RING = [*POINTS, "denoiser=mlp", "denoiser.network.width=16", "denoiser.network.blocks=1"]
IMAGES = ["model.network.width=8", "model.importance_samples=4"]
# Runs that read neither the test set nor pictures.
BRIEF = ["test=false", "samples.n=0", "trainer.val_check_interval=6"]


def test_vae_run_trains_samples_and_reopens(prepared):
    run = prepared("model=vae", *IMAGES)
    summary = execute(run)
    test = summary["test"]
    assert test["bpd_kl_1"]["mean"] == pytest.approx(test["bpd_prior"]["mean"])
    assert test["bpd_iw"]["mean"] <= test["bpd"]["mean"] + 1e-3
    assert (run / "samples" / "final.png").is_file() and summary["status"] == "finished"
    assert triptych.load(run.path).evaluate("test") == test


def test_distilled_student_reopens_without_its_teacher(prepared):
    teacher = prepared(*RING, *BRIEF, "objective=v", path="teacher")
    execute(teacher)
    asked = [*RING, "objective=v", "objective.steps=4", f"objective.teacher='{teacher.path}'"]
    other = prepared(*asked, "process=ve", path="other")
    refused(
        lambda: execute(other),
        "its process VariancePreserving differs from the model's, VarianceExploding",
    )
    student = prepared(*asked, *BRIEF, f"init_from='{teacher.path}'", path="student")
    assert execute(student)["status"] == "finished"
    shutil.rmtree(teacher.path)
    opened = reopen(str(student / "checkpoints" / "last.ckpt"))
    assert opened.model.objective.teacher is None
    another = prepared(*asked, "seed=2", path="another")
    refused(lambda: execute(another), "objective.teacher=", ": no such file")


def test_discrete_time_run_records_schedule_and_estimator(prepared):
    run = prepared("samples.n=0", "objective.steps=3", "bound.steps=3")
    summary = execute(run)
    assert summary["schedule"]["t"][0] == 0.0 and summary["schedule"]["gamma"][-1] == 6.0
    test = summary["test"]["bpd_diffusion"]["mean"] * 64 * 0.6931471805599453
    assert summary["estimator"]["mean"] == pytest.approx(test, rel=1e-5)
    assert summary["estimator"]["variance"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["bound.variance=learned", "bound.steps=5"],
            ["objective.steps=null", "objective.steps=T"],
        ),
        (["model=vae", "objective=x0"], ["objective", "pass objective=none"]),
        (["model=vae", *POINTS], ["model.network", "images"]),
        (
            ["model=vae", "sampler=ddim"],
            ["sampler: VAE cannot use DDIM; leave out the key sampler"],
        ),
        (["schedule=learned", "objective/loss=simple"], ["objective/loss=elbo"]),
        (["schedule=learned", "objective/times=adaptive"], ["schedule=learned", "stratified"]),
        (
            ["objective/loss=edm2", "objective/times=adaptive"],
            ["objective/times=adaptive", "never negative, unlike EDM2"],
        ),
        (["objective.teacher=/nowhere"], ["objective.teacher=/nowhere", "objective.steps=T"]),
        (["objective/loss=vlb"], ["objective.loss=Vlb", "objective.steps=T"]),
        (
            ["objective/times=log_normal", "objective.times.mean=9"],
            ["objective.times=LogNormal", "=Elbo"],
        ),
        (["likelihood=ode"], ["likelihood.dequantisation=none", "uniform"]),
    ],
)
def test_incompatible_model_choices_are_refused(prepared, arguments, words):
    refused(lambda: execute(prepared(*arguments)), *words)


def test_evaluate_accepts_other_reverse_variances(prepared):
    run = prepared(*RING, *BRIEF)
    execute(run)

    def bound(*overrides: str) -> float:
        return evaluated(run.path, "steps=4", *overrides)["nats_per_dim"]["mean"]

    assert bound("variance=optimal") < bound()
    refused(lambda: bound("variance=learned"), "objective.steps=null", "set objective.steps=T")


def test_bound_variance_learned_trains(prepared):
    run = prepared(*RING, *BRIEF, "bound.steps=5", "objective.steps=5", "bound.variance=learned")
    assert execute(run)["val"]["nats_per_dim"]["mean"] < 1e3


@pytest.mark.parametrize(("name", "rungs"), [("ladder", 11), ("learned_snr", 6)])
def test_ablation_settings_build_with_equal_model_sizes(root, name, rungs):
    data, sizes, ablation = None, [], [f"ablation={name}"]
    for job in grid_jobs(compose_command("train", ablation).hydra.sweeper, ["seed=1"]):
        config = OmegaConf.to_container(
            without_hydra(compose_command("train", [*ablation, *job])), resolve=True
        )
        data = data or build_data(config)
        sizes.append(sum(p.numel() for p in build_model(config, data).parameters()))
    assert len(sizes) == rungs
    assert 95_000 < min(sizes) <= max(sizes) < 110_000
