"""Cells, axes and pairs of a comparison, and the sentences about them."""

import json

import matplotlib.colors
import numpy as np

from triptych.cli import report as cli
from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.figures import forest
from triptych.study.footnotes import footnote
from triptych.study.panels import assign_colours
from triptych.study.study import read_study
from triptych.study.style import PAPER
from triptych.study.tables import table_rows
from triptych.study.verdict import describe_verdict

from .fake_runs import diverged, edit, make_run, make_runs, metrics, sweep, write_items


def one(root):
    (comparison,) = compare(read_runs(root))
    return comparison


def faces(figure):
    """Return the colours that fill the dots of the forest plot, from the top."""
    return [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "o"]


def runs_of(root, table, **extra):
    return one(make_runs(root, table, **extra))


# p = 0.04 is significant alone, but not after three comparisons.
HINTS = {
    "a": {1: 1.0, 2: 1.01, 3: 1.02},
    "b": {1: 1.1, 2: 1.16, 3: 1.22},
    "c": {1: 1.11, 2: 1.2, 3: 1.27},
}


def test_report_of_logs_without_options_writes_index(tmp_path, capsys):
    make_runs(tmp_path / "sweeps" / "a", {"x0": {1: 2.0, 2: 2.1}, "v": {1: 2.0, 2: 2.1}})
    for options, written in (([], "index.html"), (["--equal-within=0.5"], "report.html")):
        assert cli.main([str(tmp_path), *options]) == 0, capsys.readouterr().err
        assert [page.name for page in tmp_path.glob("*.html")] == [written]
        (tmp_path / written).unlink()
    assert cli.main([str(tmp_path), f"--figures={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "results.csv").exists() and not (tmp_path / "index.html").exists()


def test_different_data_and_units_are_never_compared(tmp_path):
    make_runs(tmp_path / "d", {"x0": {1: 2.02, 2: 2.04}})
    make_runs(tmp_path / "n", {"v": {1: 0.52, 2: 0.54}}, measure="nats_per_dim")
    make_runs(tmp_path / "c", {"x0": {1: 3.02, 2: 3.04}}, data="cifar10")
    comparisons = compare(read_runs(tmp_path))
    units = [("cifar10", "bits/dim"), ("digits", "bits/dim"), ("digits", "nats/dim")]
    assert [(c.data, c.unit) for c in comparisons] == units
    assert all(len(c.cells) == 1 and not c.claims for c in comparisons)


def test_difference_not_significant_after_holm_is_not_settled(tmp_path):
    comparison = runs_of(tmp_path, HINTS)
    assert comparison.pair_test(0, 1).pair.p < 0.05 and comparison.pair_test(0, 1).p > 0.05
    said = describe_verdict(comparison)
    assert "Not settled against b and c" in said.headline and "lear of" not in said.headline
    assert "3 differences are tested" in footnote(comparison)
    assert table_rows(comparison)[1].verdict == "not settled"
    drawn = forest(comparison, assign_colours({"a": "a", "b": "b", "c": "c"}))
    assert [matplotlib.colors.to_hex(face) for face in faces(drawn)] == [PAPER, PAPER]


def test_compare_pairs_common_seeds_only(tmp_path):
    table = {"a": {1: 1.5, 2: 1.55}, "b": {2: 1.4, 3: 3.0, 1: 1.36}, "c": {7: 9.0, 8: 9.5}}
    comparison = runs_of(tmp_path, table)
    assert [cell.label for cell in comparison.cells] == ["a", "b", "c"]
    assert (
        comparison.pair_test(0, 1).pair.n,
        comparison.pair_test(0, 2).pair.n,
        comparison.tests,
    ) == (
        2,
        0,
        1,
    )
    said = describe_verdict(comparison)
    # a has the lower mean, but b is better wherever both ran.
    assert "On common seeds alone, it is worse than b." in said.headline
    verdicts = [row.verdict for row in table_rows(comparison)]
    assert verdicts == ["lowest mean", "better", "not paired"]
    assert any("same seeds" in note for note in comparison.notes)


def test_cell_labels_show_two_axes_and_default(tmp_path):
    for objective in ("x0", "v"):
        for seed in (1, 2):
            for rate in ("", "1e-3"):
                told = [f"objective={objective}", f"seed={seed}"]
                told += [f"+optimizer.lr={rate}"] if rate else []
                make_run(tmp_path, objective, seed, 2.0 + seed / 100, overrides=told, choices={})
    labels = {cell.label for cell in one(tmp_path).cells}
    assert labels == {"x0 / default", "x0 / lr=1e-3", "v / default", "v / lr=1e-3"}


def test_report_notes_confounded_settings(tmp_path):
    make_runs(tmp_path, {"x0": {1: 2.02, 2: 2.04}}, choices={"schedule": "linear"})
    comparison = runs_of(tmp_path, {"v": {1: 2.13, 2: 2.17}}, choices={"schedule": "cosine"})
    assert [cell.label for cell in comparison.cells] == ["x0", "v"]
    assert "schedule (cosine and linear) changes together with objective" in " ".join(
        comparison.notes
    )


def test_same_setting_in_two_sweeps_is_labelled_by_sweep(tmp_path):
    make_runs(tmp_path / "before", {"x0": {1: 2.22, 2: 2.24, 3: 2.26}})
    make_runs(tmp_path / "after", {"x0": {1: 2.02, 2: 2.041, 3: 2.06}})
    (comparison,) = compare([*read_runs(tmp_path / "before"), *read_runs(tmp_path / "after")])
    assert [cell.label for cell in comparison.cells] == ["after", "before"]
    assert "Clear of before." in describe_verdict(comparison).headline


def test_repeated_run_counts_newest_only(tmp_path):
    """The newest run counts, by the time of its start, whatever its time zone."""
    for folder, mean, began in (
        ("a", 2.0, "2025-01-01T11:30:00+0100"),
        ("b", 2.3, "2025-01-01T12:00:00+0200"),
    ):
        edit(make_run(tmp_path / folder, "x0", 1, mean) / "provenance.json", started=began)
    (cell,), notes = one(tmp_path).cells, one(tmp_path).notes
    assert (cell.bound.n, cell.bound.mean) == (1, 2.0) and any("repeated" in note for note in notes)


def test_report_notes_uncontrolled_differences(tmp_path):
    make_run(tmp_path, "x0", 1, 2.0, steps=800, draws="blocks")
    make_run(tmp_path, "v", 1, 2.1, steps=400, weights="raw", draws="batch")
    notes = " ".join(one(tmp_path).notes)
    assert "random numbers (for pairs by seed set draws=batch): batch and blocks." in notes
    assert "training steps: 400 and 800" in notes and "weights: ema and raw" in notes
    assert read_study([tmp_path]).question == "Which objective gives the lowest test bound?"
    run = make_run(tmp_path, "score", 1, 2.2, test=metrics(2.2, n=300))
    edit(
        run / "provenance.json",
        git={"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
    )
    notes = " ".join(one(tmp_path).notes)
    assert "uncommitted changes" in notes
    assert runs_of(tmp_path / "alike", {"x0": {1: 2.0}, "v": {1: 2.0}}).notes == ()


def test_report_notes_model_trained_again_between_runs(tmp_path):
    """A path that names another model later: its samplers are not compared alone."""
    for sampler, weights in (("ddim", "aa"), ("heun", "aa"), ("dpm", "bb")):
        told = ["trained=/runs/a", f"sampler={sampler}"]
        run = make_run(tmp_path, sampler, 1, 2.0, overrides=told)
        edit(run / "provenance.json", source={"path": "/runs/a", "digest": weights})
        noted = "/runs/a was trained again" in " ".join(one(tmp_path).notes)
        assert noted == (sampler == "dpm")


def test_trained_models_per_seed_are_seeds_otherwise_settings(tmp_path):
    for seed in (1, 2):
        for model in ("a", "b"):
            told = [f"trained='/runs/{model}_{seed}'", f"seed={seed}"]
            make_run(tmp_path / model, "v", seed, 1.9 + seed, overrides=told)
    cell = one(tmp_path / "a").cells[0]
    assert one(tmp_path / "a").axes == () and set(cell.runs) == {1, 2}
    (axis,) = one(tmp_path).axes
    assert axis.key == "trained" and "/runs/a_1" in axis.values


def test_stages_that_differ_only_in_seed_are_one_setting(tmp_path):
    for where, other in (("own", 2), ("mixed", 1)):
        for setting in ("one", "two"):
            for seed, of in ((1, 1), (2, other)):
                stages = f"model.stages=[/runs/{setting},seed={of}]"
                told = [f"setting={setting}", stages, f"seed={seed}"]
                make_run(tmp_path / where, setting, seed, 1.9 + seed, overrides=told)
    (axis,) = one(tmp_path / "own").axes
    assert (
        axis.key == "setting" and [set(c.runs) for c in one(tmp_path / "own").cells] == [{1, 2}] * 2
    )
    (axis,) = one(tmp_path / "mixed").axes  # one model for both seeds
    assert axis.key == "setting"
    told = ["setting=one", "model.stages=[/elsewhere,seed=3]", "seed=3"]
    make_run(tmp_path / "own", "one", 3, 4.9, overrides=told)
    assert "model.stages" in {axis.key for axis in one(tmp_path / "own").axes}


def test_footnote_says_seeds_of_one_trained_model_share_training(tmp_path):
    for seed in (1, 2, 3):
        for sampler in ("heun", "euler"):
            for where, model in (("one", "/runs/a"), ("each", f"/runs/a_{seed}")):
                told = [f"trained='{model}'", f"sampler={sampler}", f"seed={seed}"]
                make_run(tmp_path / where, "v", seed, 1.9 + seed, overrides=told)
    assert one(tmp_path / "one").one_training and not one(tmp_path / "each").one_training
    assert "not the variation over trainings" in footnote(one(tmp_path / "one"))
    said = footnote(one(tmp_path / "each"))
    assert "not the variation over trainings" not in said and "initial weights" in said


def test_divergences_are_reported_in_table_banner_and_verdict(tmp_path):
    known = {seed: 2.0 + 0.01 * seed for seed in range(1, 6)}
    make_runs(tmp_path, {"v": known, "x0": {1: 2.5101, 2: 2.5202}})
    for objective, seeds in (("x0", (3, 4, 5)), ("score", (1, 2, 3, 4, 5))):
        for seed in seeds:
            diverged(tmp_path, objective, seed)
    story = read_study([tmp_path])
    [comparison], [said] = story.comparisons, story.verdicts
    cells = {cell.label: cell for cell in (*comparison.cells, *comparison.pending)}
    assert [len(cells[name].seeds_ended_as("diverged")) for name in ("v", "x0", "score")] == [
        0,
        3,
        5,
    ]
    lost = "score diverged with 5 of 5 seeds: no figures. x0 diverged with 3 of 5 seeds: only the"
    assert lost in said.headline
    assert "Clear of x0" in said.headline
    found = {row.label: row for row in table_rows(comparison)}
    assert found["x0"].seeds == "2 (3 diverged)" and found["score"].verdict == "diverged"
    assert story.complete and story.banner == "7 of 15 runs finished, 8 diverged"
    assert not story.answer.startswith("So far")


def test_report_answer_if_every_run_diverged(tmp_path):
    diverged(tmp_path, "v", 1)
    assert read_study([tmp_path]).answer == "1 of 1 run diverged; no run has reported a test bound."


def test_copied_results_under_other_seeds_count_once(tmp_path):
    """Three runs and their copies count as three; six would narrow intervals by 1 / sqrt(2)."""
    bounds = {1: 2.0, 2: 2.03, 3: 2.01}
    others = {seed: 2.1 + seed / 50 for seed in range(1, 7)}
    comparison = runs_of(
        tmp_path, {"x0": bounds | {s + 3: b for s, b in bounds.items()}, "v": others}
    )
    (cell,) = [cell for cell in comparison.cells if cell.label == "x0"]
    assert (
        set(cell.runs) == {1, 2, 3} and cell.bound.n == 3 and comparison.pair_test(0, 1).pair.n == 3
    )
    assert table_rows(comparison)[0].seeds == "3 (3 copied)"
    (note,) = [note for note in comparison.notes if "to the last digit" in note]
    assert "x0: seeds 1 and 4, 2 and 5, 3 and 6 have the same figures to the last digit" in note


def test_seeds_of_one_trained_model_are_not_copies(tmp_path):
    for seed in (1, 2, 3):
        drawn = {"measures": {"precision": {"mean": 0.5 + seed / 100, "n": 100}}}
        make_run(tmp_path, "v", seed, 2.0, overrides=["trained=/runs/a", f"seed={seed}"], **drawn)
    assert set(one(tmp_path).cells[0].runs) == {1, 2, 3}


def test_interval_without_zero_is_significant(tmp_path):
    """Intervals hold together, so Holm's later steps may find more than they do."""
    targets = {"levels": 1.846, "v": 1.852, "epsilon": 1.858, "score": 1.905, "x0": 1.90}
    comparison = one(sweep(tmp_path, targets, items=True))
    claims = [comparison.pair_test(i, j) for j in range(5) for i in range(j)]
    excluding = [claim for claim in claims if claim.interval[0] > 0 or claim.interval[1] < 0]
    assert excluding and all(claim.is_significant for claim in excluding)


def test_seeds_that_diverged_are_counted_once(tmp_path):
    make_runs(tmp_path / "a", {"x0": {1: 2.2, 2: 2.4, 3: 2.6}, "v": {1: 2.1, 2: 2.2, 3: 2.3}})
    diverged(tmp_path / "b", "x0", 4)
    diverged(tmp_path / "c", "x0", 4)
    diverged(tmp_path / "b", "v", 1)  # which has finished, too
    answer = read_study([tmp_path]).answer
    assert "x0 diverged with 1 of 4 seeds" in answer and "v diverged" not in answer


def test_pair_without_common_items_uses_seeds_only(tmp_path):
    """Rows of the seeds x items table must be of equal items, or the items' error is only noise."""
    rng = np.random.default_rng(0)
    for objective in ("x0", "v"):
        for seed in (1, 2, 3):
            total = 2.0 + rng.normal(size=9)
            bound = float(total.mean())
            run = make_run(tmp_path, objective, seed, bound, test=metrics(bound, n=9))
            write_items(run, total, np.arange(9) + 9 * seed)
    (found,) = compare(read_runs(tmp_path))
    assert found.pair_test(0, 1).pair.n_items == 0


def test_report_notes_runs_of_different_commits(tmp_path):
    for i, objective in enumerate(("x0", "v")):
        run = make_run(tmp_path, objective, 1, 2.0 + i)
        git = json.loads((run / "provenance.json").read_text())["git"]
        edit(run / "provenance.json", git=git | {"commit": str(i) * 40})
    assert "different commits of the code" in " ".join(one(tmp_path).notes)
