"""Look, decide, add seeds, look again: a test that stays valid (`claims`), and its result.

`looks.json` holds which seeds each look had: the same command, given again, and the report look at these.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from triptych.files import load_object, read_json
from triptych.run.directory import write_atomic
from triptych.run.parsing import to_float
from triptych.run.read import read_runs
from triptych.study.cells import Comparison, Rule
from triptych.study.compare import compare
from triptych.study.formatting import quantity

FILE = "looks.json"
MOST_LOOKS = 10**6
Pair = tuple[str, str]
Outcome = Literal["separated", "same", "open"]


def decide(
    root: Path, look: int, looks: int, equal_within: float | None = None
) -> tuple[str, dict[Pair, Outcome]]:
    """Take look number `look` (from 1) of at most `looks` at the runs beneath `root`.

    Returns a sentence, and what is known of each two settings with finished runs, in alphabetical order, by
    what decides. A look that was taken before has the seeds that it had.
    """
    seen, runs = _seen(root)[:look], read_runs(root)
    if len(seen) < look:
        seeds = {run.seed for run in runs if run.status == "finished" and run.seed is not None}
        # looks that were not recorded were not taken: this one stands for them
        seen += [frozenset(seeds)] * (look - len(seen))
        record = {"looks": looks, "equal_within": equal_within, "seeds": [sorted(s) for s in seen]}
        write_atomic(root / FILE, json.dumps(record, indent=1) + "\n")
    comparisons = compare(runs, Rule(equal_within, looks, tuple(seen)))
    several = len(comparisons) > 1
    pairs = {
        (prefix + a, prefix + b): outcome
        for comparison in comparisons
        for prefix in [f"{comparison.data}: " if several else ""]
        for (a, b), outcome in _outcomes(comparison).items()
    }
    n = Counter(pairs.values())
    same = "" if equal_within is None else f", {n['same']} the same within {equal_within:g}"
    tally = f"of {quantity(len(pairs), 'pair')} {n['separated']} separated{same}, {n['open']} open"
    return f"look {look} of {looks}, {quantity(len(seen[-1]), 'seed')}: {tally}", pairs


def read_rule(root: Path, sweep: dict[str, Any]) -> Rule:
    """Read how a sweep's report decides: from `sweep.json`'s "until" and the looks taken so far."""
    until = sweep.get("until")
    # without the sweep's word, the looks were taken all the same
    until = until if isinstance(until, dict) else load_object(root / FILE)
    recorded = until.get("equal_within", sweep.get("equal_within"))
    value = to_float(None if isinstance(recorded, str) else recorded)
    margin = value if 0 < value < math.inf else None
    looks = until.get("looks")
    if type(looks) is not int or not 1 <= looks <= MOST_LOOKS:
        return Rule(margin)
    seen = tuple(_seen(root)[:looks])
    # between looks a report shows figures and claims what the last look claimed; before the first, nothing
    return Rule(margin, looks, seen, interim=looks > 1 and not seen)


def joint_rule(rules: Sequence[Rule]) -> Rule:
    """Return the rule of a report over several sweeps: the most looks, and a margin that all have."""
    if len(rules) == 1:
        return replace(rules[0], interim=False)
    margins = {rule.equal_within for rule in rules}
    return Rule(margins.pop() if len(margins) == 1 else None, max((rule.looks for rule in rules), default=1))


def _seen(root: Path) -> list[frozenset[int]]:
    """Read which seeds each look had; [] where none was recorded."""
    try:
        record = read_json(root / FILE)
        return [frozenset(map(int, seeds)) for seeds in record["seeds"]]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return []


def _outcomes(comparison: Comparison) -> dict[Pair, Outcome]:
    """Return each pair's outcome by the bound, or by the deciding measure at its key's last value."""
    table = comparison.question
    # by name, and not by which is better now: a pair keeps its name from look to look
    outcomes: dict[Pair, Outcome] = {
        (min(a, b), max(a, b)): "separated" if claim.holds else "same" if claim.equal else "open"
        for (of, at, a, b), claim in comparison.claims.items()
        if (of, at) == (table.metric.name, len(table.values) - 1)
    }
    return dict(sorted(outcomes.items()))
