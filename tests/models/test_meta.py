"""Training and validation steps on the ``meta`` device, on which a hidden ``.item()`` raises."""

import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.strategies import SingleDeviceStrategy

from triptych.callbacks.ema import EMA
from triptych.data.batch import Batch
from triptych.data.mixture import Ring
from triptych.diffusion import loss as losses
from triptych.diffusion.betas import Betas
from triptych.diffusion.block_draws import STREAMS
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import MEMBER, Condition, Labels, Tokens, Vectors
from triptych.diffusion.decoder import Categorical, GaussianDensity
from triptych.diffusion.denoiser import Denoiser, LevelOutput, Output
from triptych.diffusion.draws import StepShare
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Cosine, Linear
from triptych.diffusion.times import Adaptive, Importance, LogNormal
from triptych.models.classifier import Classifier
from triptych.models.denoiser_model import level_edges
from triptych.models.diffusion import Diffusion
from triptych.models.gradients import Gradients
from triptych.models.latent import VAE, HierarchicalVAE
from triptych.models.latent_diffusion import LatentDiffusion
from triptych.models.oracle import OracleModel
from triptych.networks.classifier import ClassifierNetwork
from triptych.networks.ladder import MLPLadder
from triptych.networks.mlp import MLP
from triptych.networks.resnet import ResNet
from triptych.run.build import build_experiment
from triptych.run.checkpoints import CheckpointSaver
from triptych.run.fit import build_callbacks
from triptych.run.progress import Progress
from triptych.run.stopping import Stop
from triptych.run.trainer import build_trainer

from .meta_fit import META, Enough, MetaAccelerator, Repeated, Waits, Watch
from .options import OPTIONS

N, CLASSES = 6, 4
MORE = OPTIONS | {"shape": (2,), "seed": 1, "repeats": 2, "val_repeats": 2}
PROCESS = VariancePreserving


def diffusion(schedule, output, levels=None, steps=None, **options) -> Diffusion:
    conditions = options.pop("conditions", {"label": Labels(CLASSES)})
    sizes = {"outputs": getattr(output, "per_dim", 1), "width": 4, "blocks": 1, "dropout": 0.1}
    network = MLP((2,), conditions=conditions, **sizes)
    decoder = GaussianDensity() if levels is None else Categorical(levels)
    bound = Bound(schedule, decoder, steps)
    objective = Objective(
        output, options.pop("loss", losses.Elbo()), steps, times=options.pop("times", None)
    )
    options = {"label_dropout": 0.1, "conditional": True} | options
    options |= {"levels": levels, "discrete": levels is not None}
    parts = (Denoiser(network, output, PROCESS()), schedule, objective, bound)
    return Diffusion(*parts, **options, **MORE)


def mixture():
    data = Ring(modes=4, radius=1.5, std=0.15, train_size=8, val_size=8, test_size=8, batch_size=4)
    data.setup()
    return data.mixture


def latent(kind, depth, levels=None):
    network = MLPLadder((2,), levels or 2, latents=(2,) * depth, width=4, depth=1)
    options = {"importance_samples": 2}
    return kind(network, levels=levels, discrete=bool(levels), **options, **MORE)


def latent_diffusion() -> LatentDiffusion:
    ladder = MLPLadder((2,), 5, latents=(3,), width=4, depth=1)
    schedule, output = LearnedEndpoints(-6.0, 4.0), Output("v")
    network = MLP((3,), conditions={"label": Labels(CLASSES)}, width=4, blocks=1)
    denoiser = Denoiser(network, output, PROCESS())
    parts = (
        ladder,
        denoiser,
        schedule,
        Objective(output, losses.Elbo()),
        Bound(schedule, GaussianDensity()),
    )
    options = {"levels": 5, "discrete": True, "conditional": True, "label_dropout": 0.1}
    return LatentDiffusion(*parts, **options, **MORE)


