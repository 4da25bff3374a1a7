"""What a class of one's own must be, beyond the shapes of ``contract``: tried once, before the first step."""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from triptych.config.build import build
from triptych.config.own_code import defined_at, is_own
from triptych.data.batch import Batch
from triptych.diffusion.condition import Condition
from triptych.diffusion.prediction import SPACES, Row, Space
from triptych.errors import UserError
from triptych.models.contract import PartOutput, check_output

TIMES = 100  # at which a schedule is looked at, between those of a table
CLOSE = 1e-3  # of an output's size: more than another kernel rounds off


def own_outputs(model: Any, batch: Batch, again: Callable[[], nn.Module]) -> Iterator[PartOutput]:
    """Check the parts of a model that are a user's classes: an empty generator, for ``check_outputs`` to run.

    ``batch``: a few items; ``again`` makes another denoiser of the same configuration. UserError: a part is
    not what the bound takes it for.
    """
    schedule: Any = getattr(model, "schedule", None)
    denoiser: Any = getattr(model, "denoiser", None)
    if is_own(schedule):
        with suppress(RuntimeError):  # of one that computes in float32 alone
            _check_schedule(schedule)
    objective: Any = getattr(model, "objective", None)
    for key, owner in {"objective.output": denoiser, "objective.loss": objective}.items():
        part = getattr(owner, key.partition(".")[2], None)
        if isinstance(space := getattr(part, "space", None), Space) and is_own(space.row):
            gamma = schedule.gamma(torch.linspace(0, 1, TIMES, device=batch.x.device))
            _check_space(key, part, space, *denoiser.process.alpha_sigma(gamma))
    loss: Any = getattr(objective, "loss", None)
    if is_own(loss):
        t = (torch.arange(10 * TIMES, device=batch.x.device) + 0.5) / (10 * TIMES)
        weight = loss.weight(objective.level(denoiser.process, schedule, t))
        if (weight < 0).any():
            _refuse("objective.loss", loss, "gives a weight below 0; must be at least 0")
        if (weight == 0).all():
            _refuse("objective.loss", loss, "gives weights of 0 alone; must be above 0 at some level")
    network: Any = getattr(denoiser, "network", None)
    if own := next(filter(is_own, network.modules() if network else ()), None):
        gamma = schedule.gamma(torch.linspace(0.05, 0.95, len(batch.x), device=batch.x.device))
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
    gamma, slope, ends = one.gamma(t), one.dgamma(t), one.gamma(t.new_tensor([0.0, 1.0]))
    must, back = ends, one.t_of(gamma)
    if not any(p.requires_grad for p in one.parameters()):  # else they may have been learned before
        limits = zip(("gamma_min", "gamma_max"), ends.tolist(), strict=True)
        must = ends.new_tensor([getattr(one, name, end) for name, end in limits])
    # one step is for tables, the other for what is computed in float32
    fine, rise = ((one.gamma(t + step) - one.gamma(t - step)) / (2 * step) for step in (1e-6, 1e-3))
    size = rise.abs() + 0.1 * (ends[1] - ends[0]).abs()
    off = torch.minimum((slope - fine).abs() / CLOSE, (slope - rise).abs() / (20 * CLOSE)) / size
    for what, given, right, far in (
        ("the slope of gamma", rise, "above 0", (rise <= 0).double()),
        ("dgamma", slope, rise, off),
        ("t_of(gamma)", back, t, (back - t) / (10 * CLOSE)),
        ("gamma", ends, must, (ends - must) / CLOSE / (ends[1] - ends[0])),
    ):
        i = int(far.abs().argmax())
        if not far[i].abs() < 1:
            at, fix = (i, t[i])[len(far) == TIMES], right if isinstance(right, str) else f"{right[i]:.4g}"
            _refuse("schedule", schedule, f"at t={at:.3g}: {what} is {given[i]:.4g}; must be {fix}")


def _check_space(key: str, part: Any, space: Space, alpha: Tensor, sigma: Tensor) -> None:
    """Refuse the name of a space of ours, and a row along z at some level, where x0 is not in it."""
    if space.name in SPACES:
        _refuse(key, part, f"names its space {space.name!r}, as one of ours; choose another name")
    c, d, *_ = row = space.row(alpha, sigma)
    if not isinstance(row, Row):
        _refuse(key, part, f"gives a {type(row).__name__} as its row; must be a Row")
    low, high = ((alpha * d - sigma * c) / torch.hypot(alpha * d, sigma * c)).aminmax()
    if not low * high > 1e-12:  # or it changes its sign between two levels
        problem = "has a determinant alpha d - sigma c that is 0 or not finite at a level of the schedule"
        _refuse(key, part, f"{problem}, where neither x0 nor the noise follows from it; it must be 0 nowhere")


