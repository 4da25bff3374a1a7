"""Bad input to the commands: one line, a non-zero exit code, no directory that looks finished."""

import json

import pytest

from tests.refusal import refused
from triptych.run.execute import execute

NO_AVERAGE = "callbacks.ema=null weights=raw"
REFUSED = [
    (
        "schedule.gamma_min=5 schedule.gamma_max=-5",
        "schedule.gamma_min=5 ... gamma_min < gamma_max",
    ),
    ("objective=levels data=ring denoiser=mlp", "objective=levels ... discrete levels"),
    ("callbacks.ema.sigma_rel=2", "callbacks.ema.sigma_rel=2 ... below 0.2887"),
    ("callbacks.ema.others=[0.1,0]", "callbacks.ema.sigma_rel=0:"),
    ("callbacks.ema.half_life=100", "half_life=100 ... sigma_rel=0.05 ... null"),
    ("callbacks.ema.sigma_rel=null callbacks.ema.half_life=0", "callbacks.ema.half_life=0"),
    (
        "callbacks.ema.snapshots=4 callbacks.ema.others=[]",
        "callbacks.ema.snapshots=4 ... two lengths",
    ),
    ("weights=chosen data.val_size=0", "weights=chosen: needs validation items"),
    ("trainer=fsdp", f"trainer.strategy=fsdp ... pass {NO_AVERAGE}"),
    (
        f"trainer=fsdp {NO_AVERAGE} objective/loss=edm2",
        "fsdp ... EDM2 normalizes whole weights ... use trainer=ddp",
    ),
    (
        f"trainer=fsdp {NO_AVERAGE} trainer.gradient_clip_val=1.0",
        "gradient_clip_val=1.0 ... pass null",
    ),
    (f"trainer=cpu trainer.strategy=fsdp {NO_AVERAGE} trainer.gradient_clip_val=null", "GPU"),
    ("metrics=condition_bits", "metrics.condition_bits ... set model.conditional=true"),
    ("metrics=noisy_bounds model=vae", "metrics.weighted_loss ... needs model=diffusion"),
    (
        "data=ring model=oracle metrics=gradient_noise",
        "metrics.gradient_noise: this model trains no network",
    ),
    (
        "checkpoint=best trainer.val_check_interval=7",
        "checkpoint=best: ... no validation",
    ),
    (
        "test=false data.val_size=0",
        "test=false: data ... no val items to report; set data.val_size",
    ),
    ("sampler=chosen", "sampler.by=text_embedding ... use sampler=ddim"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_invalid_configuration_is_refused_before_first_step(prepared, root, line, words):
    """The job's process refuses them, and the commands print exactly this line."""
    refused(lambda: execute(prepared(*line.split())), *words.split(" ... "))
    stages = {json.loads(summary.read_text())["stage"] for summary in root.rglob("summary.json")}
    assert stages <= {"build"}, "so that the directory is removed"
