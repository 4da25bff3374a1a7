"""Published claims and the contrasts that decide them; docs/papers.md says what can be claimed.

A contrast is a number that is to lie in a range. If other axes vary, a claim must hold at each of
their values, unless ``at`` names one. Commands import this module without numpy or torch.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from triptych.config.habits import suggest_name
from triptych.errors import UserError
from triptych.run.parsing import format_value, to_float, value_name
from triptych.study.papers.labels import NEARLY_FORCED, Node

# The metrics that every run has, without those of samples and user-supplied ones.
TERMS = ("prior", "reconstruction", "diffusion")
OF_THE_BOUND = ("bound", *TERMS, "gap", "entropy", "iw", "ode", "ode_bound")
OF_THE_RUN = ("train_bound", "val_bound", "estimator_variance")
METRIC = "metric"  # the axis of a claim that compares metrics
SOURCES = ("table", "figure", "section")
WORDS = ("kind", "quote", "otherwise")

# The axes of a sweep, including the seeds: {key: its values as typed}.
Axes = Mapping[str, Sequence[str]]


class Statistic(NamedTuple):
    """The keys that state a statistic's tolerance, and whether it needs one of them."""

    tolerances: tuple[str, ...]
    required: bool = False


STATISTICS = {
    "order": Statistic(("by", "by_factor")),
    "same": Statistic(("within", "within_factor"), required=True),
    "value": Statistic(("within", "within_factor"), required=True),
    "diverges": Statistic(("beyond",)),
}
TOLERANCES = ("by", "by_factor", "within", "within_factor", "beyond")


class MetricPoint(NamedTuple):
    """One figure of a claim: a metric at one setting, which has a value for every axis."""

    metric: str
    setting: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Contrast:
    """A number that a claim puts between ``low`` and ``high``.

    It is one figure, the difference of two, or with ``ratio`` the logarithm of their ratio. With
    ``diverges`` it is the share of seeds that diverge or exceed ``beyond`` times all ``others``.
    """

    name: str
    compared: tuple[MetricPoint, ...]
    low: float = -math.inf
    high: float = math.inf
    ratio: bool = False
    diverges: bool = False
    beyond: float = math.inf
    others: tuple[MetricPoint, ...] = ()

    @property
    def first(self) -> MetricPoint:
        return self.compared[0]

    @property
    def is_pair(self) -> bool:
        """Whether two figures are compared, not one figure with a number."""
        return len(self.compared) > 1

    @property
    def n_ends(self) -> int:
        """The number of finite ends of the range."""
        return math.isfinite(self.low) + math.isfinite(self.high)

    @property
    def is_tie(self) -> bool:
        """Whether two figures are claimed to be the same."""
        return self.is_pair and math.isfinite(self.low) and self.low == -self.high


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, the figures that it published, and the contrasts that decide it.

    ``rule``: how it is decided. ``note``: a remark on the verdict. ``metric``: "" where metrics are
    compared. ``kind``: identity, exact or trained; "" in an earlier record. ``source``: "table 2".
    ``untestable``: why this scale cannot decide it, "" if it can. ``counts_as``: "could fail",
    "nearly forced" or "control"; ``reason``: why. ``contradicted_by``: the outcome that would
    contradict it. ``control``: a planted error that the same test caught. ``relabelled``: when and
    why its label was changed after a result.
    """

    name: str
    says: str
    metric: str
    rule: str
    published: tuple[tuple[str, str], ...]
    contrasts: tuple[Contrast, ...]
    note: str = ""
    kind: str = ""
    source: str = ""
    quote: str = ""
    otherwise: str = ""
    untestable: str = ""
    counts_as: str = NEARLY_FORCED
    contradicted_by: str = ""
    control: str = ""
    reason: str = ""
    relabelled: str = ""

    @property
    def points(self) -> list[MetricPoint]:
        """All figures that it is about, each once."""
        points: dict[MetricPoint, None] = {}
        for contrast in self.contrasts:
            points |= dict.fromkeys([*contrast.compared, *contrast.others])
        return list(points)


def read_claim(name: str, node: Node, axes: Axes) -> Claim:
    """Return the claim of a node ``paper.claims.NAME``; UserError: it cannot be decided.

    The fields that depend on the file's other claims are set later, see ``claim_labels``.
    """
    path = f"paper.claims.{name}"
    statistic = _read_statistic(path, node)
    builder = ContrastBuilder(path, node, axes, statistic)
    contrasts = tuple(getattr(builder, statistic)())
    if not contrasts:
        raise UserError(
            f"{path}.{statistic}={node[statistic]!r}: nothing to compare; list more settings"
        )
    metric = builder.metric
    if builder.axis == METRIC:
        metric = ""
    words = {key: node.get(key, "") for key in WORDS}
    published = node.get("published", {})
    return Claim(
        name=name,
        says=node["says"],
        metric=metric,
        rule=_rule_text(node, statistic),
        published=tuple((str(key), str(value)) for key, value in published.items()),
        contrasts=contrasts,
        source=", ".join(_source_text(key, str(node[key])) for key in SOURCES if key in node),
        **words,
    )


def _read_statistic(path: str, node: Node) -> str:
    """Return a claim's statistic; UserError unless it has exactly one, with its own tolerance."""
    names = [name for name in STATISTICS if name in node]
    if len(names) != 1:
        raise UserError(
            f"{path}: has {len(names)} statistics; use exactly one of {', '.join(STATISTICS)}"
        )
    [name] = names
    accepted, required = STATISTICS[name]
    given = [key for key in TOLERANCES if key in node]
    if len(given) > 1 or not {*given} <= {*accepted}:
        raise UserError(
            f"{path}: {name} cannot use {' and '.join(given)}; use one of {', '.join(accepted)}"
        )
    if required and not given:
        raise UserError(f"{path}: {name} needs a tolerance; use one of {', '.join(accepted)}")
    return name


