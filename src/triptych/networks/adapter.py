"""Use models that are called ``model(x, t, class_labels=...)``, such as diffusers', as networks."""

from typing import Any

from torch import Tensor, nn

from triptych.diffusion.condition import Condition, find_part
from triptych.networks.base import Network
from triptych.networks.conditioning import class_indices

LOWEST, HIGHEST, STEPS = -20.0, 20.0, 1000.0


class Adapter(Network):
    """Use ``model(z, t, class_labels=y)``, which returns a tensor or has ``.sample``, as a network.

    t = 25 (gamma + 20) for every schedule, so that a trained network can be used under another one:
    gamma from -20 to 20 becomes the 0 .. 1000 that such models embed. The model must accept
    fractions of a step.

    The model's own arguments set its channels. Its output must have ``outputs`` times the data's
    channels; ``outputs`` is 1 for every objective but ``levels``. With labels its number of classes
    must be ``num_classes`` + 1; the last class stands for "no label".
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], **contract: Any):
        super().__init__(shape, **contract)
        self.model = model
        for name in self.conditions.keys() - {"label"}:
            raise ValueError(
                f"denoiser.network: supports only labels as a condition, not {name!r}; use "
                "denoiser=unet"
            )

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        labels = {}
        if "label" in self.conditions:
            # The part "label" is always of the kind Labels.
            part, classes = find_part(condition, "label"), self.conditions["label"].classes  # type: ignore[union-attr]
            labels["class_labels"] = class_indices(part, len(z), classes, z.device)
        result = self.model(z, self.timestep(gamma), **labels)
        raw: Tensor = getattr(result, "sample", result)
        return self.per_dim(raw)

    def timestep(self, gamma: Tensor) -> Tensor:
        """Return the noise level as the model's own timestep, (B,)."""
        return (gamma - LOWEST) * (STEPS / (HIGHEST - LOWEST))
