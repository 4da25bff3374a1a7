"""What a claim's verdict counts as, and which claims a small scale cannot decide.

Both follow from the paper's file before any run, by rules that are the same for every paper.
"""

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any]  # a node of a paper's file, as plain values
# Words of a claim, most of which say what its verdict is worth; none affects what is measured.
LABELS = ("says", "note", "contradicted_by", "control", "reason", "relabelled")
COULD_FAIL, NEARLY_FORCED, CONTROL = COUNTS = ("could fail", "nearly forced", "control")
TIE = (
    "networks trained apart for few steps differ in how far they are trained, so a tie at "
    "convergence cannot be tested"
)
# Axes along which one trained network is used in several ways.
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

    It could fail only if the file says what would contradict it, and which control was caught.
    """
    if claim.get("kind") == "identity" or claim.get("counts_as") == CONTROL:
        return CONTROL
    has_control = claim.get("control") and claim.get("contradicted_by")
    if claim.get("counts_as") == COULD_FAIL and has_control:
        return COULD_FAIL
    return NEARLY_FORCED


def untestable_reasons(claims: Node, scale: str) -> dict[str, str]:
    """Return why a scale cannot decide a claim, by its name; of no claim at the paper's scale.

    Either its file says so; or it is a tie of networks that are trained apart; or it compares the
    same networks as a claim that is undecidable, one of them by bits and the other by samples.
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
    """Return whether one claim is of the bits, the other of the samples of the same networks."""
    networks = _trained_networks(claim)
    if not networks or networks != _trained_networks(other):
        return False
    return ("metric" in claim) != ("metric" in other)  # a claim without a metric is of the bits


def _is_tie_of_networks(claim: Node) -> bool:
    """Return whether settings are to be the same for which networks were trained apart."""
    axis = str(claim.get("compare", ""))
    trained_apart = claim.get("kind") == "trained" and not axis.startswith(OF_ONE_NETWORK)
    return trained_apart and "same" in claim


def _trained_networks(claim: Node) -> frozenset[str]:
    """Return the settings that a claim of trained networks puts in order or holds to be the same.

    Empty if it compares nothing that is trained.
    """
    entries = claim.get("order") or claim.get("same") or []
    names: list[Any] = []
    if claim.get("kind") == "trained":
        for entry in entries:
            names += entry if isinstance(entry, list) else [entry]
    return frozenset(map(str, names))