def _compared_axis(path: str, node: Node, axes: Axes) -> str:
    """Return the axis that a claim compares: the one that it names, or the only one that varies."""
    if "compare" in node:
        axis = node["compare"]
        if axis not in (*axes, METRIC):
            fix = suggest_name(axis, [*axes, METRIC])
            raise UserError(f"{path}.compare={axis}: not an axis of the sweep; {fix}")
        return str(axis)
    varied = [key for key, values in axes.items() if len(values) > 1] or list(axes)
    if len(varied) != 1:
        raise UserError(f"{path}.compare: missing; use one of {', '.join([*varied, METRIC])}")
    return varied[0]


class ContrastBuilder:
    """A builder of a claim's contrasts from its node and the sweep's axes, by statistic."""

    def __init__(self, path: str, node: Node, axes: Axes, statistic: str):
        self.path, self.node, self.axes, self.statistic = path, node, axes, statistic
        self.stated = node[statistic]
        self.axis = _compared_axis(path, node, axes)
        self.metric = str(node.get("metric", "bound"))
        self.fixed = {}
        for key, value in node.get("at", {}).items():
            self.fixed[key] = self._format_axis_value(f"at.{key}", key, value)
        free = [key for key in axes if key != self.axis and key not in self.fixed]
        points = itertools.product(*(axes[key] for key in free))
        # The claim must hold at each value of the axes that are neither compared nor fixed.
        self.elsewhere = [dict(zip(free, point, strict=True)) for point in points]
        self.open_axes = [key for key in free if len(axes[key]) > 1]

    def order(self) -> Iterator[Contrast]:
        """Yield "each setting is above those of the group before it"."""
        low, ratio = self._tolerance("by")
        groups = [self._settings(entry) for entry in self.stated]
        for below, above in itertools.pairwise(groups):
            for smaller, larger in itertools.product(below, above):
                yield from self._contrasts([larger, smaller], low=low, ratio=ratio)

    def same(self) -> Iterator[Contrast]:
        """Yield "both settings are equal up to the tolerance" for each pair."""
        high, ratio = self._tolerance("within")
        for first, second in itertools.combinations(self._settings(self.stated), 2):
            yield from self._contrasts([second, first], low=-high, high=high, ratio=ratio)

    def value(self) -> Iterator[Contrast]:
        """Yield "the setting has the stated figure up to the tolerance" for each setting."""
        for setting, figure in self.stated.items():
            if "within" in self.node:
                low = figure - self.node["within"]
                high = figure + self.node["within"]
            else:
                factor = self.node["within_factor"]
                low, high = sorted((figure / factor, figure * factor))
            yield from self._contrasts(self._settings(setting), low=low, high=high)

    def diverges(self) -> Iterator[Contrast]:
        """Yield "over half of the seeds diverge" for each setting."""
        settings = self._settings(self.stated)
        others = list[str]()
        if "beyond" in self.node:
            others = [text for text in self.axes[self.axis] if text not in settings]
        beyond = float(self.node.get("beyond", math.inf))
        for setting in settings:
            yield from self._contrasts([setting], others, low=0.5, diverges=True, beyond=beyond)

    def _tolerance(self, key: str) -> tuple[float, bool]:
        """Return a claim's tolerance, and whether it is on a ratio's logarithm."""
        factor = f"{key}_factor"
        if factor in self.node:
            return math.log(self.node[factor]), True
        return float(self.node.get(key, 0.0)), False

    def _contrasts(
        self,
        settings: Sequence[str],
        others: Sequence[str] = (),
        ratio: bool = False,
        **fields: Any,
    ) -> Iterator[Contrast]:
        """Yield one contrast for each combination of values of the open axes.

        ``settings``: one value of the compared axis, or two whose difference (``ratio``: quotient)
        is taken. ``others``: the other values with which ``diverges`` compares. ``fields``: further
        fields of the contrast.
        """
        sign = " / " if ratio else " − "
        compared = sign.join(value_name(self.axis, text) for text in settings)
        for elsewhere in self.elsewhere:
            name = compared
            if self.open_axes:
                place = [value_name(key, elsewhere[key]) for key in self.open_axes]
                name += f" ({', '.join(place)})"
            yield Contrast(
                name,
                self._points(settings, elsewhere),
                ratio=ratio,
                others=self._points(others, elsewhere),
                **fields,
            )

    def _points(
        self, texts: Sequence[str], open_axis_values: Mapping[str, str]
    ) -> tuple[MetricPoint, ...]:
        """Return the figure of each value of the compared axis."""
        points = []
        for text in texts:
            setting = {**open_axis_values, **self.fixed, self.axis: text}
            metric = setting.pop(METRIC, self.metric)
            points.append(MetricPoint(metric, tuple(setting.items())))
        return tuple(points)

    def _settings(self, entry: Any) -> list[str]:
        """Return one or several values of the compared axis as the sweep types them."""
        if not isinstance(entry, list):
            entry = [entry]
        return [self._format_axis_value(self.statistic, self.axis, value) for value in entry]

    def _format_axis_value(self, key: str, axis: str, value: Any) -> str:
        """Return a value of an axis as the sweep types it."""
        if axis == METRIC:
            return str(value)
        if axis not in self.axes:
            raise UserError(
                f"{self.path}.{key}: not an axis of the sweep; {suggest_name(axis, [*self.axes])}"
            )
        for text in self.axes[axis]:
            # The same text, or an equal number: 1e-3 is 0.001.
            if text == format_value(value) or to_float(text) == to_float(value):
                return text
        raise UserError(
            f"{self.path}.{key}={format_value(value)}: not in the sweep; choose a value "
            f"of {axis} from {', '.join(self.axes[axis])}"
        )


def _source_text(kind: str, number: str) -> str:
    """Name a claim's source: "table 2", "table A1", or just "abstract" if that is its name."""
    if number[:3].isalpha():
        return number
    return f"{kind} {number}"


def _rule_text(node: Node, statistic: str) -> str:
    """Return the statistic and its tolerance as the file has them: "order: [a, b], by: 0.1"."""
    keys = [statistic, *STATISTICS[statistic].tolerances]
    rule = {key: node[key] for key in keys if key in node}
    text = yaml.safe_dump(
        rule, width=math.inf, default_flow_style=True, sort_keys=False, allow_unicode=True
    )
    return str(text).strip()[1:-1]