MODELS = {
    "linear": lambda: diffusion(Linear(-6.0, 4.0), Output("epsilon"), mixture=mixture()),
    "levels": lambda: diffusion(Cosine(-6.0, 4.0), LevelOutput(5), levels=5, loss=losses.MinSNR()),
    "steps": lambda: diffusion(Linear(-6.0, 4.0), Output("x0"), levels=5, steps=10),
    "log_normal": lambda: diffusion(Linear(-6.0, 4.0), Output("x0"), levels=5, times=LogNormal()),
    "importance": lambda: diffusion(
        Linear(-6.0, 4.0), Output("x0"), levels=5, steps=4, times=Importance(objective_steps=4)
    ),
    "adaptive": lambda: diffusion(Cosine(-6.0, 4.0), Output("v"), levels=5, times=Adaptive(4)),
    "monotone": lambda: diffusion(Monotone(-6.0, 4.0, hidden=4), Output("v"), levels=5),
    "endpoints": lambda: diffusion(LearnedEndpoints(-6.0, 4.0), Output("v"), levels=5),
    "oracle": lambda: OracleModel(
        mixture(), (schedule := Linear(-6.0, 4.0)), PROCESS(), Bound(schedule, GaussianDensity()),
        discrete=False, **MORE,
    ),
    "vae": lambda: latent(VAE, 1, levels=5),
    "hierarchical_vae": lambda: latent(HierarchicalVAE, 3),
    "latent_diffusion": latent_diffusion,
    "classifier": lambda: Classifier(
        ClassifierNetwork((2,), CLASSES, width=4), Linear(-6.0, 4.0), PROCESS(),
        discrete=False, conditional=True, **MORE,
    ),
}  # fmt: skip


def moved(model):
    """Move a model to the device, with a trainer that only gives numbers."""
    model = model.to(META)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=3))
    rate = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    model._trainer = SimpleNamespace(
        accumulate_grad_batches=1,
        fit_loop=loop,
        world_size=1,
        global_rank=0,
        global_step=3,
        log_every_n_steps=1,
        optimizers=[rate],
    )
    model.logged = []
    model.log_model_metrics = lambda figures, **_: model.logged.append(figures)
    return model


def batch() -> Batch:
    """Return a batch as a trainer moves it; the items' places stay numbers, for their noise."""
    label = Condition(label=torch.arange(N) % CLASSES).to(META)
    return Batch(torch.zeros(N, 2, device=META), label, torch.arange(N))


@pytest.mark.parametrize("draws", STREAMS)
@pytest.mark.parametrize("name", MODELS)
def test_training_and_validation_step_run_on_meta_device(name, draws):
    model = moved(MODELS[name]())
    model.random = STREAMS[draws]
    trained = [p for p in model.parameters() if p.requires_grad]
    if trained:
        loss = model.train().training_step(batch(), 0)
        assert loss.device == META and loss.shape == ()
        loss.backward()
        assert all(p.grad.device == META for p in trained if p.grad is not None)
        assert any(p.grad is not None for p in trained)
        torch.optim.AdamW(model.parameter_groups(), lr=1e-3, foreach=True).step()
        assert {"train/loss", "train/loss_variance", "train/lr"} <= set(model.logged[0])
    with torch.no_grad():
        model.train().validation_step(batch(), 0)
        assert not model.training, "a callback may have left it so"
    assert model.accounting.sums.device == META
    extra = model.extra_metrics(batch()) if name.endswith("vae") else {}
    if extra:
        model._evaluate_batch(batch(), 2, extra, report=True)


def test_data_keep_their_mixture_on_the_cpu():
    """They draw true points and an entropy from it after a model was evaluated on a GPU."""
    own, schedule = mixture(), Linear(-6.0, 4.0)
    options = {"discrete": False} | MORE | {"conditional": False}
    model = moved(
        OracleModel(own, schedule, PROCESS(), Bound(schedule, GaussianDensity()), **options)
    )
    with torch.no_grad():
        model.validation_step(batch(), 0)
    assert model.accounting.sums.device == META
    assert {buffer.device.type for buffer in own.buffers()} == {"cpu"}
    assert own.entropy(100).mean > 0


