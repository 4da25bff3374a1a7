"""A report's content, read once: page, CSV and terminal are views of one `Study`."""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from triptych.run.parsing import first_line, natural_key
from triptych.run.read import Run
from triptych.run.sweep_record import SweepRecord
from triptych.study.claims import MAX_SEEDS, seeds_to_try
from triptych.study.comparison import Comparison
from triptych.study.curves import lines_by_label
from triptych.study.formatting import count_noun, duration
from triptych.study.groups import data_choice, describe_tuning, is_trial
from triptych.study.published import PaperVerdicts, judge_claims
from triptych.study.sweep_runs import SweepRuns, compare_sweeps, read_sweeps
from triptych.study.verdict import Verdict, best_untested, describe_verdict

RETRY, KEPT = "retry=true", "; finished runs are kept"
HINTS = {"interrupted": " (the same command resumes it)"}
STATUSES = ("finished", "pruned", "diverged", "running", "interrupted", "failed", "unreadable")


@dataclass(frozen=True)
class NextStep:
    """A command to type, and why."""

    reason: str
    command: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.command}"


@dataclass(frozen=True)
class Failure:
    """The runs that ended without a result for one cause, among `expected` runs."""

    runs: Sequence[Run]
    expected: int

    @property
    def status(self) -> str:
        """The status of these runs, such as "diverged"."""
        return self.runs[0].status

    @property
    def title(self) -> str:
        """The number of runs and where they ended: "15 of 30 runs failed in the build"."""
        count = f"{len(self.runs)} of {count_noun(self.expected, 'run')} {self.status}"
        stage = self.runs[0].stage
        return f"{count} in the {stage}" if stage else count

    def __str__(self) -> str:
        return f"{self.title}: {self.runs[0].cause}"


