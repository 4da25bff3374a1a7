"""Use models that are called ``model(x, t, class_labels=...)``, such as diffusers', as networks."""

from typing import Any

from torch import Tensor, nn

from triptych.diffusion.condition import Condition, Labels
from triptych.networks.base import Network
from triptych.networks.conditioning import classes_of

LOWEST, HIGHEST, STEPS = -20.0, 20.0, 1000.0


class Adapter(Network):
    """Use ``model(z, t, class_labels=y)``, which returns a tensor or has ``.sample``, as a network.

    t = 25 (gamma + 20) for every schedule, so that a trained network can be used under another one:
    gamma from -20 to 20 becomes the 0 .. 1000 that such models embed. The model must accept
    fractions of a step.

    The model's own keys set its channels: its output has ``outputs`` times the data's channels,
    which is 1 times for every objective but levels. With labels, the model sees ``num_classes`` + 1
    classes, of which the last means "no label". If the first output has another shape, a ValueError
    is raised.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, ...], **contract: Any):
        super().__init__(shape, **contract)
        self.model = model
        for name, kind in self.conditions.items():
            if name != "label" or not isinstance(kind, Labels):
                raise ValueError(f"denoiser.network: reads labels alone, not {name!r}; use denoiser=unet")

    def forward(self, z: Tensor, gamma: Tensor, condition: Condition | None = None) -> Tensor:
        labels = {}
        for name, kind in self.conditions.items():  # only labels are supported
            part = None if condition is None else condition.part(name)
            labels["class_labels"] = classes_of(part, len(z), kind.classes, z.device)  # type: ignore[union-attr]
        answer = self.model(z, self.timestep(gamma), **labels)
        raw: Tensor = getattr(answer, "sample", answer)
        shape = (len(z), self.outputs * self.shape[0], *self.shape[1:])
        if raw.shape != shape:
            gave = f"{type(self.model).__name__} gave shape {tuple(raw.shape)} for z of {tuple(z.shape)}"
            raise ValueError(f"denoiser.network.model: {gave}; must be {shape}")
        return self.per_dim(raw)

    def timestep(self, gamma: Tensor) -> Tensor:
        """Return the noise level as the model's own timestep, (B,)."""
        return (gamma - LOWEST) * (STEPS / (HIGHEST - LOWEST))
