"""Train a model with learned latents: a VAE, or a hierarchical VAE with several levels."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from triptych.data.batch import Batch
from triptych.declare import Unit, Whole
from triptych.diffusion.bound import BoundTerms
from triptych.diffusion.denoiser import level_centres
from triptych.diffusion.draws import Noise, plain_noise
from triptych.diffusion.hierarchy import Conditional, Hierarchy, importance_weighted
from triptych.diffusion.normal import Normal
from triptych.models.base import BoundModel
from triptych.models.contract import check_output
from triptych.networks.ladder import Ladder


class Observation:
    """The distribution p(x | z) whose parameters the network's head returns.

    The head's output is raw (B, *shape) for one number per dimension, else (B, outputs, *shape).

    Args:
        levels: number K of the data's levels, for a categorical distribution; None for a Gaussian,
            whose mean and log std the head returns.
    """

    def __init__(self, levels: int | None):
        self.centres = None if levels is None else level_centres(levels)

    @staticmethod
    def outputs(levels: int | None) -> int:
        """Return how many numbers the head returns per dimension of x.

        These are a logit for each level or, without levels, a mean and a log std.
        """
        return levels or 2

    def nats(self, x: Tensor, raw: Tensor) -> Tensor:
        """Return -log p(x | z), nats (B,)."""
        if self.centres is None:
            return -as_normal(raw.flatten(1, 2)).log_prob(x)
        k = ((x + 1) * ((len(self.centres) - 1) / 2)).round().long()
        return nn.functional.cross_entropy(raw, k, reduction="none").flatten(1).sum(1)

    def mean(self, raw: Tensor) -> Tensor:
        """Return E[x | z] (B, *shape)."""
        if self.centres is None:
            return as_normal(raw.flatten(1, 2)).mean
        return torch.einsum("bk...,k->b...", raw.softmax(1), self.centres.to(raw))

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """Draw x ~ p(x | z), (B, *shape)."""
        if self.centres is None:
            p = as_normal(raw.flatten(1, 2))
            return p.at(plain_noise(generator)(p.mean.shape).to(raw))
        uniform = torch.rand(raw.shape, generator=generator, device=generator.device).to(raw)
        level = (raw - torch.log(-torch.log(uniform))).argmax(1)  # Gumbel: one draw a dimension
        return self.centres.to(raw)[level]


class LatentModel(BoundModel):
    """A model that trains a ladder of encoders and decoders on reconstruction + sum_l KL_l.

    This sum is the bound. The model also reports the KL of each level ("kl_1" is the level next to
    the data) and an importance-weighted bound ("iw").

    Args:
        network: encoders, decoders and head; its head gives ``outputs`` per dimension of x.
        levels: number of grey levels, None for data with a density.
        importance_samples: samples per item of the importance-weighted bound at test; 0: this bound
            is not evaluated.
    """

    uses_sampler = False  # samples are always drawn from the top level down

    def __init__(
        self,
        network: Ladder,
        *,
        levels: int | None = None,
        importance_samples: Annotated[Whole, Unit("samples")] = 0,
        **more: Any,
    ):
        self.depth = len(network.encoders)
        extras = [f"kl_{level + 1}" for level in range(self.depth)]
        if importance_samples:
            extras.append("iw")
        super().__init__(extras=extras, **more)
        self.network = network
        self.observation, self.outputs_per_dim = Observation(levels), self.outputs(levels)
        self.importance_samples = importance_samples
        self.hierarchy = Hierarchy(
            [_gaussian(encoder) for encoder in network.encoders],
            [_gaussian(decoder) for decoder in network.decoders],
            lambda x, z: self.observation.nats(x, network.head(z)),
            lambda z: Normal(torch.zeros_like(z), torch.ones_like(z)),
        )

    outputs = staticmethod(Observation.outputs)

    def networks(self) -> list[nn.Module]:
        return [*self.network.encoders, *self.network.decoders, self.network.head]

    def loss(self, batch: Batch, step: int, rank: int, world: int) -> Tensor:
        noise = self.random.training_noise(self.step_share(len(batch.x), step, rank, world))
        path = self.hierarchy.path(batch.x, noise)
        reconstruction = self.hierarchy.reconstruction(batch.x, path[0])
        return reconstruction + torch.stack(self.hierarchy.ratios(batch.x, path)).sum(0)

    def try_components(self, batch: Batch) -> None:
        path = self.hierarchy.path(batch.x, plain_noise())
        top, head = (len(batch.x), *self.network.top), self.network.head
        check_output("model.network.encoders", self.network.encoders[-1].forward, path[-1], top)
        shape = (len(batch.x), self.outputs_per_dim, *self.shape)
        check_output("model.network.head", head.forward, head(path[0]), shape)

    def elbo(self, batch: Batch, repeat: int, repeats: int) -> BoundTerms:
        return self.hierarchy.bound(batch.x, self._path(batch, repeat))

    def extra_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Return each level's KL divergence and, if configured, the importance-weighted bound.

        The values are nats (B,) by name.
        """
        draws = []
        for repeat in range(self.repeats):
            ratios = self.hierarchy.ratios(batch.x, self._path(batch, repeat))
            draws.append(torch.stack(ratios).double())
        figures = {f"kl_{level + 1}": kl for level, kl in enumerate(torch.stack(draws).mean(0))}
        if self.importance_samples:
            weights = []
            for repeat in range(self.importance_samples):
                log_weight = self.hierarchy.log_weight(batch.x, self._path(batch, repeat))
                weights.append(log_weight.double())
            figures["iw"] = importance_weighted(torch.stack(weights))
        return figures

    def sample(
        self, n: int, sampler: Any, generator: torch.Generator, *_: Any, **__: Any
    ) -> Tensor:
        # Sample from the top level down to the data.
        noise: Noise = plain_noise(generator)
        with torch.no_grad():
            top = noise((n, *self.network.top)).to(self.device)
            raw = self.network.head(self.hierarchy.sample(top, noise))
            return self.observation.sample(raw, generator)

    def _path(self, batch: Batch, repeat: int) -> list[Tensor]:
        """Return the latents of each level, sampled with the noise of draw number ``repeat``."""
        noise = self.random.evaluation_noise(batch.index, self.seed, repeat, self.device)
        return self.hierarchy.path(batch.x, noise)


class VAE(LatentModel):
    """A variational autoencoder with one level of latents (Kingma & Welling 2014).

    -log p(x) <= E_q[-log p(x | z)] + KL(q(z | x) || N(0, I)).
    """


class HierarchicalVAE(LatentModel):
    """A VAE with two or more levels of latents.

    Each level is encoded from the one below and decoded from the one above.
    """


def as_normal(raw: Tensor) -> Normal:
    """Return the Gaussian whose mean and log std are the two halves of ``raw`` in dimension 1."""
    mean, log_std = raw.chunk(2, 1)
    return Normal(mean, torch.exp(log_std))


def _gaussian(network: nn.Module) -> Conditional:
    """Return the function z -> the Gaussian whose parameters ``network`` returns for z."""
    return lambda z: as_normal(network(z))