@pytest.mark.parametrize("name", ["betas", "endpoints", "edm2"])
def test_levels_are_computed_where_schedule_and_loss_are(name):
    """Only the numbers themselves, which come last, are missing on this device."""
    schedule, loss = Linear(-6.0, 4.0), losses.Elbo()
    if name == "betas":
        schedule = Betas(10)
    elif name == "endpoints":
        schedule = LearnedEndpoints(-6.0, 4.0)
    else:
        loss = losses.EDM2(channels=4).to(META)
    objective = Objective("x0", loss, times=LogNormal())
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta"):
        objective.effective_share(PROCESS(), schedule.to(META), META)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        level_edges(schedule, META)


def test_callbacks_run_on_meta_device():
    """After a step come averages, gradient norms and the check for finite losses."""
    model = moved(MODELS["linear"]())
    told = {}
    model.log = lambda name, value, **_: told.update({name: value.device})
    average, gradients, stop = EMA(others=(0.1,)), Gradients(clip=1.0), Stop()
    clipped = {"precision_plugin": Precision(), "scaler": None, "callbacks": [gradients]}
    trainer = SimpleNamespace(**vars(model._trainer) | clipped, max_steps=10)
    model._trainer = trainer
    average.on_fit_start(trainer, model)
    average.on_train_start(trainer, model)
    gradients.on_train_start(trainer, model)
    loss = model.training_step(batch(), 0)
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    model.configure_gradient_clipping(optimizer, 1.0)
    trainer.global_step += 1
    average.on_train_batch_end(trainer, model)
    stop.on_train_batch_end(trainer, model, {"loss": loss})
    assert told == {"train/grad_norm": META, "train/clipped": META}
    assert all(p.device == META for p in average.average.values()) and average.updates == 1
    assert stop._first_bad.device == META and gradients.clipped.device == META


def fit(run, monkeypatch) -> Waits:
    """Fit a run's model on the device, and watch steps 4 and 5, of which none is logged."""
    # Progress is written after each step.
    monkeypatch.setattr("triptych.run.progress.WRITE_INTERVAL", 0)
    strategy = SingleDeviceStrategy(META, accelerator=MetaAccelerator())
    monkeypatch.setattr("triptych.run.trainer._strategy", lambda *_: strategy)
    # The fused kernel of a GPU has a form for this device.
    module = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    experiment, waits, stop = build_experiment(run.config(), download=False), Waits(), Stop()
    experiment.model.random = STREAMS["blocks"]
    saver = CheckpointSaver(run, None, 100, stop, {})
    shown = [Progress(run, bar=False), stop, saver]
    callbacks = [Watch(waits, 4, 5), *build_callbacks(run, experiment), *shown]
    trainer = build_trainer(experiment.config, run, callbacks, 10)
    trainer.limit_val_batches = 0
    batch = experiment.data.train_dataloader().batch(0)
    with waits, pytest.raises(Enough):
        trainer.fit(experiment.model, Repeated(batch))
    return waits


FIT = [
    "model.conditional=true",
    "trainer.accelerator=auto",
    "trainer.log_every_n_steps=3",
    "trainer.gradient_clip_val=1",
    "samples.n=0",
]
LINES = {
    "unet": ["denoiser=unet", "denoiser.network.widths=[32,64]", "denoiser.network.blocks=1"],
    "unet_ddpm": [
        "denoiser=unet_ddpm",
        "denoiser.network.attention_at=[8]",
        "denoiser.network.widths=[32,64]",
        "denoiser.network.blocks=1",
    ],
    "dit_b": ["denoiser=dit_b", "denoiser.network.width=96", "denoiser.network.depth=3"],
}


@pytest.mark.parametrize("name", LINES)
def test_no_step_between_logged_ones_waits(prepared, monkeypatch, name):
    waits = fit(prepared(*LINES[name], *FIT), monkeypatch)
    assert waits.waits == [] and waits.count > 300


