"""Training and validation steps on the ``meta`` device, on which a hidden ``.item()`` raises."""

from types import SimpleNamespace

import pytest
import torch

from triptych.callbacks.ema import EMA
from triptych.callbacks.gradients import Gradients
from triptych.data.batch import Batch
from triptych.data.mixture import Ring
from triptych.diffusion import loss as losses
from triptych.diffusion.block_draws import STREAMS
from triptych.diffusion.bound import Bound
from triptych.diffusion.condition import Condition, Labels
from triptych.diffusion.decoder import Categorical, GaussianDensity
from triptych.diffusion.denoiser import Denoiser, LevelOutput, Output
from triptych.diffusion.learned_schedule import LearnedEndpoints, Monotone
from triptych.diffusion.objective import Objective
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Cosine, Linear
from triptych.diffusion.times import Adaptive, Importance, LogNormal
from triptych.models.classifier import Classifier
from triptych.models.diffusion import Diffusion
from triptych.models.latent import VAE, HierarchicalVAE
from triptych.models.latent_diffusion import LatentDiffusion
from triptych.models.oracle import OracleModel
from triptych.networks.classifier import ClassifierNetwork
from triptych.networks.ladder import MLPLadder
from triptych.networks.mlp import MLP
from triptych.run.stopping import Stop

from .options import OPTIONS

META = torch.device("meta")
N, CLASSES = 6, 4
MORE = OPTIONS | {"shape": (2,), "seed": 1, "repeats": 2, "val_repeats": 2}
PROCESS = VariancePreserving


def diffusion(schedule, output, levels=None, steps=None, **options) -> Diffusion:
    conditions = {"label": Labels(CLASSES)}
    sizes = {"outputs": getattr(output, "per_dim", 1), "width": 4, "blocks": 1, "dropout": 0.1}
    network = MLP((2,), conditions=conditions, **sizes)
    decoder = GaussianDensity() if levels is None else Categorical(levels)
    bound = Bound(schedule, decoder, steps)
    objective = Objective(
        output, options.pop("loss", losses.Elbo()), steps, times=options.pop("times", None)
    )
    options |= {
        "levels": levels,
        "discrete": levels is not None,
        "conditional": True,
        "label_dropout": 0.1,
    }
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
    extra = model.extra(batch()) if name.endswith("vae") else {}
    if extra:
        model._evaluate_batch(batch(), 2, extra, report=True)


def test_callbacks_run_on_meta_device():
    """After a step come averages, gradient norms and the check for finite losses."""
    model = moved(MODELS["linear"]())
    told = {}
    model.log = lambda name, value, **_: told.update({name: value.device})
    average, gradients, stop = EMA(others=(0.1,)), Gradients(clip=1.0), Stop()
    trainer = SimpleNamespace(**vars(model._trainer), max_steps=10)
    average.on_fit_start(trainer, model)
    average.on_train_start(trainer, model)
    loss = model.training_step(batch(), 0)
    loss.backward()
    gradients.on_before_optimizer_step(trainer, model, None)
    trainer.global_step += 1
    average.on_train_batch_end(trainer, model)
    stop.on_train_batch_end(trainer, model, {"loss": loss})
    assert told == {"train/grad_norm": META, "train/clipped": META}
    assert all(p.device == META for p in average.average.values()) and average.updates == 1
    assert stop._first_bad.device == META and gradients.clipped.device == META
