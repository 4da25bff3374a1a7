"""Check each component of a model once, on a few training items, before the first step.

A tensor of a wrong shape may broadcast and train silently. Weights, train or eval modes and random
states are left unchanged.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from triptych.config.own_code import definition_location, is_user_code, reraise_as_user_error
from triptych.diffusion.prediction import Prediction
from triptych.diffusion.sampler import Sampler
from triptych.diffusion.schedule import Schedule
from triptych.errors import UserError

TIMES = 100  # number of times t at which a schedule is checked
CLOSE = 1e-3  # relative tolerance, larger than the rounding errors of different kernels


@contextmanager
def isolated_evaluation(model: nn.Module) -> Iterator[None]:
    """Run the ``with`` block in evaluation mode without gradients; then restore all states.

    These are the modes of the modules and the random states. An error in user-supplied code is
    raised as a UserError.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # evaluation mode, so that running averages do not change
    try:
        with isolate_rng(), torch.no_grad(), reraise_as_user_error():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def check_output(key: str, function: Any, value: Any, *shapes: tuple[int, ...]) -> Any:
    """Check and return ``value``, the output of ``function``; ``key`` is its configuration key.

    ``value`` may also be a function without arguments that computes the output. Raises UserError if
    the output is not a finite tensor of one of the ``shapes``, or if the call fails.
    """
    if callable(value):
        with reraise_as_user_error(key):
            value = value()
    problem = _output_problem(value, shapes)
    if problem:
        component = type(getattr(function, "__self__", function))
        location = definition_location(function) or definition_location(
            component
        )  # the function may be inherited
        raise UserError(f"{key}: {component.__name__} returns {problem}{location}")
    return value


def _output_problem(value: Any, shapes: tuple[tuple[int, ...], ...]) -> str:
    """Return what is wrong with an output that should have one of the ``shapes``; or ""."""
    expected = " or ".join(map(str, shapes))
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}; must be a tensor of shape {expected}"
    if tuple(value.shape) not in shapes:
        return f"shape {tuple(value.shape)}; must be {expected}"
    if not value.isfinite().all():
        return "numbers that are not finite; all must be finite"
    return ""


def _raise_output_error(key: str, part: Any, problem: str) -> None:
    """Raise the UserError about the component ``part``, with the place of its class."""
    raise UserError(f"{key}: {type(part).__name__} {problem}{definition_location(type(part))}")


def check_gradient(key: str, network: nn.Module, raw: Tensor) -> None:
    """Raise UserError if a network has trainable weights but its output ``raw`` no gradient."""
    trains = any(p.requires_grad for p in network.parameters())
    if trains and not raw.requires_grad:
        _raise_output_error(
            key, network, "returns an output without a gradient; leave out detach() and no_grad()"
        )


def check_schedule(schedule: Schedule, device: torch.device) -> None:
    """Check that gamma(t) increases, and that slope, inverse and endpoints agree with gamma(t)."""
    if not is_user_code(schedule):
        return
    t = ((torch.arange(TIMES, device=device) + 0.618034) / TIMES).requires_grad_()
    with torch.enable_grad():
        gamma = schedule.gamma(t)
        if not gamma.requires_grad:
            _raise_output_error(
                "schedule",
                schedule,
                "returns a gamma without a gradient in t; compute it with torch",
            )
        slope = torch.autograd.grad(gamma.sum(), t)[0]
    t, gamma = t.detach(), gamma.detach()
    violations = (gamma.diff() > 0).logical_not()  # a NaN is one, too
    if violations.any():
        first = t[1:][violations][0]
        _raise_output_error(
            "schedule",
            schedule,
            f"at t={first:.3g}: gamma does not increase; it must increase with t",
        )

    ends = schedule.ends(device)
    span = ends[1] - ends[0]
    close = CLOSE * (slope + 0.1 * span)
    _check_values(schedule, "dgamma", t, schedule.dgamma(t), slope, close)
    _check_values(
        schedule, "t_of(gamma)", t, schedule.t_of(gamma), t, torch.full_like(t, 10 * CLOSE)
    )
    # Learned endpoints may differ from the arguments.
    if not any(p.requires_grad for p in schedule.parameters()):
        expected = ends.new_tensor([schedule.gamma_min, schedule.gamma_max])
        at_ends = ends.new_tensor([0.0, 1.0])
        _check_values(schedule, "gamma", at_ends, ends, expected, CLOSE * span.expand(2))


