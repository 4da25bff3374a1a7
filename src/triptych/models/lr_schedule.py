"""Learning rates over a run: linear warm-up, then constant, a cosine or an inverse square root."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from triptych.config.own_code import defined_at, is_own, raised_at, raised_by
from triptych.declare import Count, Share, Unit, Whole, declared
from triptych.errors import UserError


@declared("lr_schedule")
class Constant:
    """1 after ``warmup_steps`` of linear rise."""

    def __init__(self, warmup_steps: Annotated[Whole, Unit("steps")] = 0):
        self.warmup_steps = warmup_steps

    def factor(self, step: int, max_steps: int) -> float:
        """Return what the base learning rate is multiplied by at ``step``."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class Cosine(Constant):
    """Warm-up, then half a cosine from 1 to ``floor`` at ``max_steps``."""

    def __init__(self, warmup_steps: int = 0, floor: Share = 0.0):
        super().__init__(warmup_steps)
        self.floor = floor

    def factor(self, step: int, max_steps: int) -> float:
        done = min(1.0, max(0, step - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        decay = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        return super().factor(step, max_steps) * decay


class InverseSqrt(Constant):
    """Warm-up, and sqrt(reference_steps / step) after ``reference_steps`` (Karras et al. 2024)."""

    def __init__(self, warmup_steps: int = 0, reference_steps: Annotated[Count, Unit("steps")] = 70_000):
        super().__init__(warmup_steps)
        self.reference_steps = reference_steps

    def factor(self, step: int, max_steps: int) -> float:
        return super().factor(step, max_steps) / math.sqrt(max(step / self.reference_steps, 1))


@contextmanager
def refused_keys(group: str, make: Any) -> Iterator[None]:
    """Raise an error of torch's class ``make`` as a UserError that names its keys."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        keys = ", ".join(f"{key}={value}" for key, value in getattr(make, "keywords", {}).items())
        where = raised_at(error) or defined_at(getattr(make, "func", make))
        raise UserError(f"{group}: {keys}: {error}{where}") from error


def try_optimizer(make: Any, groups: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Take a step with a user's optimizer; UserError: it fails, or calls no closure.

    ``groups``: as it will have them; of each the smallest parameter of any number of dimensions is copied.
    """
    kind: Any = getattr(make, "func", None)
    if not is_own(kind):
        return
    noise, few, targets, calls = torch.Generator().manual_seed(0), [], {}, []
    for group in groups:
        smallest: dict[int, Any] = {}
        for one in group["params"]:  # some have their names
            weight = one[-1] if isinstance(one, tuple) else one
            if not is_lazy(weight) and weight.numel() < smallest.get(weight.ndim, (math.inf,))[0]:
                smallest[weight.ndim] = weight.numel(), one, weight
        copies = []
        for _, one, weight in smallest.values():
            copy = nn.Parameter(weight.detach().to(device, copy=True))
            targets[copy] = torch.randn(copy.shape, generator=noise).to(copy)  # else an update may be 0 / 0
            copies.append((*one[:-1], copy) if isinstance(one, tuple) else copy)
        few += [{**group, "params": copies}] if copies else []
    if not few:
        return

    def closure() -> Tensor:
        calls.append(1)
        for weight, target in targets.items():
            weight.grad = weight.detach() - target
        return torch.stack([(weight.detach() - t).square().sum() / 2 for weight, t in targets.items()]).sum()

    def refuse(breach: str) -> NoReturn:
        raise UserError(f"optimizer: {kind.__name__} {breach}{defined_at(kind.step)}")

    with isolate_rng(), refused_keys("optimizer", make):
        optimizer = make(few)
    if not hasattr(optimizer, "param_groups"):
        refuse("is not set up; call super().__init__(params, defaults) in its __init__")
    try:
        inspect.signature(kind.step).bind(optimizer, closure=closure)
    except TypeError:
        refuse(f"has step{inspect.signature(kind.step)}; must be step(self, closure=None)")
    with isolate_rng(), raised_by("optimizer"):
        getattr(optimizer, "train", int)()  # of one with two modes (schedule-free), which a callback sets
        optimizer.step(closure=closure)
    if not calls:
        refuse("calls no closure, which computes the gradients; call it within torch.enable_grad()")
    if not all(weight.isfinite().all() for weight in targets):
        refuse("leaves weights that are not finite; all must be")
