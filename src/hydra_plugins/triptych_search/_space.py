"""The space of a search: fixed keys, the values that are drawn, and jobs that try each of them.

The underscore keeps it from Hydra's search for plugins, which would import Optuna for every
command.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
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
    """Return the overrides that all trials share, and the space of the values that are drawn.

    UserError: an override cannot be searched over.
    A typed key counts in place of the same key of ``params``.
    """
    typed = [*(f"{key}={value}" for key, value in params.items()), *arguments]
    parsed = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(typed)}
    fixed = [str(o.input_line) for o in parsed.values() if not o.is_sweep_override()]
    return fixed, {
        key: optuna_distribution(o) for key, o in parsed.items() if o.is_sweep_override()
    }


def trial_job(fixed: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """Return the overrides of a trial."""
    return [*fixed, *(f"{key}={_override_text(value)}" for key, value in params.items())]


def probe_jobs(params: Mapping[str, str], arguments: Sequence[str]) -> list[list[str]]:
    """Return jobs that try each choice and both ends of each range.

    In each, the other keys have their first value.
    """
    fixed, space = parse_space(params, arguments)
    extremes = {key: _extreme_values(values) for key, values in space.items()}
    first = {key: values[0] for key, values in extremes.items()}
    jobs = [trial_job(fixed, first)]
    for key, values in extremes.items():
        jobs += [trial_job(fixed, first | {key: value}) for value in values[1:]]
    return jobs


def _extreme_values(values: Any) -> Sequence[Any]:
    """Return all choices, or both ends of a range."""
    if isinstance(values, CategoricalDistribution):
        return values.choices
    return values.low, values.high


def check_space(space: Space, earlier_space: Space) -> None:
    """Check that a study with trials in the space ``earlier_space`` can continue in ``space``.

    UserError: it cannot.
    """
    if earlier_space and earlier_space.keys() != space.keys():
        key = min(earlier_space.keys() ^ space.keys())
        raise UserError(f"{key}: a search cannot add or drop keys; choose another name")
    for key, distribution in earlier_space.items():
        try:
            check_distribution_compatibility(distribution, space[key])
        except ValueError as error:
            problem = "its values do not fit those that this search began with"
            raise UserError(f"{key}: {problem}; choose another name") from error


def optuna_distribution(override: Override) -> Any:
    """Return Optuna's distribution for an override that sweeps over values.

    UserError: Optuna has none for it.
    """
    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    try:
        if override.is_choice_sweep():
            return CategoricalDistribution([_plain_value(choice) for choice in value.list])
        if override.is_range_sweep() and not log:
            return _range_distribution(value)
        if isinstance(value.start, int) and isinstance(value.end, int):  # int(interval(1,9))
            return IntDistribution(value.start, value.end, log=log)
        return FloatDistribution(float(value.start), float(value.end), log=log)
    except (AttributeError, ValueError) as error:  # a glob has no ends, nor has a range with log
        problem = f"cannot be searched over ({error}); list the values, or use interval(LOW,HIGH)"
        raise UserError(f"{override.input_line}: {problem}") from error


def _range_distribution(value: Any) -> Any:
    values = list(value.range())
    if values and value.step > 0 and isinstance(values[0] + value.step, int):
        return IntDistribution(values[0], values[-1], step=int(value.step))
    return CategoricalDistribution(values)


def _plain_value(value: Any) -> Any:
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value)
    return getattr(value, "text", value)


def _override_text(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
