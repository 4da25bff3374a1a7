"""What a class of one's own must be, beyond the shapes of ``contract``: tried once, before the first step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from triptych.config.own_code import defined_at, is_own
from triptych.data.batch import Batch
from triptych.diffusion.condition import Condition
from triptych.errors import UserError
from triptych.models.contract import PartOutput

TIMES = 100  # at which a schedule is looked at, between those of a table
CLOSE = 1e-3  # of an output's size: more than another kernel rounds off


def own_outputs(model: Any, batch: Batch, again: Callable[[], nn.Module]) -> Iterator[PartOutput]:
    """Check the parts of a model that are a user's classes; yield what has a shape to be checked.

    ``batch``: a few items; ``again`` makes another denoiser of the same configuration.

    Raises:
        UserError: a part is not what the bound takes it for.
    """
    if is_own(schedule := getattr(model, "schedule", None)):
        _check_schedule(schedule)
    network = getattr(getattr(model, "denoiser", None), "network", None)
    if own := next(filter(is_own, network.modules() if network else ()), None):
        gamma = model.schedule.gamma(torch.linspace(0.05, 0.95, len(batch.x), device=batch.x.device))
        z = torch.randn(len(batch.x), *model.event, device=batch.x.device)
        if breach := _of_network(network, again, z, gamma, model.condition_of(batch)):
            _refuse("denoiser.network", own, breach)
    yield from ()


def _refuse(key: str, part: Any, breach: str) -> None:
    raise UserError(f"{key}: {type(part).__name__} {breach}{defined_at(type(part))}")


def _check_schedule(schedule: Any) -> None:
    """Refuse a gamma(t) that does not rise, and a slope, an inverse or ends that are not those of it."""
    one = copy.deepcopy(schedule).double().cpu()
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.618034) / TIMES
    gamma, slope, (low, high) = one.gamma(t), one.dgamma(t), one.gamma(t.new_tensor([0.0, 1.0])).tolist()
    step, close = (1e-6, 1e-3) if gamma.dtype == t.dtype else (1e-3, 0.02)  # some compute in float32
    rise = (one.gamma(t + step) - one.gamma(t - step)) / (2 * step)
    back, ends = one.t_of(gamma), t.new_tensor([low, high])
    must = t.new_tensor([getattr(one, "gamma_min", low), getattr(one, "gamma_max", high)])
    if any(p.requires_grad for p in one.parameters()):  # its ends may have been learned before
        must = ends
    for what, given, right, off in (
        ("the slope of gamma", rise, "above 0", (rise <= 0).double()),
        ("dgamma", slope, rise, (slope - rise) / (rise + 0.1 * (high - low)) / close),
        ("t_of(gamma)", back, t, (back - t) / close / 10),
        ("gamma", ends, must, (ends - must) / (high - low) / close),
    ):
        i = int(off.abs().argmax())
        if not off[i].abs() < 1:
            fix = right if isinstance(right, str) else f"{right[i]:.4g}"
            at = t[i] if len(off) == TIMES else i
            _refuse("schedule", schedule, f"at t={at:.3g}: {what} is {given[i]:.4g}; must be {fix}")


def _of_network(
    network: nn.Module,
    again: Callable[[], Any],
    z: Tensor,
    gamma: Tensor,
    condition: Condition | None,
) -> str:
    """Say how the network's output follows from more than the item and the checkpoint; "" if it does not.

    Two others are asked, under the same weights: the network's own, moved, as those of a last layer may be 0.
    """
    state, last = copy.deepcopy(network.state_dict()), slice(len(z) - 1, len(z))
    for name, p in network.named_parameters():
        if p.requires_grad and name in state:
            state[name] += torch.randn_like(p) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)
    first, second = (again().network.to(z.device).eval() for _ in range(2))
    for one in (first, second):
        one.load_state_dict(state)
    given = z.clone(), gamma.clone()
    with torch.enable_grad():
        raw = first(*given, condition)
    if not (torch.equal(given[0], z) and torch.equal(given[1], gamma)):
        return "changes z or gamma in place; it must work on copies"
    if not raw.requires_grad and any(p.requires_grad for p in first.parameters()):
        return "gives an output without a gradient; leave out detach() and no_grad()"
    raw, alone = raw.detach(), None if condition is None else condition[last]
    if _differ(raw, first(z.clone(), gamma.clone(), condition)):
        return "gives two outputs for one input; in evaluation mode it must give one"
    other = None if condition is None else condition[torch.arange(len(z)).roll(1)]
    if other and any(
        not torch.equal(part.value, other.parts[n].value) for n, part in condition.parts.items()
    ):
        if torch.equal(raw, first(z.clone(), gamma.clone(), other)):
            return "gives the same under any condition; it must read it, or pass model.conditional=false"
    if _differ(raw[last], first(z[last].clone(), gamma[last].clone(), alone)):
        return "gives an item another output alone than in a batch; it must not depend on the others"
    if _differ(raw, second(z.clone(), gamma.clone(), condition)):
        lacks = "has numbers that state_dict() lacks, so no checkpoint holds them"
        return f"{lacks}; register them (nn.ModuleList, register_buffer)"
    return ""


def _differ(one: Tensor, other: Tensor) -> bool:
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    return bool((one - other).abs().max() > CLOSE * one.abs().max())
