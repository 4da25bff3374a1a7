"""The space of a search: which keys it fixes, which values it draws, and jobs that try each of them.

The underscore keeps it from Hydra's search for plugins, which would import Optuna for every command.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import OmegaConf
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)

from triptych.errors import UserError

Space = dict[str, Any]  # Optuna's distribution of each key


def parse_space(params: Mapping[str, str], arguments: Sequence[str]) -> tuple[list[str], Space]:
    """Return the overrides that all trials share, and the space that they are drawn from; UserError.

    A typed key counts in place of the same key of ``params``.
    """
    typed = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(typed)}
    fixed = [str(o.input_line) for o in parsed.values() if not o.is_sweep_override()]
    return fixed, {key: distribution(o) for key, o in parsed.items() if o.is_sweep_override()}


def trial_job(fixed: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Return the overrides of a trial's run."""
    return [*fixed, *(f"{key}={_text(value)}" for key, value in params.items())]


def probe_jobs(params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
    """Return jobs that have each choice and both ends of each range, other keys at their first value."""
    fixed, space = parse_space(params, arguments)
    values = {key: _extremes(one) for key, one in space.items()}
    first = {key: extremes[0] for key, extremes in values.items()}
    others = [first | {key: value} for key, extremes in values.items() for value in extremes[1:]]
    return [trial_job(fixed, point) for point in [first, *others]]


def _extremes(one: Any) -> Sequence[Any]:
    """Return all choices, or both ends."""
    return one.choices if isinstance(one, CategoricalDistribution) else (one.low, one.high)


def check_space(space: Space, earlier: Space) -> None:
    """Check that a study with ``earlier`` trials can go on in this space; UserError."""
    if not earlier:
        return
    another = "choose another name"
    for key in sorted(earlier.keys() - space.keys()):
        raise UserError(f"{key}: searched so far; search it again, or {another}")
    for key in sorted(space.keys() - earlier.keys()):
        raise UserError(f"{key}: not searched so far; type its value, or {another}")
    for key in space:
        try:
            check_distribution_compatibility(earlier[key], space[key])
        except ValueError as error:
            problem = "not the kind of values that this search began with"
            raise UserError(f"{key}: {problem}; {another} for another search") from error


def distribution(override: Override) -> Any:
    """Return what Optuna calls the values that an override sweeps over; UserError: it has no such."""
    try:
        return _known_distribution(override)
    except ValueError as error:
        raise UserError(f"{override.input_line}: {error}; type other ends") from error


def _known_distribution(override: Override) -> Any:
    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, Glob) or (override.is_range_sweep() and log):
        raise UserError(
            f"{override.input_line}: not for a search; list the values, or use interval(LOW,HIGH)"
        )
    if override.is_choice_sweep():
        return CategoricalDistribution([_plain(v) for v in value.list])
    if override.is_range_sweep():
        values = [*value.range()]
        if not values:
            raise UserError(f"{override.input_line}: no values; list one or more")
        if value.step > 0 and all(isinstance(one, int) for one in values):
            return IntDistribution(values[0], values[-1], step=int(value.step))
        return CategoricalDistribution(values)
    if isinstance(value.start, int) and isinstance(value.end, int):  # int(interval(1,9))
        return IntDistribution(value.start, value.end, log=log)
    return FloatDistribution(float(value.start), float(value.end), log=log)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else getattr(value, "text", value)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