def _check_values(
    schedule: Schedule, name: str, t: Tensor, values: Tensor, expected: Tensor, close: Tensor
) -> None:
    """Raise UserError for the first time ``t`` at which the function ``name`` is wrong."""
    wrong = ((values - expected).abs() < close).logical_not().nonzero()
    if len(wrong):
        i = int(wrong[0])
        _raise_output_error(
            "schedule",
            schedule,
            f"at t={t[i]:.3g}: {name} is {values[i]:.4g}; must be {expected[i]:.4g}",
        )


def try_guidance(drawing: Any, keys: list[str], model: Any) -> None:
    """Call user-supplied guidance and threshold once, as a sampler does.

    Raises UserError if the result does not have the shape of z. ``keys``: configuration keys of the
    wrappers around the model's denoiser, the outermost first.
    """
    shape = (2, *model.event)
    z = torch.randn(shape, device=model.device)
    gamma = model.schedule.gamma(torch.tensor(0.5, device=model.device))
    condition = drawing.condition(2)
    if condition is not None:
        condition = condition.to(model.device)
    guide = drawing.denoiser
    for key in keys:
        if is_user_code(guide):
            tried = copy.copy(guide.to(model.device))  # a copy, because the guide may have a state
            with reraise_as_user_error(key):
                guess = tried(z, gamma, condition)
            if not isinstance(guess, Prediction):
                _raise_output_error(
                    key,
                    guide,
                    f"returns a {type(guess).__name__}; must be a Prediction, as "
                    "guess.moved(space, value)",
                )
            # Allow NaN here: an untrained network may return 0, and the guide may divide by it.
            check_output(key, guide.forward, guess.value.nan_to_num(), shape)
        guide = guide.denoiser


def try_sampler(sampler: Sampler, model: Any) -> None:
    """Check a user-supplied sampler by drawing two samples twice with the same seed.

    Raises UserError if the samples are not finite, not equal or not of the model's shape, or if the
    sampler calls the denoiser more often than it declares: reports compare the declared numbers.
    """
    if not is_user_code(sampler):
        return
    tried = model.adapt_sampler(copy.copy(sampler))  # a copy, because the sampler may have a state
    # Batch size of each call of the denoiser, as a sampler may draw in chunks.
    sizes: list[int] = []
    hook = model.denoiser.register_forward_hook(lambda _, __, guess: sizes.append(len(guess.value)))
    try:
        first, second = _draw_two_items(tried, model), _draw_two_items(tried, model)
    finally:
        hook.remove()
    check_output("sampler", sampler.step, first, (2, *model.event))
    calls, declared = sum(sizes) / 4, sampler.count_denoiser_calls(model.schedule)
    if calls > declared:
        _raise_output_error(
            "sampler",
            sampler,
            f"calls the denoiser {calls:g} times in {sampler.steps} steps, but declares "
            f"{declared}; set `calls` to the number per step",
        )
    if not (first - second).abs().max() <= CLOSE * first.abs().max():
        _raise_output_error(
            "sampler",
            sampler,
            "draws different samples with the same seed; draw noise with at.noise(z)",
        )


def _draw_two_items(sampler: Sampler, model: Any) -> Any:
    """Draw two samples with seed 0 and the conditions of two training items."""
    condition = None if model.training_items is None else model.training_values_and_condition(2)[1]
    with reraise_as_user_error("sampler"):
        return sampler(
            model.denoiser,
            model.schedule,
            (2, *model.event),
            generator=torch.Generator(model.device).manual_seed(0),
            condition=condition,
            device=model.device,
        )