def _of_network(
    network: nn.Module, again: Callable[[], Any], z: Tensor, gamma: Tensor, condition: Condition | None
) -> str:
    """Say how the output follows from more than item and checkpoint, "" if it does not.

    Two others are tried, under one state: the network's own, moved, as a last layer's weights may be 0.
    """
    state, last = copy.deepcopy(network.state_dict()), slice(len(z) - 1, len(z))
    for name, p in network.named_parameters():
        if p.requires_grad and name in state:
            size = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
            state[name] += torch.randn_like(p) * torch.where(p == 0, size, 0.1 * p.abs())  # the sign stays
    first, second = (again().network.to(z.device).eval() for _ in range(2))
    for one in (first, second):
        one.load_state_dict(state)
    given, levels = z.clone(), gamma.clone()
    with torch.enable_grad():
        raw = first(given, levels, condition)
    if not (torch.equal(given, z) and torch.equal(levels, gamma)):
        return "changes z or gamma in place; it must work on copies"
    if not raw.requires_grad and any(p.requires_grad for p in first.parameters()):
        return "gives an output without a gradient; leave out detach() and no_grad()"
    raw, alone = raw.detach(), None if condition is None else condition[last]
    if _differ(raw, first(z, gamma, condition)):
        return "gives two outputs for one input; in evaluation mode it must give one"
    if condition is not None:
        other = condition[torch.arange(len(z)).roll(1)]
        moved = any(not torch.equal(part.value, other.parts[n].value) for n, part in condition.parts.items())
        if moved and torch.equal(raw, first(z, gamma, other)):
            return "gives the same under any condition; it must read it, or pass model.conditional=false"
    if _differ(raw[last], first(z[last], gamma[last], alone)):
        return "gives an item another output alone than in a batch; it must not depend on the others"
    if _differ(raw, second(z, gamma, condition)):
        lacks = "has numbers that state_dict() lacks, so no checkpoint holds them"
        return f"{lacks}; register them (nn.ModuleList, register_buffer)"
    return ""


def _differ(one: Tensor, other: Tensor) -> bool:
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    return bool((one - other).abs().max() > CLOSE * one.abs().max())


def sampler_outputs(sampler: Any, node: dict[str, Any], model: Any) -> Iterator[PartOutput]:
    """Draw two items twice from one seed with a user's sampler, of two steps if ``node``, its keys, has some.

    UserError: steps or samples are not what a model's may be; other calls than it says.
    """
    if not is_own(sampler) or not isinstance(model.denoiser, nn.Module):
        return
    few = sampler
    with suppress(UserError):  # some have a least number of steps
        few = build({**node, "steps": 2}, "sampler") if "steps" in node else sampler
    try:
        calls, drawn = _drawn_twice(few, model)
    except Exception:  # of two steps, which nobody chose
        few = sampler
        calls, drawn = _drawn_twice(few, model)
    yield PartOutput("sampler", sampler.step, drawn[0], ((2, *model.event),))
    if calls > (says := few.calls_under(model.schedule)):
        breach = f"calls the denoiser {calls:g} times in {few.steps} steps, and says {says}"
        _refuse("sampler", sampler, f"{breach}; set `calls`, of one step")
    if _differ(*drawn):
        fix = "draw with at.noise(z), and leave for the next step in at.before"
        _refuse("sampler", sampler, f"gives two sets of samples for one seed; {fix}")


def _drawn_twice(sampler: Any, model: Any) -> tuple[float, list[Tensor]]:
    """Draw two items twice from one seed; return the calls of the denoiser for each set, and the sets."""
    short, calls, drawn = model.prepared(copy.copy(sampler)), [], []
    condition = None if model.training_items is None else model.items(2)[1]

    def step(z: Tensor, at: Any) -> Any:
        levels = at.gamma_t, at.gamma_s
        before = [level.clone() for level in levels]
        part = PartOutput("sampler", sampler.step, lambda: type(short).step(short, z, at), (tuple(z.shape),))
        if (z_s := check_output(part)).dtype != z.dtype:
            _refuse("sampler", sampler, f"gives {z_s.dtype}; must be {z.dtype}")
        if any(map(torch.ne, levels, before)):  # the next step starts from them
            _refuse("sampler", sampler, "changes gamma_t or gamma_s in place; it must work on copies")
        return z_s

    def count(_: Any, given: tuple[Any, ...], named: dict[str, Any], __: Any) -> None:
        calls.append(len(given[0] if given else named["z"]))

    vars(short)["step"] = step
    hook = model.denoiser.register_forward_hook(count, with_kwargs=True)
    try:
        for _ in range(2):
            noise = torch.Generator(model.device).manual_seed(0)
            about = {"generator": noise, "condition": condition, "device": model.device}
            drawn.append(short(model.denoiser, model.schedule, (2, *model.event), **about))
    finally:
        hook.remove()
    return sum(calls) / 4, drawn
