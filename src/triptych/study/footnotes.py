"""Write footnotes of a comparison: what its intervals and tests cover, and what they do not."""

from triptych.study.cells import BOUND, DecisionRule
from triptych.study.comparison import Comparison
from triptych.study.formatting import count_noun


def footnote(comparison: Comparison) -> str:
    """Return sentences on what the intervals and p-values do and do not cover."""
    parts = []
    if not comparison.one_seed:
        parts.append("± is the standard error over seeds.")
    parts += [_interval_footnote(comparison), _test_footnote(comparison)]
    if comparison.deciding:
        parts.append(sample_counts_sentence(comparison))
    return " ".join(filter(None, parts))


def _interval_footnote(comparison: Comparison) -> str:
    """Return sentences on what the intervals of differences cover."""
    sentences = []
    if comparison.deciding:
        source = "draws" if comparison.one_training else "training, if any, and draws"
        sentences.append(
            "Differences are paired by seed: the settings of a seed share their model, the noise "
            "of their samples and the true data. Their intervals cover the variation over seeds "
            f"({source}), but not the choice of data to train on."
        )
    pairs = [claim.pair for (metric, *_), claim in comparison.claims.items() if metric == BOUND]
    if pairs:
        by_item = sum(pair.n_items > 0 for pair in pairs)
        source = "draws" if comparison.one_training else "initial weights, batches, noise"
        sentences.append(
            f"Differences are paired by seed, in {by_item} of {count_noun(len(pairs), 'pair')} by "
            f"item too. Their intervals cover the variation over seeds ({source}) and, if paired "
            "by item, over the choice of test items."
        )
    if comparison.one_training:
        sentences.append(
            "All seeds of a setting use one trained model: errors and intervals cover the random "
            "draws after training, but not the variation over trainings."
        )
    return " ".join(sentences)


def _test_footnote(comparison: Comparison) -> str:
    """Return sentences on how the tests are corrected, and on looks, runs to come and margin."""
    rule = comparison.rule
    sentences = []
    if comparison.tests > 1:
        sentences.append(
            f"{comparison.tests} differences are tested here (all pairs of settings, by each "
            "metric). Holm's method corrects p for all of them: if there is no true difference, "
            "at most 5% of reports say “clear of” (up to 20% if seeds are very skewed and one "
            "setting spreads five times as far as the others, or a fifth). This also holds for "
            "the best setting, though it was chosen by the same figures. All intervals hold "
            "together in 95% of reports, with the same exception; one without zero is "
            "significant, and Holm's later steps may find more."
        )
    if rule.looks > 1:
        sentences.append(
            f"This is look {max(len(rule.seen), 1)} of {rule.looks}. {_looks_sentence(rule)}"
        )
    if rule.interim:
        sentences.append(
            "A sweep of this report has not finished: no difference is claimed yet, not even where "
            "the interval excludes zero."
        )
    if rule.equal_within is not None:
        sentences.append(
            f"“The same” means: by two one-sided tests, also corrected, the difference is within "
            f"{margin_text(comparison)}. “Not settled” means: neither is shown."
        )
    return " ".join(sentences)


def _looks_sentence(rule: DecisionRule) -> str:
    """Return a sentence on the share of the 5% that each look may use."""
    if not rule.reported:
        return (
            f"Each look may use 1/{rule.looks} of the 5%, so several looks do not raise the "
            "error rate."
        )
    return (
        "The looks were planned after a first report, which could use the whole 5%: later looks "
        "share another 0.5%."
    )


def margin_text(comparison: Comparison) -> str:
    """Return the margin with the unit of the deciding measure: "0.005 bits/dim"."""
    return f"{comparison.rule.equal_within:g} {comparison.question.metric.unit}".rstrip()


def sample_counts_sentence(comparison: Comparison) -> str:
    """Describe the number of samples and the reference data that they are compared with."""
    measured = next((run.measured for run in comparison.runs if run.measured), None)
    if measured is None:
        return ""
    return f"{measured.n} samples per set, compared with {measured.reference}."
