r"""Train a contrastive model (CLIP), which embeds images and their captions in one space.

Radford et al. 2021, sec. 2.3: over a batch of N pairs with unit vectors u_i of images and v_i of
texts and the scale s = 1 / temperature,

    loss = 1/2N sum_i [ -log softmax_j(s u_i . v_j)_i - log softmax_j(s u_j . v_i)_i ],

the symmetric cross-entropy of finding each image's text among the batch's, and each text's image.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy
from torchmetrics.utilities.data import dim_zero_cat

from triptych.data.batch import Batch
from triptych.data.cache import item_number
from triptych.data.captions import FILE
from triptych.diffusion.condition import Part
from triptych.models.accounting import Account, ItemAverages, count_and_sums, metric_from_sums
from triptych.models.base import BoundModel
from triptych.networks.contrastive import ContrastiveNetwork

ROWS = 1024  # number of images that are compared at once
MAX_SCALE = 100.0  # "clipped to prevent scaling the logits by more than 100" (sec. 2.5)


def symmetric_cross_entropy(
    u: Tensor, v: Tensor, scale: Tensor | float, pair_index: Tensor
) -> Tensor:
    """Return the symmetric cross-entropy, nats (n,), of the n pairs with indices ``pair_index``.

    u, v (N, d) are the unit vectors of all N pairs. Each pair is to be recognised among these.
    """
    of_images = cross_entropy(scale * u[pair_index] @ v.T, pair_index, reduction="none")
    of_texts = cross_entropy(scale * v[pair_index] @ u.T, pair_index, reduction="none")
    return 0.5 * (of_images + of_texts)


def measure_retrieval(
    u: Tensor, v: Tensor, scale: Tensor | float, is_match: Tensor
) -> tuple[Tensor, Tensor]:
    """Measure how well images u (n, d) find a matching text among v (m, d): (nats, correct).

    ``is_match`` (n, m) bool: which texts match an image. nats_i = -log sum_{k matches i}
    softmax_k(s u_i . v_k), (n,); correct (n,) bool: whether the nearest text is a match. ``scale``
    is s.
    """
    log_p = (scale * u @ v.T).log_softmax(1)
    nats = -log_p.masked_fill(~is_match, -torch.inf).logsumexp(1)
    return nats, is_match.gather(1, log_p.argmax(1, keepdim=True)).squeeze(1)


class RetrievalAccounting(ItemAverages):
    """Cross-entropy and accuracy of image-to-text retrieval over a whole split.

    The candidates for each image are all distinct texts of the split. A text matches an image if an
    image of the same class in the split has this text; without classes, if it is the image's own
    text. All processes' embeddings are gathered first, so that the candidates do not depend on
    batches or processes.
    """

    rows: list[Tensor]  # u, v, text, class of each item, flattened

    def __init__(self, embedding: int) -> None:
        super().__init__(("cross_entropy", "accuracy"))
        self.embedding, self.scale = embedding, 1.0
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # Add an empty tensor, as processes without items must take part in the gathering.
        self.rows.append(torch.zeros(0, dtype=torch.float64, device=self.device))

    # The base class's ``update`` takes rows.
    def update(self, u: Tensor, v: Tensor, text: Tensor, label: Tensor) -> None:  # type: ignore[override]
        """Add B pairs of unit vectors u, v (B, d).

        ``text``, ``label``: numbers of each pair's text and class, whole numbers (B,) below 2^53.
        """
        rows = torch.cat([u.double(), v.double(), torch.stack([text, label], 1).double()], 1)
        self.rows.append(rows.flatten())  # torchmetrics gathers states along one dimension

    def compute(self) -> Account:
        """Return the ``Account`` of cross-entropy and accuracy; without items it is empty.

        Its figures are {"cross_entropy": {"mean", "stderr", "n"}, "accuracy": ...}.
        """
        flat = dim_zero_cat(self.rows)
        d = self.embedding
        u, v, about = flat.cpu().view(-1, 2 * d + 2).split([d, d, 2], 1)
        if not len(u):
            return Account({}, self.unit)
        text = about[:, 0].unique(return_inverse=True)[1]
        label = about[:, 1].unique(return_inverse=True)[1]
        first = torch.full((int(text.max()) + 1,), len(u))
        first = first.scatter_reduce(0, text, torch.arange(len(u)), "amin")
        is_match = torch.zeros(int(label.max()) + 1, len(first), dtype=torch.bool)
        is_match[label, text] = True
        parts = zip(u.split(ROWS), label.split(ROWS), strict=True)
        rows = [
            torch.stack(measure_retrieval(images, v[first], self.scale, is_match[classes]), 1)
            for images, classes in parts
        ]
        figures = {}
        for name, column in zip(self.names, torch.cat(rows).unbind(1), strict=True):
            figures[name] = metric_from_sums(*count_and_sums(column).tolist())
        return Account(figures, self.unit)


class Contrastive(BoundModel):
    """A model that trains an image and a text encoder on pairs of the *global* batch.

    The loss is the symmetric cross-entropy. The model reports image-to-text retrieval over each
    whole split, see ``RetrievalAccounting``. At the end of a run ``network``, a function ``(x,
    text) -> u, v``, is saved as ``encoder.pt`` in the run's directory, from which data with
    ``embeddings=RUN`` load it.
    """

    can_sample = False
    ignores = ("denoiser", "objective", "bound", "likelihood", "schedule", "process")

    def __init__(self, network: ContrastiveNetwork, **more: Any):
        super().__init__(**more)
        self.network = network
        self.dims = 1  # the loss is per text, not per pixel
        self.accounting = RetrievalAccounting(network.embedding)

    def networks(self) -> list[nn.Module]:
        return [self.network]

    def parameter_groups(self) -> list[dict[str, Any]]:
        # Gains, biases and the scale have no weight decay (sec. 2.5).
        decayed = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim < 2]
        return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]

    def loss(self, batch: Batch, step: int, rank: int, world: int) -> Tensor:
        with torch.no_grad():  # clip in place, because a clipped copy would have no gradient
            self.network.log_scale.clamp_(max=torch.tensor(MAX_SCALE).log().item())
        u, v = self.network(batch.x, self._text(batch))
        if world > 1:
            # all_gather of torch.distributed.nn keeps the gradients of all processes' losses.
            u, v = torch.cat(all_gather(u)), torch.cat(all_gather(v))
        own = rank * len(batch.x) + torch.arange(len(batch.x), device=u.device)
        return symmetric_cross_entropy(u, v, self.network.scale, own)

    @staticmethod
    def _text(batch: Batch) -> Part:
        """Return the batch's texts, a part of its condition."""
        assert batch.condition is not None  # the network refuses data without texts
        return batch.condition.parts["text"]

    def train_figures(self) -> dict[str, Tensor]:
        return {"scale": self.network.scale}

    def before_accounting(self) -> None:
        # Set the scale here, because a process without items never calls ``_evaluate_batch``.
        self.accounting.scale = self.network.scale.item()

    def _evaluate_batch(self, batch: Batch, *_: Any, **__: Any) -> None:
        text = self._text(batch)
        u, v = self.network(batch.x, text)
        number = hash_texts(text).to(u.device)
        assert batch.condition is not None  # the network refuses data without texts
        label = batch.condition.part("label")
        self.accounting.update(u, v, number, number if label is None else label.value)

    def artifacts(self) -> dict[str, Any]:
        kind = type(self.network)
        about = {
            "_target_": f"{kind.__module__}.{kind.__qualname__}",
            "shape": list(self.network.shape),
            "text": [self.network.text.length, self.network.text.width],
            "sizes": self.network.sizes,
        }
        return {FILE: about | {"state": self.network.state_dict()}}


def hash_texts(text: Part) -> Tensor:
    """Hash each text's tokens to a number below 2^52, (B,) int64."""
    absent = ~text.token_mask().unsqueeze(2)
    rows = text.value.masked_fill(absent, 0.0).float().cpu().numpy()
    return torch.tensor([item_number(row) & (2**52 - 1) for row in rows], dtype=torch.int64)
