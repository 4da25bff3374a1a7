"""Label claims: what a verdict on them counts as, and whether a small scale can decide them.

Both labels follow from the paper's file before any run, by the same rules for every paper.
"""

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any]  # a node of a paper's file, as plain values
# Keys of a claim that hold texts, mostly on what its verdict is worth; none affects a measurement.
LABELS = ("says", "note", "contradicted_by", "control", "reason", "relabelled")
COULD_FAIL, NEARLY_FORCED, CONTROL = COUNTS = ("could fail", "nearly forced", "control")
TIE = (
    "networks trained apart for few steps differ in how far they are trained, so a tie at "
    "convergence cannot be tested"
)
# Axes whose values share one trained network and differ only in how it is used.
OF_ONE_NETWORK = ("sampler", "guidance", "threshold", "evaluations", "metric")


def claim_labels(claims: Node, scale: str) -> dict[str, dict[str, Any]]:
    """Return the labels of each claim of a node at a scale, by its name."""
    untestable = untestable_reasons(claims, scale)
    labels = {}
    for name, claim in claims.items():
        words = {key: str(claim.get(key, "")) for key in LABELS}
        verdict = {"counts_as": counts_as(claim), "untestable": untestable.get(name, "")}
        labels[name] = words | verdict
    return labels


def counts_as(claim: Node) -> str:
    """Return what a verdict on a claim counts as: one of ``COUNTS``.

    It counts as "could fail" only if the file states what would contradict it, and its control.
    """
    if claim.get("kind") == "identity" or claim.get("counts_as") == CONTROL:
        return CONTROL
    has_control = claim.get("control") and claim.get("contradicted_by")
    if claim.get("counts_as") == COULD_FAIL and has_control:
        return COULD_FAIL
    return NEARLY_FORCED


def untestable_reasons(claims: Node, scale: str) -> dict[str, str]:
    """Return {claim: why this scale cannot decide it}; {} at the paper's scale.

    Either the file states the reason, or the claim is a tie of networks that are trained apart, or
    it compares the networks of a claim with a stated reason, one by bits, the other by samples.
    """
    if scale != "small":
        return {}
    stated = {name: claim["untestable"] for name, claim in claims.items() if "untestable" in claim}
    by_rule = {}
    for name, claim in claims.items():
        siblings = [other for other in stated if _judge_the_same_networks(claim, claims[other])]
        if _is_tie_of_networks(claim):
            by_rule[name] = TIE
        elif siblings:
            by_rule[name] = f"its networks are those of {siblings[0]}, and no further trained"
    return by_rule | stated


def _judge_the_same_networks(claim: Node, other: Node) -> bool:
    """Return whether two claims judge the same networks, one by bits, the other by samples."""
    networks = _trained_networks(claim)
    if not networks or networks != _trained_networks(other):
        return False
    return ("metric" in claim) != ("metric" in other)  # a claim without a metric is of the bits


def _is_tie_of_networks(claim: Node) -> bool:
    """Return whether a claim calls settings the same whose networks are trained apart."""
    axis = str(claim.get("compare", ""))
    trained_apart = claim.get("kind") == "trained" and not axis.startswith(OF_ONE_NETWORK)
    return trained_apart and "same" in claim


def _trained_networks(claim: Node) -> frozenset[str]:
    """Return the settings whose trained networks a claim orders or calls the same.

    Empty if it compares no trained networks.
    """
    entries = claim.get("order") or claim.get("same") or []
    names: list[Any] = []
    if claim.get("kind") == "trained":
        for entry in entries:
            names += entry if isinstance(entry, list) else [entry]
    return frozenset(map(str, names))
