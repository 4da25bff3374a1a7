"""A model conditioned on a vector needs one data class and no other code."""

import pytest
import torch

from tests.diffusion.oracles import given
from triptych.data.base import DataModule
from triptych.data.batch import Split
from triptych.diffusion.condition import Condition, Vectors
from triptych.diffusion.sampler import DDIM
from triptych.run.drawing import Drawing
from triptych.run.evaluate import evaluate_split
from triptych.run.guidance import build_guided_denoiser
from triptych.run.model import build_model
from triptych.run.other_runs import OtherRuns
from triptych.run.trainer import build_trainer

CFG = {"_target_": "triptych.diffusion.guidance.ClassifierFree", "scale": 3.0}
POINTS = "data=ring denoiser=mlp model.conditional=true denoiser.network.width=32".split()


class Pairs(DataModule):
    """Draw x (2,) of a mixture whose means are linear in an embedding (3,)."""

    name = "pairs"
    shape = (2,)
    conditions = {"embedding": Vectors(3)}  # type: ignore[assignment]

    def load(self):
        drawn = [given().sample(n, torch.Generator().manual_seed(n)) for n in (400, 100, 200)]
        names = ("train", "val", "test")
        return {
            name: Split(x, Condition(embedding=v))
            for name, (v, x) in zip(names, drawn, strict=True)
        }


@pytest.fixture
def made(prepared):
    config = prepared(*POINTS, "model.label_dropout=0.5").config()
    data = Pairs(batch_size=64)
    data.setup()
    torch.manual_seed(0)
    return build_model(config, data), data, config


def test_vector_conditioned_model_trains_with_dropout_and_guidance(made):
    model, data, config = made
    told = []
    model.denoiser.network.register_forward_pre_hook(
        lambda _, args: told.append(args[2]) if model.training else None
    )
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer = build_trainer(config, None, [], steps=6)
    trainer.fit(model, data)
    embedder = "denoiser.network.conditioning.embedding."
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {embedder + "null", embedder + "layers.0.weight"} <= changed
    gone = torch.cat([~c.parts["embedding"].present for c in told]).double().mean().item()
    assert 0.4 < gone < 0.6
    figures = evaluate_split(build_trainer(config, None, []), model, data, "test").figures
    assert figures["nats_per_dim"]["n"] == 200 and figures["nats_per_dim"]["mean"] < 1e3
    denoiser = build_guided_denoiser(model, data, config | {"guidance": CFG}, OtherRuns(config))
    x, pushed = (Drawing(model, data, DDIM(3), g).samples(6, seed=0) for g in (None, denoiser))
    assert x.shape == pushed.shape == (6, 2) and not torch.equal(x, pushed)