def test_one_read_of_the_loss_is_noticed(prepared, monkeypatch):
    loss = Diffusion.loss

    def reading(self, *rest):
        nats = loss(self, *rest)
        nats.sum().item()
        return nats

    monkeypatch.setattr(Diffusion, "loss", reading)
    waits = fit(prepared(*FIT), monkeypatch).waits
    assert len(waits) == 2 and all("_local_scalar_dense" in wait for wait in waits)


WAITS = {
    "a comparison": lambda x: bool(x.sum() > 0),
    "a float": lambda x: float(x[0]),
    "a list": lambda x: x.tolist(),
    "a copy": lambda x: x.cpu(),
    "a mask": lambda x: x[x > 0],
    "a mask that is set": lambda x: x.index_put_((x > 0,), x[:1]),
    "places": lambda x: (x > 0).nonzero(),
    "numbers": lambda x: x + torch.tensor([1.0], device=META),
    "numbers of its kind": lambda x: x.new_tensor([1.0]),
    "a tensor elsewhere": lambda x: torch.arange(3),
    "a copy that is waited for": lambda x: torch.zeros(3).to(META),
}


@pytest.mark.parametrize("name", WAITS)
def test_each_wait_is_noticed(name):
    x = torch.zeros(3, device=META)
    with Waits() as waits:
        waits.watching = True
        with suppress(NotImplementedError, TypeError):  # some have no form without numbers
            WAITS[name](x)
    assert waits.waits


@pytest.mark.parametrize("name", MODELS)
def test_no_training_step_waits(name):
    """The times, losses and schedules of all models are computed on the device."""
    model = moved(MODELS[name]())
    model.random = STREAMS["blocks"]
    if not any(p.requires_grad for p in model.parameters()):
        return
    model._trainer.log_every_n_steps = 100
    items = batch()
    with Waits() as waits:
        waits.watching = True
        model.train().training_step(items, 0).backward()
    assert waits.waits == []
    assert not model.may_skip_weights() and not skipped(model)


def skipped(model) -> list[str]:
    """Return the names of trained weights without a gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("dropout", "skips"), [(0.1, False), (0.0, True), ({"text": 0.1}, True), ({"v": 0.1}, False)]
)
def test_a_vector_for_absent_parts_may_have_no_gradient(dropout, skips):
    """It is used in each step if training drops its part, otherwise only if some items lack it."""
    kinds = {"v": Vectors(3), "text": Tokens(2, 3)} if "text" in str(dropout) else {"v": Vectors(3)}
    model = diffusion(Linear(-6.0, 4.0), Output("x0"), conditions=kinds, label_dropout=dropout)
    parts = {name: torch.zeros(N, *kind.shape) for name, kind in kinds.items()}
    items = Batch(torch.zeros(N, 2), Condition(**parts), torch.arange(N))
    model.loss(items, 0, 0, 1).mean().backward()
    assert model.may_skip_weights() == bool(skipped(model)) == skips


def test_modules_of_other_packages_may_skip_weights():
    class Mine(torch.nn.Linear):
        pass

    model = MODELS["linear"]()
    model.denoiser.network.mine = Mine(1, 1)
    assert model.may_skip_weights()


def test_members_without_items_have_gradients():
    """Shares are dealt on the CPU, and the device is not waited for."""
    network = ResNet((1, 4, 4), width=4, blocks=1, conditioning=4, members=3, fourier=[]).to(META)
    dealt = STREAMS["blocks"].ensemble_members(3, StepShare(4, 0, 0, 0, 2, META))
    z = torch.zeros(2, 1, 4, 4, device=META)
    with Waits() as waits:
        waits.watching = True
        network(z, z[:, 0, 0, 0], Condition(**{MEMBER: dealt})).sum().backward()
    assert all("elsewhere at resnet.py" in wait for wait in waits.waits)
    assert not skipped(network)
