"""What the parts of a model give, and must be: tried once, on a few training items, before the first step.

A tensor of another shape may broadcast and train silently. Neither weights, modes nor random numbers move.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from triptych.config.build import build
from triptych.config.habits import closest
from triptych.config.own_code import defined_at, describe_error, is_own, raised_at, raised_by
from triptych.data.batch import Batch
from triptych.diffusion.loss import Loss
from triptych.diffusion.prediction import SPACES, Prediction, Row, Space
from triptych.diffusion.sampler.base import Step
from triptych.errors import UserError

TIMES = 100  # at which a schedule is looked at, between those of a table
CLOSE = 1e-3  # of an output's size: more than another kernel rounds off


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Try a model's parts within the context, in evaluation mode, without gradients: nothing of it moves."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # so that no running average moves
    try:
        with isolate_rng(), torch.no_grad(), raised_by():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_output(key: str, by: Any, value: Any, *shapes: tuple[int, ...]) -> Any:
    """Return what the function ``by`` of the part at ``key`` gave, or gives when ``value`` is called.

    UserError: it is no tensor of one of the ``shapes`` and of finite numbers, or the call fails.
    """
    kind, right = type(getattr(by, "__self__", by)), " or ".join(map(str, shapes))
    at = defined_at(by) or defined_at(kind)  # forward may be a parent's
    try:
        value = value() if callable(value) else value
    except Exception as error:
        if isinstance(error, UserError) or not (raised_at(error) or at):
            raise
        where = "" if raised_at(error) else at
        fix = "" if isinstance(error, AttributeError | NameError) else f"; it must give shape {right}"
        raise UserError(f"{key}: {describe_error(error)}{where}{fix}") from error
    if breach := _breach(value, right, shapes):
        raise UserError(f"{key}: {kind.__name__} gives {breach}{at}")
    return value


def _breach(value: Any, right: str, shapes: tuple[tuple[int, ...], ...]) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}; must be a tensor of shape {right}"
    if tuple(value.shape) not in shapes:
        return f"shape {tuple(value.shape)}; must be {right}"
    if not value.is_floating_point():
        return f"{value.dtype}; must be floating point"
    if bad := int((~value.isfinite()).sum()):
        return f"{bad} of {value.numel()} numbers that are not finite; all must be"
    return ""


def try_own(model: Any, batch: Batch) -> None:
    """Try the parts of a model that are a user's classes; UserError: one is not what the bound takes it for.

    ``batch``: a few items.
    """
    schedule: Any = getattr(model, "schedule", None)
    denoiser: Any = getattr(model, "denoiser", None)
    loss: Any = getattr(getattr(model, "objective", None), "loss", None)
    output: Any = getattr(denoiser, "output", None)
    network: Any = getattr(denoiser, "network", None)
    layer = next(filter(is_own, network.modules() if network else ()), None)
    for key, part, own, find_breach in (  # own: what of the part may be a user's
        ("schedule", schedule, schedule, partial(_of_schedule, schedule, batch.x.device)),
        ("objective.output", output, _row(output), partial(_of_space, output, model, batch)),
        ("objective.loss", loss, _row(loss), partial(_of_space, loss, model, batch)),
        ("objective.loss", loss, loss, partial(_of_weight, model, batch)),
        ("denoiser.network", layer, layer, partial(_of_network, model, batch)),
    ):
        if is_own(own) and (breach := find_breach()):
            _refuse(key, part, breach)


def _refuse(key: str, part: Any, breach: str) -> None:
    raise UserError(f"{key}: {type(part).__name__} {breach}{defined_at(type(part))}")


def _row(part: Any) -> Any:
    space = getattr(part, "space", None)
    return space.row if isinstance(space, Space) else None


def _of_schedule(schedule: Any, device: torch.device) -> str:
    """Say how gamma(t) does not rise, or what slope, inverse or ends are not those of it; "" if all is so."""
    t = (torch.arange(TIMES, dtype=torch.float64) + 0.618034) / TIMES
    try:
        # one step is for tables, the other for what is computed in float32
        return _of_curve(copy.deepcopy(schedule).double().cpu(), t, (1e-6, 1e-3))
    except RuntimeError:  # it takes no times in double
        return _of_curve(schedule, t.float().to(device), (1e-3, 1e-3))


def _of_curve(schedule: Any, t: Tensor, steps: tuple[float, float]) -> str:
    gamma, slope, ends = schedule.gamma(t), schedule.dgamma(t), schedule.gamma(t.new_tensor([0.0, 1.0]))
    must, back = ends, schedule.t_of(gamma)
    if not any(p.requires_grad for p in schedule.parameters()):  # else they may have been learned before
        limits = zip(("gamma_min", "gamma_max"), ends.tolist(), strict=True)
        must = ends.new_tensor([getattr(schedule, name, end) for name, end in limits])
    fine, rise = ((schedule.gamma(t + step) - schedule.gamma(t - step)) / (2 * step) for step in steps)
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
            return f"at t={at:.3g}: {what} is {given[i]:.4g}; must be {fix}"
    return ""


def _of_space(part: Any, model: Any, batch: Batch) -> str:
    """Say that a space's name is one of ours, or a row of it along z, where x0 is not in it; else ""."""
    space = part.space
    if space.name in SPACES:
        return f"names its space {space.name!r}, as one of ours; choose another name"
    gamma = model.schedule.gamma(torch.linspace(0, 1, TIMES, device=batch.x.device))
    alpha, sigma = model.denoiser.process.alpha_sigma(gamma)
    c, d, *_ = row = space.row(alpha, sigma)
    if not isinstance(row, Row):
        return f"gives a {type(row).__name__} as its row; must be a Row"
    low, high = ((alpha * d - sigma * c) / torch.hypot(alpha * d, sigma * c)).aminmax()
    if not low * high > 1e-12:  # or it changes its sign between two levels
        problem = "has a determinant alpha d - sigma c that is 0 or not finite at a level of the schedule"
        return f"{problem}, where neither x0 nor the noise follows from it; it must be 0 nowhere"
    return ""


