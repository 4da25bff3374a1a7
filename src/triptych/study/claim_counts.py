"""Count verdicts on claims, by section, for a report and for the page of results."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from triptych.study.formatting import count_noun, join_names
from triptych.study.papers.labels import CONTROL, COULD_FAIL, NEARLY_FORCED

Outcome = Literal["as claimed", "against", "neither"]
AGAIN = "to run again"  # label of a claim whose text or metric changed after its runs
UNTESTABLE = "not testable here"
# The words that are counted, in their order; "" in a section that counts claims without words.
WORDS = ("reproduced", "contradicted", "cannot tell", "as claimed", "against", "neither", "")
# {section: (a noun for its claims, the sentence that counts them)}
SENTENCES = {
    COULD_FAIL: ("claim", "Of {claims} that could fail: {words}."),
    NEARLY_FORCED: ("nearly forced claim", "Of {claims}: {words}."),
    CONTROL: ("control", "Of {claims} of this project: {words}."),
    UNTESTABLE: ("claim", "Not testable here: {n}; by their figures {words}."),
    AGAIN: ("claim", "To run again: {n}."),
}
SECTIONS = tuple(SENTENCES)


class Verdict(NamedTuple):
    """A claim's category (``counts_as``), its verdict as a word, and the outcome of its figures."""

    counts_as: str
    word: str
    outcome: str

    @property
    def section(self) -> str:
        """The section in which the claim is counted: `AGAIN`, `UNTESTABLE` or its category.

        A nearly forced claim is counted in its category even if it is not testable here.
        """
        if self.word == AGAIN:
            return AGAIN
        if self.word == UNTESTABLE and self.counts_as != NEARLY_FORCED:
            return UNTESTABLE
        return self.counts_as

    @property
    def counted_word(self) -> str:
        """The word by which the claim is counted in its section; "" for a claim to run again."""
        if self.section == AGAIN:
            return ""
        if self.section == CONTROL or self.word == UNTESTABLE:
            return self.outcome
        return self.word


def tally(verdicts: Sequence[Verdict], section: str) -> str:
    """Return the counts of a section's words: "2 reproduced and 1 cannot tell"."""
    counts = Counter(verdict.counted_word for verdict in verdicts if verdict.section == section)
    words = [word for word in WORDS if word in counts]
    return join_names([f"{counts[word]} {word}".strip() for word in words])


def count_sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a sentence for each section that has claims."""
    sizes = Counter(verdict.section for verdict in verdicts)
    sentences = []
    for section, (noun, sentence) in SENTENCES.items():
        n = sizes[section]
        if n:
            words = tally(verdicts, section)
            sentences.append(sentence.format(n=n, claims=count_noun(n, noun), words=words))
    return sentences
