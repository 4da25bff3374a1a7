"""Published claims and the contrasts that decide them; docs/papers.md says what can be claimed.

A contrast is a number that is to lie in a range. Where other axes vary, a claim is made at each of their
values, unless ``at`` names one. Read without numpy or torch, before a run starts.
"""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import yaml

from triptych.config.habits import nearest
from triptych.errors import UserError
from triptych.run.parsing import format_value, value_name

# what a claim can be of, beside the user's own metrics
OF_THE_BOUND = ("bound", "prior", "reconstruction", "diffusion", "gap", "entropy", "iw", "ode", "ode_bound")
OF_THE_RUN = ("train_bound", "val_bound", "estimator_variance")
METRIC = "metric"  # as an axis: the metrics themselves are compared
TAKES = {  # the statistics, and the keys beside each that say how
    "order": ("by", "by_factor"),
    "same": ("within", "within_factor"),
    "value": ("within", "within_factor"),
    "diverges": ("beyond",),
}
MOST = 1000  # settings at which one claim is made

Axes = Mapping[str, Sequence[str]]  # of a sweep: {key: values as they are typed}, the seeds among them


class MetricPoint(NamedTuple):
    """One figure: a metric of one setting, a value for every axis."""

    metric: str
    setting: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Contrast:
    """``first``, or ``first - second``, or with ``ratio`` the logarithm of ``first / second``, in a range.

    With ``diverges`` it is the share of seeds that diverge, or are above ``beyond`` times all ``others``.
    """

    name: str
    first: MetricPoint
    second: MetricPoint | None = None
    low: float = -math.inf
    high: float = math.inf
    ratio: bool = False
    diverges: bool = False
    beyond: float = math.inf
    others: tuple[MetricPoint, ...] = ()

    @property
    def is_tie(self) -> bool:
        """Two figures are to be the same."""
        return self.second is not None and math.isfinite(self.low) and self.low == -self.high


