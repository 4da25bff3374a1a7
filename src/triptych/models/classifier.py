"""Train a classifier of noisy data, p(y | z) at every noise level, or of clean data, p(y | x).

Guidance uses a classifier of noisy data, metrics of samples one of clean data.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from triptych.data.batch import Batch
from triptych.diffusion.process import Process
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError
from triptych.models.accounting import ItemAverages
from triptych.models.base import BoundModel
from triptych.networks.classifier import ClassifierNetwork


class Classifier(BoundModel):
    """A model that trains a classifier on the cross-entropy of the label at all noise levels.

    The input is z = alpha x + sigma eps, at the noise levels of a schedule. The model is called as
    ``(z (B, *event), gamma (B,)) -> logits (B, K)``, as guidance needs it.

    Args:
        network: ``(z, gamma) -> logits``, with ``features``.
        schedule, process: define the noise that it is trained on.
        noise: if False, train on clean data only, at the schedule's gamma(0).
    """

    schedule: Schedule
    can_sample = False
    ignores = ("denoiser", "objective", "bound", "likelihood")

    def __init__(
        self,
        network: ClassifierNetwork,
        schedule: Schedule,
        process: Process,
        *,
        noise: bool = True,
        **more: Any,
    ):
        super().__init__(**more)
        if not network.num_classes:
            raise UserError("model=classifier: these data have no labels; use model=diffusion")
        self.network, self.schedule, self.process, self.noise = network, schedule, process, noise
        self.schedule.requires_grad_(False)
        self.dims = 1  # the loss is per label, not per pixel
        self.accounting = ItemAverages(("cross_entropy", "accuracy"))

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        return self.network(z, gamma)

    @torch.no_grad()
    def features_and_logits(self, x: Tensor, batch: int = 512) -> tuple[Tensor, Tensor]:
        """Return features (n, f) and logits (n, K) of clean images x (n, *event), on the CPU."""
        features, logits = [], []
        for part in x.split(batch):
            read = self.network.features(part.to(self.device), self._clean_levels(len(part)))
            features.append(read.cpu())
            logits.append(self.network.last(read).cpu())
        return torch.cat(features), torch.cat(logits)

    def loss(self, batch: Batch, step: int, rank: int, world: int) -> Tensor:
        share = self.step_share(len(batch.x), step, rank, world)
        t, eps = self.random.training_draw(self.shape, share)
        return self._cross_entropy(batch, t, eps)[0]

    def _evaluate_batch(self, batch: Batch, repeats: int, *_: Any, **__: Any) -> None:
        drawn = []
        for repeat in range(repeats if self.noise else 1):
            draw = self.random.evaluation_draw(
                self.shape, batch.index, self.seed, repeat, repeats, self.device
            )
            drawn.append(torch.stack(self._cross_entropy(batch, draw.t, draw.eps)))
        self.accounting.update(torch.stack(drawn).double().mean(0))

    def _cross_entropy(self, batch: Batch, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return cross-entropy, nats (B,), and whether the most probable label is right, (B,)."""
        assert batch.condition is not None  # __init__ refuses data without labels
        z, gamma = batch.x, self._clean_levels(len(batch.x))
        if self.noise:
            gamma = self.schedule.gamma(t)
            z = self.process.diffuse(batch.x, gamma, eps)
        logits = self.network(z, gamma)
        label = batch.condition.label
        nats = cross_entropy(logits, label, reduction="none")
        return nats, (logits.argmax(1) == label).float()

    def _clean_levels(self, n: int) -> Tensor:
        """Return the gamma of clean data, gamma(0), for n items, (n,)."""
        return self.schedule.gamma(torch.zeros(n, device=self.device))
