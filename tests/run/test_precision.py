"""Mixed precision and compiled networks make training faster and change no reported figure."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from tests.models.test_meta import MODELS
from tests.run.accidents import rows, stop_after
from triptych.models.diffusion import Diffusion
from triptych.run.drawing import Drawing
from triptych.run.evaluate import evaluate_split
from triptych.run.execute import execute
from triptych.run.model import set_up_torch
from triptych.run.progress import SampleGrid
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


SMALL_UNET = ("denoiser=unet", "denoiser.network.widths=[16,32]", "denoiser.network.blocks=1")


@pytest.mark.slow
def test_bf16_mixed_has_the_losses_of_full_precision_over_200_steps(prepared):
    """Both see the same batches, times and noise, so their losses differ by rounding alone."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        run = prepared(
            *SMALL_UNET,
            f"trainer.precision={precision}",
            "data.batch_size=32",
            "trainer.max_steps=200",
            "trainer.val_check_interval=200",
            "trainer.log_every_n_steps=1",
            "samples.n=0",
            "bound.repeats=1",
            path=precision,
        )
        assert execute(run)["status"] == "finished"
        logged = [float(row["train/loss"]) for row in rows(run) if row["train/loss"]]
        losses[precision] = torch.tensor(logged).view(4, 50).mean(1)
    print({name: means.tolist() for name, means in losses.items()})
    torch.testing.assert_close(losses["bf16-mixed"], losses["32-true"], rtol=0.02, atol=0.0)
    assert losses["32-true"][-1] < 0.7 * losses["32-true"][0], "it trains"


def tf32_flags() -> tuple[bool, bool]:
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_in_training_steps_alone(prepared, monkeypatch, allowed):
    seen: dict[str, set[tuple[bool, bool]]] = {}

    def watch(owner, name):
        method = getattr(owner, name)

        def watched(self, *arguments, **keys):
            seen.setdefault(name, set()).add(tf32_flags())
            return method(self, *arguments, **keys)

        monkeypatch.setattr(owner, name, watched)

    for name in ("training_step", "backward", "validation_step", "test_step"):
        watch(Diffusion, name)
    watch(SampleGrid, "on_train_batch_end")
    watch(Drawing, "draw")
    run = prepared(
        f"trainer.tf32={str(allowed).lower()}",
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "samples.n=4",
        "samples.pictures=2",
        "bound.repeats=1",
    )
    assert execute(run)["status"] == "finished"
    full = {(False, False)}
    assert seen.pop("training_step") == seen.pop("backward") == {(allowed, allowed)}
    assert seen == dict.fromkeys(
        ("validation_step", "test_step", "on_train_batch_end", "draw"), full
    )
    assert tf32_flags() == (False, False)


def test_a_failed_step_leaves_tf32_off(prepared, monkeypatch):
    def fail(*_):
        assert tf32_flags() == (True, True)
        raise RuntimeError("no step")

    monkeypatch.setattr(Diffusion, "training_step", fail)
    with pytest.raises(RuntimeError, match="no step"):
        execute(prepared("trainer.tf32=true", *FEW))
    assert tf32_flags() == (False, False)


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