@dataclass(frozen=True)
class Claim:
    """What a paper says, the figures that it gives, and the contrasts that decide it.

    ``rule``: how it is decided. ``note``: what is to be known of the verdict. ``metric``: "" where
    metrics are compared. ``kind``: see above, "" in an earlier record. ``source``: "table 2".
    ``untestable``: why this scale cannot decide it, "" if it can.
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

    @property
    def points(self) -> list[MetricPoint]:
        """All figures that it is about, each once."""
        every = (point for c in self.contrasts for point in (c.first, c.second, *c.others) if point)
        return list(dict.fromkeys(every))


def read_claim(name: str, node: Mapping[str, Any], axes: Axes, scale: str = "small") -> Claim:
    """Return the claim of a node ``paper.claims.NAME``, whose keys and types are checked; else UserError."""
    path = f"paper.claims.{name}"
    kinds = [kind for kind in TAKES if kind in node]
    if len(kinds) != 1:
        raise UserError(f"{path}: {', '.join(kinds) or 'none'} of {', '.join(TAKES)}; use exactly one")
    kind = kinds[0]
    for key in ("by", "by_factor", "within", "within_factor", "beyond"):
        if key in node and key not in TAKES[kind]:
            raise UserError(f"{path}.{key}={node[key]!r}: not with {kind}; use {' or '.join(TAKES[kind])}")
    if "within" in TAKES[kind] and ("within" in node) == ("within_factor" in node):
        raise UserError(f"{path}: {kind} needs a tolerance; use one of within and within_factor")
    if "by" in node and "by_factor" in node:
        raise UserError(f"{path}: both by and by_factor; use one of the two")
    maker = _Contrasts(path, node, axes)
    if kind in ("order", "same") and len(node[kind]) < 2:
        raise UserError(f"{path}.{kind}={node[kind]}: must be two or more settings")
    contrasts = tuple(getattr(maker, kind)())
    if not contrasts:
        raise UserError(f"{path}.{kind}={node[kind]!r}: must be one or more settings")
    words = {key: str(node.get(key) or "") for key in ("note", "kind", "quote", "otherwise", "untestable")}
    return Claim(
        name=name,
        says=node["says"],
        metric="" if maker.axis == METRIC else maker.metric,
        rule=_rule(node, kind, *TAKES[kind]),
        published=tuple((str(k), str(v)) for k, v in (node.get("published") or {}).items()),
        contrasts=contrasts,
        source=", ".join(
            _source(key, str(node[key])) for key in ("table", "figure", "section") if key in node
        ),
        **(words if scale == "small" else words | {"untestable": ""}),
    )


class _Contrasts:
    """The contrasts of one claim, made from its node and the sweep's axes."""

    def __init__(self, path: str, node: Mapping[str, Any], axes: Axes):
        self.path, self.node, self.axes = path, node, axes
        varied = [key for key, values in axes.items() if len(values) > 1 or len(axes) == 1]
        self.axis = str(node.get("compare") or (varied[0] if len(varied) == 1 else ""))
        if not self.axis:
            raise UserError(f"{path}.compare: a value is needed; one of {', '.join([*varied, METRIC])}")
        if self.axis not in (*axes, METRIC):
            known = nearest(self.axis, [*axes, METRIC])
            raise UserError(f"{path}.compare={self.axis}: not an axis of the sweep, {known}")
        if self.axis == METRIC and "metric" in node:
            raise UserError(f"{path}.metric={node['metric']}: not with compare=metric")
        self.metric = str(node.get("metric", "bound"))
        self.at = {key: self._value(f"at.{key}", key, v) for key, v in (node.get("at") or {}).items()}
        if self.axis in self.at:
            raise UserError(f"{path}.at.{self.axis}: it is what is compared; use another axis")
        free = [key for key in axes if key not in (self.axis, *self.at)]
        if math.prod(len(axes[key]) for key in free) > MOST:
            raise UserError(f"{path}.at: more than {MOST} settings of {', '.join(free)}; fix more of them")
        self.elsewhere = [
            dict(zip(free, point, strict=True)) for point in itertools.product(*(axes[key] for key in free))
        ]
        self.open_axes = [key for key in free if len(axes[key]) > 1]

    def order(self) -> Iterable[Contrast]:
        groups = [entry if isinstance(entry, list) else [entry] for entry in self.node["order"]]
        ratio = "by_factor" in self.node
        low = math.log(self.node["by_factor"]) if ratio else float(self.node.get("by", 0.0))
        for below, above in itertools.pairwise(groups):
            for a, b in itertools.product(below, above):
                yield from self._each("order", b, a, low=low, ratio=ratio)

    def same(self) -> Iterable[Contrast]:
        ratio = "within_factor" in self.node
        high = math.log(self.node["within_factor"]) if ratio else float(self.node["within"])
        for a, b in itertools.combinations(self.node["same"], 2):
            yield from self._each("same", b, a, low=-high, high=high, ratio=ratio)

    def value(self) -> Iterable[Contrast]:
        for setting, figure in self.node["value"].items():
            if factor := self.node.get("within_factor"):
                low, high = sorted((figure / factor, figure * factor))
            else:
                low, high = figure - self.node["within"], figure + self.node["within"]
            yield from self._each("value", setting, low=low, high=high)

    def diverges(self) -> Iterable[Contrast]:
        beyond = float(self.node.get("beyond", math.inf))
        listed = {self._value("diverges", self.axis, setting) for setting in self.node["diverges"]}
        for setting in self.node["diverges"]:
            for contrast in self._each("diverges", setting, low=0.5, diverges=True, beyond=beyond):
                rest = [value for value in self.axes[self.axis] if value not in listed]
                others = tuple(self._point(value, dict(contrast.first.setting)) for value in rest)
                yield replace(contrast, others=others if math.isfinite(beyond) else ())

    def _each(self, key: str, first: Any, *second: Any, **how: Any) -> Iterable[Contrast]:
        """Return the contrast at each value of the axes that the claim leaves open."""
        texts = [self._value(key, self.axis, one) for one in (first, *second)]
        if texts[1:] == texts[:1]:
            raise UserError(f"{self.path}.{key}={texts[0]}: twice; use different settings")
        sign = " / " if how.get("ratio") else " − "
        for other in self.elsewhere:
            points = [self._point(text, other) for text in texts]
            where = ", ".join(value_name(k, other[k]) for k in self.open_axes)
            name = sign.join(value_name(self.axis, text) for text in texts) + (f" ({where})" if where else "")
            yield Contrast(name, points[0], points[1] if len(points) > 1 else None, **how)

    def _point(self, text: str, other: Mapping[str, str]) -> MetricPoint:
        setting = {**other, **self.at}
        if self.axis == METRIC:
            return MetricPoint(text, tuple(setting.items()))
        return MetricPoint(self.metric, tuple((setting | {self.axis: text}).items()))

    def _value(self, where: str, key: str, wanted: Any) -> str:
        """Return a value of an axis as the sweep types it."""
        if key == METRIC:
            return str(wanted)
        if key not in self.axes:
            raise UserError(f"{self.path}.{where}: not an axis of the sweep, {nearest(key, [*self.axes])}")
        text = next((one for one in self.axes[key] if one == str(wanted) or _means(one, wanted)), None)
        if text is None:
            known = f"{key} is one of {', '.join(self.axes[key])}"
            raise UserError(f"{self.path}.{where}={format_value(wanted)}: not in the sweep; {known}")
        return text


def _source(kind: str, which: str) -> str:
    """ "table 2", "table A1", and by its name alone "abstract"."""
    return which if which[:3].isalpha() else f"{kind} {which}"


def _means(text: str, wanted: Any) -> bool:
    """Return whether a typed text is that value: null, true, 1e-3."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return bool(value == wanted) and isinstance(value, bool) == isinstance(wanted, bool)


def _rule(node: Mapping[str, Any], *keys: str) -> str:
    """Return the statistic and its tolerance as the file has them: "order: [a, b], by: 0.1"."""
    of = {key: node[key] for key in keys if key in node}
    shown = yaml.safe_dump(of, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
    return shown.strip()[1:-1]
