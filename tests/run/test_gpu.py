"""Runs on a GPU have the CPU's figures up to rounding, also in mixed precision."""

import pytest
import torch

from triptych.run.account import evaluate_split
from triptych.run.execute import execute
from triptych.run.fit import build_trainer
from triptych.run.reopen import reopen

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = "trainer.accelerator=gpu"
# Relative. float32 has 24 bits (6e-8), and sums of thousands of terms in another order lose some of
# them. TF32, which is off, has eleven bits (5e-4) and would fail.
FLOAT32 = 1e-4


def test_a_fit_has_the_bound_of_one_on_a_cpu(prepared):
    on_cpu = execute(prepared(path="cpu"))["test"]["bpd"]["mean"]
    same_noise = prepared(GPU, "draws=batch", path="gpu")
    on_gpu = execute(same_noise)["test"]["bpd"]["mean"]
    assert on_gpu == pytest.approx(on_cpu, rel=10 * FLOAT32)  # after six steps of Adam


def test_a_checkpoint_has_the_same_bound_on_both(prepared):
    run = prepared()
    on_cpu = execute(run)["test"]["bpd"]
    opened = reopen(str(run / "checkpoints" / "last.ckpt"))
    opened.config["trainer"]["accelerator"] = "gpu"
    trainer = build_trainer(opened.config, None, [])
    on_gpu = evaluate_split(trainer, opened.model, opened.data, "test").figures["bpd"]
    assert on_gpu["n"] == on_cpu["n"]
    assert on_gpu["mean"] == pytest.approx(on_cpu["mean"], rel=FLOAT32)


def test_bf16_trains_and_reports_a_bound_of_full_precision(prepared):
    full = execute(prepared(GPU, path="full"))["test"]["bpd"]["mean"]
    mixed = execute(prepared(GPU, "trainer.precision=bf16-mixed", path="mixed"))
    assert mixed["status"] == "finished"
    assert mixed["test"]["bpd"]["mean"] == pytest.approx(full, rel=0.05)