@dataclass(frozen=True)
class Study:
    """The runs of one directory or several, by sweep, and their comparisons."""

    roots: tuple[Path, ...]
    sweeps: tuple[SweepRuns, ...]
    comparisons: tuple[Comparison, ...]

    @cached_property
    def runs(self) -> list[Run]:
        """All runs of all sweeps."""
        return [*chain.from_iterable(sweep.runs for sweep in self.sweeps)]

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdict of each comparison."""
        return list(map(describe_verdict, self.comparisons))

    @property
    def record(self) -> SweepRecord:
        """The sweep's `sweep.json`; an empty record for a report over several directories."""
        return SweepRecord() if self.prefix else self.sweeps[0].record

    @property
    def title(self) -> str:
        """The sweep's title, or the names of the directories."""
        return self.record.title or " + ".join(root.resolve().name for root in self.roots)

    @property
    def prefix(self) -> str:
        """The prefix of a joint report's files, which must not replace a sweep's own; else ""."""
        return "joint_" if len(self.roots) > 1 else ""

    @property
    def command(self) -> str:
        """The command that started these runs; "" if it is not recorded or not readable."""
        if self.prefix:
            return ""
        command = self.record.command or next((run.command for run in self.runs if run.command), ())
        if not isinstance(command, str):
            return shlex.join(command)
        try:
            shlex.split(command)  # `next_step` splits it again
        except ValueError:
            return ""
        return command

    @property
    def expected(self) -> int:
        """The number of runs, including those still to come."""
        return len(self.runs) + sum([sweep.missing for sweep in self.sweeps])

    @property
    def tuned(self) -> str:
        """A description of the tuned keys and their chosen values; "" if nothing was tuned."""
        tunings = [sweep.record.tuning for sweep in self.sweeps if sweep.record.tuning.best]
        return " ".join(map(describe_tuning, tunings))

    @property
    def shared(self) -> str:
        """The overrides of the sweep's last command that all runs share."""
        varied = {axis.key for comparison in self.comparisons for axis in comparison.axes}
        typed = map(first_line, self.record.shared)
        return ", ".join(text for text in typed if text.lstrip("+").partition("=")[0] not in varied)

    @cached_property
    def published(self) -> PaperVerdicts | None:
        """Verdicts on a paper's claims, if the sweep is one of a paper."""
        return judge_claims(self.record, self.runs)

    @property
    def damage(self) -> str:
        """Why records of these sweeps cannot be read; "" if all can."""
        return "; ".join(filter(None, [sweep.damage for sweep in self.sweeps]))

    @property
    def question(self) -> str:
        """The question that the report answers."""
        varied = [comparison for comparison in self.comparisons if comparison.axes]
        if not varied:
            return "How good is this model, by its test bound?"
        first = varied[0]
        if first.of_drawing:
            return f"Which {first.subject} draws the best samples from one and the same model?"
        return f"Which {first.subject} gives the lowest test bound?"

    @property
    def counts(self) -> Counter[str]:
        """The number of runs with each status."""
        return Counter(run.status for run in self.runs)

    @property
    def complete(self) -> bool:
        """Whether as many runs as expected finished, diverged, or were stopped by a search."""
        counts = self.counts
        return counts["finished"] + counts["diverged"] + counts["pruned"] >= self.expected

    @property
    def banner(self) -> str:
        """The sweep's progress: "7 of 15 runs finished, 2 running"; "" when all have finished."""
        if self.damage:
            return f"{self.damage}: the number of planned runs is unknown, so nothing is settled"
        if self.complete and self.counts.keys() <= {"finished"}:
            return ""
        parts = [f"{self.counts['finished']} of {count_noun(self.expected, 'run')} finished"]
        for status in STATUSES[1:]:
            if self.counts[status]:
                parts.append(f"{self.counts[status]} {status}{HINTS.get(status, '')}")
        missing = self.expected - len(self.runs)
        if missing > 0:
            parts.append(f"{missing} not started")
        return ", ".join(parts)

    @cached_property
    def failures(self) -> list[Failure]:
        """Runs with an error by their status, stage and cause, the most frequent cause first."""
        runs_by_cause: dict[tuple[str, ...], list[Run]] = {}
        for run in self.runs:
            if run.error:
                runs_by_cause.setdefault((run.status, run.stage, run.cause), []).append(run)
        failures = [Failure(runs, self.expected) for runs in runs_by_cause.values()]
        return sorted(failures, key=lambda failure: -len(failure.runs))

    @property
    def sentences(self) -> list[str]:
        """The verdict's sentences if there is one comparison, else a headline for each of them."""
        answers = self._verdict_sentences()
        if self.verdicts and self.has_open_runs:
            answers[0] = f"So far: {answers[0]}"
        return answers

    def _verdict_sentences(self) -> list[str]:
        """Return `sentences` as if no run were still to come."""
        if self.verdicts:
            pairs = zip(self.comparisons, self.verdicts, strict=True)
            answers = [f"{comparison.heading}: {verdict.headline}" for comparison, verdict in pairs]
            if len(answers) == 1:  # the only comparison needs no heading
                answers = list(self.verdicts[0].sentences)
            return answers + self._data_without_bound()
        for status in ("diverged", "failed"):
            if self.counts[status]:
                return [
                    f"{self.counts[status]} of {count_noun(self.expected, 'run')} {status}; "
                    "no run has reported a test bound."
                ]
        return [best_untested(self.runs) or "No run has reported a test bound yet."]

    def _data_without_bound(self) -> list[str]:
        """Return a sentence for each data set on which no run has a test bound."""
        compared = chain.from_iterable(comparison.runs for comparison in self.comparisons)
        names = {*map(data_choice, self.runs)} - {*map(data_choice, compared), ""}
        return [f"No run on {name} has a test bound." for name in sorted(names)]

    @property
    def answer(self) -> str:
        """The verdict in a line."""
        return " ".join(self.sentences)

    @property
    def has_open_runs(self) -> bool:
        """Whether runs are under way, or still to come."""
        return self.expected > len(self.runs) or self.counts["running"] > 0

    @property
    def next_step(self) -> NextStep | None:
        """The next command: retry failed runs, or add seeds that may settle open pairs."""
        words = shlex.split(self.command)
        # Suggest only our own command: the record of an untrusted sweep may contain any other.
        if words[:1] != ["triptych-train"] or not {"-m", "--multirun"} & {*words}:
            return None
        if any(word.startswith("hparams_search=") for word in words):
            return None  # to continue a search, raise its number of trials
        words = [word for word in words if word not in (RETRY, "force=true")]
        failed = self.counts["failed"]
        if failed and not self.has_open_runs:
            kept = KEPT if self.counts["finished"] else ""
            reason = f"{count_noun(failed, 'run')} failed; mend the cause first{kept}"
            return NextStep(reason, shlex.join([*words, RETRY]))
        if self.published or self.tuned or not self.complete:
            return None  # published claims have fixed seeds, and tuned sweeps no later looks
        return self._more_seeds(words)

    def _more_seeds(self, words: Sequence[str]) -> NextStep | None:
        """Return the command that adds seeds for open pairs; None if none would settle them."""
        runs = [run for run in self.runs if run.seed is not None and not is_trial(run)]
        used = sorted({run.seed for run in runs if run.seed is not None})
        pairs = zip(self.comparisons, self.verdicts, strict=True)
        tried = [seeds_to_try(comparison) for comparison, verdict in pairs if not verdict.hopeless]
        missing = max(tried, default=0) - len(used)
        if not used or missing <= 0:
            return None
        per_seed = math.fsum(run.computing_seconds for run in runs) / len(used)
        price = f"about {duration(missing * per_seed)} of computing"
        command = [word for word in words if not word.startswith("seed=")]
        added = count_noun(missing, "more seed")
        if len(used) == 1:
            seeds = range(used[0], used[0] + 1 + missing)
            command.append(f"seed={','.join(map(str, seeds))}")
            return NextStep(f"{added} per setting, {price}{KEPT}", shlex.join(command))
        command = [word for word in command if not word.startswith(("until=", "max_seeds="))]
        command += [f"seed={','.join(map(str, used))}", "until=decided", f"max_seeds={MAX_SEEDS}"]
        return NextStep(f"Up to {added} per setting, up to {price}{KEPT}", shlex.join(command))

    @property
    def hues(self) -> dict[str, str]:
        """{cell's label: key of its colour}: the line of a grid that it lies on, or the label."""
        hues: dict[str, str] = {}
        for comparison in self.comparisons:
            labels = sorted([cell.label for cell in comparison.all_cells], key=natural_key)
            hues |= dict(zip(labels, labels, strict=True)) | lines_by_label(comparison)
        return hues


def read_study(roots: Sequence[Path], equal_within: float | None = None) -> Study:
    """Read the runs beneath `roots` and compare them.

    `equal_within`: the difference below which settings are called the same, in the unit of the
    deciding measure.
    """
    roots = tuple(map(Path, roots))
    sweeps = tuple(read_sweeps(roots))
    return Study(roots, sweeps, compare_sweeps(sweeps, equal_within))
