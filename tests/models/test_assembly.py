"""From choices by name to the models of the bound: built, trained, accounted, reopened, refused."""

import json

import pytest

from tests.refusal import refused
from triptych.errors import UserError
from triptych.run.execute import execute

POINTS = "data=ring data.train_size=300 data.val_size=50 data.test_size=100".split()
RING = [*POINTS, "denoiser=mlp", "denoiser.network.width=16", "denoiser.network.blocks=1"]
IMAGES = ["model.network.width=8", "model.importance_samples=4"]
# where neither the test set nor pictures are looked at
BRIEF = ["test=false", "samples.n=0", "trainer.val_check_interval=6"]


def figures(run) -> dict:
    return json.loads((run / "summary.json").read_text())["test"]


def test_a_vae_trains_samples_and_is_reopened(prepared):
    from triptych.run.account import account_split
    from triptych.run.fit import build_trainer
    from triptych.run.reopen import reopen

    run = prepared("model=vae", *IMAGES)
    summary = execute(run)
    test = figures(run)
    assert test["bpd_kl_1"]["mean"] == pytest.approx(test["bpd_prior"]["mean"])
    assert test["bpd_iw"]["mean"] <= test["bpd"]["mean"] + 1e-3
    assert (run / "samples" / "final.png").is_file() and summary["status"] == "finished"
    opened = reopen(str(run / "checkpoints" / "last.ckpt"))
    again = account_split(build_trainer(opened.config, None, []), opened.model, opened.data, "test").figures
    assert again == test


def test_a_student_is_taught_and_needs_its_teacher_no_more(prepared):
    import shutil

    from triptych.run.reopen import reopen

    teacher = prepared(*RING, *BRIEF, "objective=v", path="teacher")
    execute(teacher)
    asked = [*RING, "objective=v", "objective.steps=4", f"objective.teacher='{teacher.path}'"]
    with pytest.raises(UserError, match="its process is VariancePreserving, the model's VarianceExploding"):
        execute(prepared(*asked, "process=ve", path="other"))
    student = prepared(*asked, *BRIEF, f"init_from='{teacher.path}'", path="student")
    assert execute(student)["status"] == "finished"
    shutil.rmtree(teacher.path)
    opened = reopen(str(student / "checkpoints" / "last.ckpt"))
    assert opened.model.objective.teacher is None
    with pytest.raises(UserError, match=r"objective.teacher=.*: no such file"):
        execute(prepared(*asked, "seed=2", path="another"))


def test_training_at_t_steps_and_the_schedule_and_estimator_are_kept(prepared):
    run = prepared("samples.n=0", "objective.steps=3", "bound.steps=3")
    summary = execute(run)
    assert summary["schedule"]["t"][0] == 0.0 and summary["schedule"]["gamma"][-1] == 6.0
    test = summary["test"]["bpd_diffusion"]["mean"] * 64 * 0.6931471805599453
    assert summary["estimator"]["mean"] == pytest.approx(test, rel=1e-5)
    assert summary["estimator"]["variance"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bound.repeats=0"], ["bound.repeats=0", "a whole number of at least 1"]),
        (["bound.variance=learned", "bound.steps=5"], ["objective.steps=null", "whole number"]),
        (["model=vae", "objective=x0"], ["objective", "pass objective=none"]),
        (["model=vae", "bound.steps=10"], ["bound.steps=10", "pass null"]),
        (["model=vae", *POINTS], ["model.network", "images"]),
        (["model=vae", "sampler=ddim"], ["sampler: VAE has no use for DDIM; leave it out"]),
        (["schedule=learned", "objective/loss=simple"], ["objective/loss=elbo"]),
        (["schedule=learned", "objective/times=adaptive"], ["schedule=learned", "stratified"]),
        (["objective.teacher=/nowhere"], ["objective.teacher=/nowhere", "objective.steps=T"]),
        (["objective/loss=vlb"], ["objective.loss=Vlb", "objective.steps=T"]),
        (["objective/times=log_normal", "objective.times.mean=9"], ["objective.times.mean=9", "gamma -8"]),
        (["likelihood=ode"], ["likelihood.dequantisation=none", "uniform"]),
        (["likelihood=ode_images", "threshold=static"], ["threshold", "not the score of any density"]),
        (["likelihood=ode", "guidance=classifier_free", *RING], ["guidance", "not the score of any density"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(prepared, arguments, words):
    refused(lambda: execute(prepared(*arguments)), *words)


def test_one_checkpoint_under_several_reverse_variances(prepared):
    from hydra import compose, initialize_config_dir

    from triptych.cli.evaluate import evaluate_composed
    from triptych.config.check import CONFIGS

    run = prepared(*RING, *BRIEF)
    execute(run)

    def bound(*overrides: str) -> float:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            ckpt = f"ckpt='{run / 'checkpoints' / 'last.ckpt'}'"
            figures = evaluate_composed(compose("evaluate", overrides=[ckpt, "steps=4", *overrides]))
        return figures["nats_per_dim"]["mean"]

    assert bound("variance=optimal") < bound()
    with pytest.raises(UserError, match="variance=learned: .* beta_tilde"):
        bound("variance=learned")


def test_a_learned_reverse_variance_by_name(prepared):
    run = prepared(*RING, *BRIEF, "bound.steps=5", "objective.steps=5", "bound.variance=learned")
    assert execute(run)["val"]["nats_per_dim"]["mean"] < 1e3


@pytest.mark.parametrize("name", ["ladder", "learned_snr"])
def test_every_rung_is_of_one_size_and_can_be_built(root, name):
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from triptych.config.check import CONFIGS
    from triptych.config.names import register_resolvers
    from triptych.data.build import build_data
    from triptych.run.model import build_model
    from triptych.study.rounds import grid

    register_resolvers()
    data, sizes = None, []
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        sweep = compose("train", overrides=[f"ablation={name}"], return_hydra_config=True)
        for job in grid(sweep.hydra.sweeper, ["seed=1"]):
            cfg = compose("train", overrides=[f"ablation={name}", *job])
            config = OmegaConf.to_container(cfg, resolve=True)
            data = data or build_data(config)
            sizes.append(sum(p.numel() for p in build_model(config, data).parameters()))
    assert len(sizes) == {"ladder": 11, "learned_snr": 6}[name]
    assert 95_000 < min(sizes) <= max(sizes) < 110_000
