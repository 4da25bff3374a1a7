"""A small classifier of noisy images or points: (z, gamma) -> features -> logits."""

import math

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, silu

from triptych.declare import Count, Share, declared
from triptych.networks.conditioning import Conditioning
from triptych.networks.mlp import PointBlock
from triptych.networks.resnet import ImageBlock


@declared("model.network")
class ClassifierNetwork(nn.Module):
    """A classifier of residual blocks with conditioning on gamma.

    Images are halved in size after each stage but the last.

    Args:
        shape, num_classes: from the data; images are (C, H, W), other shapes are flattened.
        width: channels or units.
        blocks, stages: blocks in each stage, and stages (of images).
        features: number of features, the input of the last layer.
        conditioning: width of the embedding of gamma.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        width: Count = 32,
        blocks: Count = 1,
        stages: Count = 2,
        features: Count = 64,
        conditioning: Count = 64,
        dropout: Share = 0.1,
    ):
        super().__init__()
        self.images = len(shape) == 3
        self.num_classes = num_classes
        if not self.images:
            conditioning = width
        self.conditioning = Conditioning(conditioning)
        self.stages = nn.ModuleList()
        if self.images:
            self.first: nn.Module = nn.Conv2d(shape[0], width, 3, padding=1)
            self.stages.extend(
                nn.ModuleList(ImageBlock(width, conditioning, dropout) for _ in range(blocks))
                for _ in range(stages)
            )
        else:
            self.first = nn.Linear(math.prod(shape), width)
            self.stages.append(
                nn.ModuleList(PointBlock(width, dropout) for _ in range(blocks * stages))
            )
        self.embed = nn.Linear(width * (4 if self.images else 1), features)
        self.last = nn.Linear(features, num_classes)

    def features(self, z: Tensor, gamma: Tensor) -> Tensor:
        """Return the features at z (B, *shape) and gamma (B,): (B, features).

        Logits are linear in them.
        """
        c = self.conditioning(gamma)
        h = self.first(z if self.images else z.flatten(1))
        for number, stage in enumerate(self.stages):
            if number and min(h.shape[2:]) > 3:
                h = avg_pool2d(h, 2)
            for block in stage:  # type: ignore[attr-defined]  # a ModuleList
                h = block(h, c)
        h = silu(h)
        if self.images:
            # Average over each quarter of the image, as 6 and 9 differ only in where strokes are.
            h = adaptive_avg_pool2d(h, 2).flatten(1)
        return silu(self.embed(h))

    def forward(self, z: Tensor, gamma: Tensor) -> Tensor:
        return self.last(self.features(z, gamma))
