"""A VAE whose prior is a diffusion model, both trained on one bound.

``diffusion.latents`` derives the bound.
"""

from typing import Any

import torch
from torch import Tensor, nn

from triptych.data.batch import Batch
from triptych.diffusion.bound import Bound, BoundTerms
from triptych.diffusion.denoiser import Denoiser
from triptych.diffusion.draws import Noise, Stream, plain_noise, seeded_generator
from triptych.diffusion.latents import clean_end_term
from triptych.diffusion.likelihood import Likelihood
from triptych.diffusion.loss import Elbo as OwnLoss
from triptych.diffusion.normal import Normal
from triptych.diffusion.objective import Objective
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError
from triptych.models.contract import check_output
from triptych.models.diffusion import Diffusion
from triptych.models.latent import Observation, as_normal
from triptych.networks.ladder import Ladder

ENCODE_BATCH = 500  # number of items that are encoded at once


class LatentDiffusion(Diffusion):
    r"""A diffusion model of latents y ~ q(y | x), which reports the bound of x.

    -log p(x) <= KL(q(z_1 | y) || p(z_1)) + E[-log p(x | y)] + (clean end + diffusion), see
    ``diffusion.latents``. Encoder, decoder and denoiser are trained on this sum. Only the denoiser
    reads conditions: p(x | c) = int p(x | y) p(y | c) dy.

    Args:
        network: one encoder, and a head with ``outputs`` numbers per dimension of x.
        denoiser, schedule, objective, bound: act on the latents, which have shape ``network.top``.
        levels: number K of the data's grey levels, None for data with a density.

    Raises:
        ValueError: several levels of latents; a loss other than the bound's own, with which the
            encoder would learn easy latents; a learned reverse variance.
        UserError: a likelihood by the ODE, which would be that of the latents.
    """

    of_latents = True
    outputs = staticmethod(Observation.outputs)

    def __init__(
        self,
        network: Ladder,
        denoiser: Denoiser,
        schedule: Schedule,
        objective: Objective,
        bound: Bound,
        *,
        levels: int | None = None,
        likelihood: Likelihood | None = None,
        **more: Any,
    ):
        depth = len(network.encoders)
        if depth != 1:
            raise ValueError(
                f"model.network.levels={depth}: must be 1, as the diffusion model replaces "
                "further levels"
            )
        if not isinstance(objective.loss, OwnLoss):
            raise ValueError(
                f"objective.loss={type(objective.loss).__name__}: the encoder is trained with it, "
                "too, and needs the ELBO; set objective/loss=elbo"
            )
        if bound.variance.learned:
            raise ValueError(
                "bound.variance=learned: must be beta_tilde, beta or optimal with latents"
            )
        if likelihood is not None:
            raise UserError("likelihood: not available for latents; set likelihood=none")
        super().__init__(denoiser, schedule, objective, bound, **more)
        self.network, self.event = network, tuple(network.top)
        self.observation, self.numbers = Observation(levels), self.outputs(levels)

    def encode(self, x: Tensor) -> Normal:
        """Return q(y | x), of shape (B, *event), for x (B, *shape)."""
        return as_normal(self.network.encoders[0](x))

    def networks(self) -> list[nn.Module]:
        return [*super().networks(), *self.network.encoders, self.network.head]

    def loss(self, batch: Batch, step: int, rank: int, world: int) -> Tensor:
        noise = self.random.training_noise(self.step_share(len(batch.x), step, rank, world))
        q, y = self._latents(batch.x, noise)
        condition = self._training_condition(batch, step, rank, world)
        prior, reconstruction, clean = self._ends(batch.x, q, y)
        return prior + reconstruction + clean + self._objective(y, condition, step, rank, world)

    def try_components(self, batch: Batch) -> None:
        n, encoder, head = len(batch.x), self.network.encoders[0], self.network.head
        raw = encoder(batch.x)
        channels, *rest = self.event
        check_output("model.network.encoders", encoder.forward, raw, (n, 2 * channels, *rest))
        y = as_normal(raw).mean
        check_output("model.network.head", head.forward, head(y), (n, self.numbers, *self.shape))
        super().try_components(batch._replace(x=y))

    def _latents(self, x: Tensor, noise: Noise) -> tuple[Normal, Tensor]:
        """Return q(y | x) for x (B, *shape), and latents y that are drawn from it."""
        q = self.encode(x)
        return q, q.at(noise(q.mean.shape).to(q.mean))

    def _ends(self, x: Tensor, q: Normal, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return three terms of the bound, nats (B,): prior, reconstruction and clean end."""
        low, high = self.schedule.ends(x.device)
        reconstruction = self.observation.nats(x, self.network.head(y))
        return self.denoiser.process.prior_kl(y, high), reconstruction, clean_end_term(q, low)

    @torch.no_grad()
    def clean_values(self, items: Batch) -> Tensor:
        noise = plain_noise(seeded_generator(self.seed, Stream.LATENT_EVALUATION))
        parts = items.x.split(ENCODE_BATCH)
        return torch.cat([self._latents(x.to(self.device), noise)[1] for x in parts])

    def before_report(self) -> None:
        self._reference = None  # reset it, as latents depend on the weights
        super().before_report()

    def elbo(self, batch: Batch, repeat: int, repeats: int) -> BoundTerms:
        noise = self.random.evaluation_noise(batch.index, self.seed, repeat, self.device)
        q, y = self._latents(batch.x, noise)
        prior, reconstruction, clean = self._ends(batch.x, q, y)
        diffusion = self._diffusion(
            y, *self._draw(batch, repeat, repeats), self.condition_of(batch)
        )
        return BoundTerms(prior, reconstruction, clean + diffusion)

    def gap(self, batch: Batch, repeat: int, repeats: int) -> Tensor | None:
        return None  # the known density is of x, but the denoiser acts on y

    def sample(
        self, n: int, sampler: Any, generator: torch.Generator, *wanted: Any, **more: Any
    ) -> Tensor:
        y = super().sample(n, sampler, generator, *wanted, **more)
        with torch.no_grad():
            return self.observation.sample(self.network.head(y), generator)

    @torch.no_grad()
    def to_picture(self, x: Tensor) -> Tensor:
        # Show the mean of p(x | y), also for noisy latents.
        flat = x.flatten(0, -len(self.event) - 1)
        parts = flat.to(self.device).split(ENCODE_BATCH)
        means = torch.cat([self.observation.mean(self.network.head(y)) for y in parts])
        return means.to(x).unflatten(0, x.shape[: -len(self.event)])