def _of_weight(model: Any, batch: Batch) -> str:
    """Say that a loss has a weight below 0, or none above, or parameters that none trains; else ""."""
    t = (torch.arange(10 * TIMES, device=batch.x.device) + 0.5) / (10 * TIMES)
    objective = model.objective
    loss = objective.loss
    weight = loss.weight(objective.level(model.denoiser.process, model.schedule, t))
    if (weight < 0).any():
        return "gives a weight below 0; must be at least 0"
    learns = isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters())
    if learns and type(loss).nats is Loss.nats:
        return "has parameters, which weight(at) does not train; must have nats(at, squared, dims)"
    return "gives weights of 0 alone; must be above 0 at some level" if (weight == 0).all() else ""


def _of_network(model: Any, batch: Batch) -> str:
    """Say how the output follows from more than an item, its level and its condition, "" if it does not.

    Weights are moved meanwhile, as those of a last layer may be 0.
    """
    weights = [p for p in model.denoiser.network.parameters() if p.requires_grad]
    before = [p.clone() for p in weights]
    try:
        for p in weights:
            size = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
            p += torch.randn_like(p) * torch.where(p == 0, size, 0.1 * p.abs())  # the sign stays
        return _of_output(model, batch)
    finally:
        for p, value in zip(weights, before, strict=True):
            p.copy_(value)


def _of_output(model: Any, batch: Batch) -> str:
    network, condition = model.denoiser.network, model.condition_of(batch)
    gamma = model.schedule.gamma(torch.linspace(0.05, 0.95, len(batch.x), device=batch.x.device))
    z = torch.randn(len(batch.x), *model.event, device=batch.x.device)
    last = slice(len(z) - 1, len(z))
    given, levels = z.clone(), gamma.clone()
    with torch.enable_grad():
        raw = network(given, levels, condition)
    if not (torch.equal(given, z) and torch.equal(levels, gamma)):
        return "changes z or gamma in place; it must work on copies"
    if not raw.requires_grad and any(p.requires_grad for p in network.parameters()):
        return "gives an output without a gradient; leave out detach() and no_grad()"
    raw, alone = raw.detach(), None if condition is None else condition[last]
    if _differ(raw, network(z, gamma, condition)):
        return "gives two outputs for one input; in evaluation mode it must give one"
    if condition is not None:
        other = condition[torch.arange(len(z)).roll(1)]
        moved = any(not torch.equal(part.value, other.parts[n].value) for n, part in condition.parts.items())
        if moved and torch.equal(raw, network(z, gamma, other)):
            return "gives the same under any condition; it must read it, or pass model.conditional=false"
    if _differ(raw[last], network(z[last], gamma[last], alone)):
        return "gives an item another output alone than in a batch; it must not depend on the others"
    return ""


def _differ(one: Tensor, other: Tensor) -> bool:
    one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
    return bool((one - other).abs().max() > CLOSE * one.abs().max())


def try_guides(drawing: Any, keys: list[str], model: Any) -> None:
    """Call a user's guidance and threshold at three levels, as a sampler does; UserError: no finite guess.

    ``keys``: of the wrappers around the model's denoiser, from the outermost.
    """
    guides, around = [], drawing.denoiser
    for key in keys:
        if is_own(around):
            guides.append((key, copy.copy(around.to(model.device))))  # it may keep a momentum
        around = getattr(around, "denoiser", None)
    if not guides or not isinstance(model.denoiser, nn.Module):
        return
    condition = None if (both := drawing.condition(2)) is None else both.to(model.device)

    def call(key: str, guide: Any, gamma: Tensor) -> Tensor:
        guess = guide(torch.randn(2, *model.event, device=model.device), gamma, condition)
        if not isinstance(guess, Prediction):
            given = f"gives a {type(guess).__name__}"
            _refuse(key, guide, f"{given}; must be a Prediction, as guess.moved(space, value)")
        return guess.value

    # untrained, it may give 0 under any condition, and a guide may divide by a guess or by their difference
    stir = lambda _, __, guess: guess.moved(guess.own, guess.value + torch.randn_like(guess.value))  # noqa: E731
    hook = model.denoiser.register_forward_hook(stir)
    try:
        for key, guide in reversed(guides):
            for gamma in model.schedule.gamma(torch.linspace(0.05, 0.95, 3, device=model.device)):
                check_output(key, guide.forward, partial(call, key, guide, gamma), (2, *model.event))
    finally:
        hook.remove()


def try_sampler(sampler: Any, node: dict[str, Any], model: Any) -> None:
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
    check_output("sampler", sampler.step, drawn[0], (2, *model.event))
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
        z_s = check_output("sampler", sampler.step, lambda: type(short).step(short, z, at), tuple(z.shape))
        if z_s.dtype != z.dtype:
            _refuse("sampler", sampler, f"gives {z_s.dtype}; must be {z.dtype}")
        if any(map(torch.ne, levels, before)):  # the next step starts from them
            _refuse("sampler", sampler, "changes gamma_t or gamma_s in place; it must work on copies")
        others = vars(at).keys() - Step.__dataclass_fields__.keys()
        if at.before is None and (wrong := closest("before", [*others])):  # it leaves nothing, unnoticed
            _refuse("sampler", sampler, f"sets at.{wrong}; did you mean at.before?")
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
