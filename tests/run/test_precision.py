"""Mixed precision and compiled networks make training faster and change no reported figure."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.models.test_meta import MODELS
from tests.run.accidents import rows, stop_after
from triptych.models.diffusion import Diffusion
from triptych.run.evaluate import evaluate_split
from triptych.run.execute import execute
from triptych.run.model import set_up_torch
from triptych.run.reopen import reopen
from triptych.run.trainer import build_trainer
from triptych.run.untrusted import read_checkpoint

FEW = ("trainer.max_steps=3", "trainer.val_check_interval=3", "samples.n=0", "bound.repeats=1")


def test_bf16_mixed_trains_and_bound_is_computed_in_float32(prepared, monkeypatch):
    seen, loss = [], Diffusion.loss

    def watched(self, *rest):
        raw = []
        hook = self.denoiser.network.register_forward_hook(lambda _, __, out: raw.append(out.dtype))
        nats = loss(self, *rest)
        hook.remove()
        seen.append((raw[0], nats.dtype, self.trainer.optimizers[0].defaults["fused"]))
        return nats

    monkeypatch.setattr(Diffusion, "loss", watched)
    run = prepared("trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1e-3", *FEW)
    summary = execute(run)
    assert (
        seen == [(torch.bfloat16, torch.float32, False)] * 3
    )  # what the network gives, what is summed
    steps = [row for row in rows(run) if row["train/loss"]]
    assert all(
        float(r["train/clipped"]) == 1.0 and float(r["train/grad_norm"]) > 1e-3 for r in steps
    )
    opened = reopen(str(run / "checkpoints" / "last.ckpt"))
    for precision in ("32-true", "bf16-mixed"):
        opened.config["trainer"]["precision"] = precision
        trainer = build_trainer(opened.config, None, [])
        found = evaluate_split(trainer, opened.model, opened.data, "val").figures
        assert found["bpd"] == summary["val"]["bpd"], precision
        assert found["bpd_diffusion"] == summary["val"]["bpd_diffusion"], precision


def test_single_precision_is_not_tf32():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    set_up_torch(torch.get_num_threads())
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [
        ("32-true", 1.0, True),
        ("bf16-mixed", None, True),
        ("bf16-mixed", 1.0, False),
        ("16-mixed", None, False),
    ],
)
def test_steps_are_fused_unless_a_scale_or_clipping_forbids_it(precision, clip, fused):
    model = MODELS["linear"]()
    model.optimizer = partial(torch.optim.AdamW, lr=1e-3, fused=True)
    model._trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip, max_steps=3)
    assert model.configure_optimizers()["optimizer"].defaults["fused"] is fused


def test_compile_applies_to_training_only_and_keeps_weight_names(prepared, monkeypatch):
    """A stub compiler counts its calls: it compiles in the fit alone.

    Names stay plain, and a run can resume without it.
    """
    calls = []

    def counting(function, **_):
        def call(*args, **kwargs):
            calls.append(1)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "compile", counting)
    stop_after(prepared("compile=true", *FEW), 2)
    in_the_fit = len(calls)
    assert in_the_fit >= 2, "each step"
    run = prepared("compile=false", *FEW)
    execute(run)
    assert len(calls) == in_the_fit and run.config()["compile"] is False
    names = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert "denoiser.network.first.weight" in names and not any(
        "_orig_mod" in name for name in names
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "model", [("denoiser=mlp", "data=ring", "data.train_size=500"), ("model=vae_mlp",)]
)
def test_a_compiled_network_trains_alike(prepared, model):
    """The real compiler is used, and losses are those of the plain network."""
    losses = {}
    for state in ("true", "false"):
        run = prepared(*model, *FEW, f"compile={state}", "seed=3", path=state)
        assert execute(run)["status"] == "finished"
        found = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        losses[state] = {name: value for name, value in found.items() if value.is_floating_point()}
    assert [*losses["true"]] == [*losses["false"]]
    for name, value in losses["true"].items():
        torch.testing.assert_close(value, losses["false"][name], rtol=1e-3, atol=1e-4)
