r"""Measure how many bits a condition y tells a network about x: bound(x) minus bound(x | y).

For perfect models the mean is E[log p(x | y) - log p(x)], the mutual information I(x; y). One
network, trained with and without the condition, computes both bounds with the same times and noise.
The diffusion term contributes

    E[1/2 gamma'(t) (|eps - eps_hat(z)|^2 - |eps - eps_hat(z, y)|^2)].
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from triptych.data.batch import Batch
from triptych.declare import Count
from triptych.diffusion.condition import AUGMENTATION
from triptych.diffusion.draws import Draw
from triptych.errors import UserError
from triptych.models.diffusion import Diffusion
from triptych.models.metric import PerItem, check_diffuses_data


def undropped_parts(label_dropout: float | Mapping[str, float], names: Iterable[str]) -> list[str]:
    """Return those condition parts in ``names`` with which every item was trained.

    ``label_dropout`` is the probability of dropping the condition, or one per part.
    """
    if isinstance(label_dropout, Mapping):
        return [name for name in names if not label_dropout.get(name)]
    return [] if label_dropout else [*names]


def check_parts_were_dropped(
    metric_name: str, label_dropout: float | Mapping[str, float], names: Sequence[str]
) -> None:
    """Raise UserError if one of the condition parts ``names`` was never dropped in training.

    ``metric_name`` begins the message.
    """
    kept = undropped_parts(label_dropout, names)
    if kept:
        raise UserError(
            f"{metric_name}: model was never trained without {', '.join(kept)}, as "
            f"label_dropout={label_dropout}; train with model.label_dropout above 0, or choose "
            "other parts"
        )


class ConditionBits(PerItem):
    """The bound without the condition minus the bound with it, in bits per item.

    Args:
        draws: random draws of time and noise per item.
        parts: names of the condition's parts to leave out; None: all that the network reads.

    Raises:
        UserError: the model does not read these parts, or was never trained without them.
    """

    def __init__(self, draws: Count = 8, parts: list[str] | None = None):
        super().__init__()
        self.draws_per_item, self.parts = draws, parts

    def check(self, model: Diffusion) -> None:
        """Raise UserError unless the model can be evaluated with and without the condition."""
        check_diffuses_data(model)
        known = [name for name in model.conditions if name != AUGMENTATION]
        if not known or not model.conditional:
            raise UserError(
                "ConditionBits: this model has no condition; set model.conditional=true"
            )
        names = known if self.parts is None else self.parts
        unknown = ", ".join(sorted({*names} - {*known}))
        if unknown:
            raise UserError(
                f"ConditionBits: this model's condition has no {unknown}; use {', '.join(known)}"
            )
        check_parts_were_dropped("ConditionBits", model.label_dropout, names)

    def values(self, model: Diffusion, batch: Batch) -> Tensor:  # type: ignore[override]  # see check
        condition = model.condition_of(batch)
        assert condition is not None
        rest = None if self.parts is None else condition.without(*self.parts)
        total = torch.zeros(len(batch.x), device=batch.x.device)
        for k in range(self.draws_per_item):
            t = (torch.rand_like(total) + k) / self.draws_per_item
            draw = Draw(t, torch.randn_like(batch.x), torch.randn_like(batch.x))
            without = model.bound(model.denoiser, batch.x, draw, rest)
            conditional = model.bound(model.denoiser, batch.x, draw, condition)
            total += without.total - conditional.total
        return total / self.draws_per_item / math.log(2)
