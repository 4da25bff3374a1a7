"""Measures of samples in the report: read, drawn by cell, ranked only where intervals allow."""

import csv
import json
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from triptych.config.metric import SAMPLE_METRICS
from triptych.run.read import read_runs
from triptych.study.cells import DecisionRule
from triptych.study.compare import compare
from triptych.study.details import as_json
from triptych.study.figures import forest, measure_figure
from triptych.study.footnotes import footnote
from triptych.study.panels import assign_colours, draw_panels
from triptych.study.render import write_figures, write_report
from triptych.study.study import read_study
from triptych.study.style import figure_style
from triptych.study.tables import difference_rows, table_rows
from triptych.study.verdict import describe_verdict, ranking

from .fake_runs import make_run
from .test_report_compare import one


def measured(values, key="evaluations"):
    """Return the keys of a summary with precision and a distance, measured at 5 and 10."""
    rows = [
        {"value": at, "measures": {"sliced_wasserstein": {"mean": v}, "precision": {"mean": 1 - v}}}
        for at, v in zip((5, 10), values, strict=True)
    ]
    floor = {"sliced_wasserstein": {"median": 0.02, "low": 0.01, "high": 0.03}}
    return {
        "measures_over": {"key": key, "rows": rows},
        "measured": {
            "n": 100,
            "repeats": 3,
            "reference": "100 new points of ring",
            "floor": floor,
        },
    }


@pytest.fixture
def comparison(tmp_path):
    for seed, noise in ((1, 0.0), (2, 0.01), (3, -0.02)):
        make_run(tmp_path, "x0", seed, 1.9 + noise, **measured((0.3 + noise, 0.1 + noise)))
        make_run(tmp_path, "v", seed, 1.9 - noise, **measured((0.5 + 2 * noise, 0.1 - noise)))
    return one(tmp_path)


def test_measure_panel_caption_describes_figure(comparison, tmp_path):
    lines = draw_panels(comparison, assign_colours({"x0": "x0", "v": "v"}))[-1].how
    assert "Points are means over seeds, and upright lines span the seeds. The grey band" in lines
    about = {"n": 8, "floor": {"precision": {"median": 0.97, "low": 0.96, "high": 0.99}}}
    for seed in (1, 2):
        measures = {"precision": {"mean": seed / 4}}
        make_run(tmp_path / "dots", "x0", seed, 1.9, measures=measures, measured=about)
    of_dots = one(tmp_path / "dots")
    dots = draw_panels(of_dots, assign_colours({"x0": "x0"}))[-1].how
    assert "Each dot is one seed. The grey band is the range of true data" in dots
    assert "arrow" not in dots
    ax = measure_figure(of_dots.measures["precision"])(of_dots, assign_colours({"x0": "x0"})).axes[
        0
    ]
    across = {marker: [[*line.get_xdata()] for line in ax.lines if line.get_marker() == marker]
              for marker in ("o", "None")}  # fmt: skip
    assert across == {"o": [[0.25], [0.5]], "None": [[0.97, 0.97], [0.375, 0.375]]}
    (floor,) = ax.patches
    assert floor.get_extents().transformed(ax.transData.inverted()).intervalx == pytest.approx(
        [0.96, 0.99]
    )


@pytest.mark.parametrize(
    ("values", "floor", "scale"),
    [
        ((0.09, 0.07), (0.086, 0.077, 0.136), "linear"),
        ((0.022, 0.062), None, "linear"),  # of 1, 2 and 5 a log axis would have one
        ((0.0045, -0.0004), (0.0013, 0.0005, 0.0068), "linear"),
        ((0.9, -0.0004), (0.0013, 0.0005, 0.0068), "linear"),
        ((2.8, 0.06), (0.07, 0.03, 0.14), "log"),
        ((0.5, 0.0), (0.0, 0.0, 0.0), "linear"),
        ((0.0, 0.0), (0.0, 0.0, 0.0), "linear"),
    ],
)
def test_measure_figure_axis_has_at_least_two_tick_labels(comparison, values, floor, scale):
    cells = {"x0": {1: values}}
    table = replace(comparison.measures["sliced_wasserstein"], cells=cells, floor=floor)
    with figure_style():
        ax = measure_figure(table)(comparison, {"x0": "C0"}).axes[0]
        low, high = ax.get_ylim()
        ticks = [one for one in ax.get_yticklabels() if low <= one.get_position()[1] <= high]
    assert ax.get_yscale() == scale and len([one for one in ticks if one.get_text()]) >= 2


def test_measures_table_is_sorted_best_first(tmp_path):
    own = {"title": "error of contrast", "unit": "of the range", "better": "lower"}
    about = {"n": 8, "metrics": {"contrast": own}}
    for objective, bound, error in (("x0", 1.9, 0.5), ("v", 2.0, 0.3)):
        for seed in (1, 2):
            told = {"measures": {"contrast": {"mean": error + seed / 100}}, "measured": about}
            make_run(tmp_path, objective, seed, bound, **told)
    report = write_report(tmp_path)
    table = report.html.read_text().partition("<h3>Measures of each setting</h3>")[2]
    assert table.index("0.315 ± 0.005") < table.index("0.515 ± 0.005")
    written = write_figures(report.study, tmp_path / "figures")
    (file,) = (one for one in written if one.name == "measures.csv")
    assert [line.split(",")[0] for line in file.read_text().splitlines()[1:]] == ["v", "x0"]


def test_ranking_states_direction_and_needs_interval(comparison):
    tables = comparison.measures
    said = ranking(comparison, tables["sliced_wasserstein"])
    assert "lower is better" in said and "at 5 x0 is clear of v" in said
    assert said.endswith("at 10 nothing is settled.")
    assert "higher is better): at 5 x0 is clear of v" in ranking(comparison, tables["precision"])
    neither = replace(tables["precision"], metric=SAMPLE_METRICS["mode_1"])
    assert ranking(comparison, neither) == ""


def draw_run(root, sampler, seed, **extra):
    """Make a run whose model all runs of this seed share."""
    told = [f"sampler={sampler}", f"seed={seed}"]
    choices = {"data": "ring", "sampler": sampler}
    return make_run(root, "levels", seed, 1.9 + seed, overrides=told, choices=choices, **extra)


@pytest.fixture
def drawn(tmp_path):
    """Three seeds of one model under two samplers: ddim is clearly best at 5, none is at 10."""
    for seed, noise in ((1, 0.0), (2, 0.01), (3, -0.02)):
        draw_run(tmp_path, "ddim", seed, **measured((0.3 + noise, 0.1 + noise)))
        draw_run(tmp_path, "heun", seed, **measured((0.5 + 2 * noise, 0.09 - noise)))
    return tmp_path


def test_settings_of_one_model_are_ranked_by_samples(drawn):
    found = one(drawn)
    assert found.question.metric.name == "sliced_wasserstein"
    assert [(row.label, row.verdict) for row in table_rows(found)] == [
        ("heun", "lowest mean"), ("ddim", "not settled")]  # fmt: skip
    story = read_study([drawn])
    assert story.question == "Which sampler draws the best samples from one and the same model?"
    said = "By sliced Wasserstein distance (lower is better): at 5 ddim is clear of heun; at 10 nothing is"
    assert story.answer.endswith(f"{said} settled.")
    shown = [row.entries["sliced_wasserstein@0"].text for row in table_rows(found)]
    assert shown == ["0.493 ± 0.018", "0.297 ± 0.009"]
    report = write_report(drawn)
    text = report.html.read_text()
    assert (
        "liced Wasserstein distance by evaluations" in text and "at 5 ddim is clear of heun" in text
    )
    assert "p (Holm)" in text and "Error by noise level" not in text
    assert "samples/precision@evaluations=5" in report.csv.read_text()


@pytest.mark.parametrize(
    "broken",
    [
        {"measures": 3},
        {"measures_over": {"rows": 1}},
        {"measures": {"x": {}}},
        {"measured": {"n": math.inf}},
    ],
)
def test_malformed_measures_are_ignored(tmp_path, broken):
    make_run(tmp_path, "x0", 1, 1.9, **broken)
    (run,) = read_runs(tmp_path)
    assert run.status == "finished" and run.measured is None


@pytest.mark.parametrize(
    "first, second, drawing",
    [
        (
            "setting=prior condition_from.embedding=DIR",
            "setting=text condition_from.embedding=text",
            True,
        ),
        (
            "setting=a guidance.scale=1 optimizer.lr=1",
            "setting=b guidance.scale=2 optimizer.lr=2",
            False,
        ),
        ("sampler=ddim denoiser=resnet", "sampler=ancestral denoiser=unet", False),
    ],
)
def test_settings_that_differ_in_sampling_are_ranked_by_samples(tmp_path, first, second, drawing):
    """In ablation=dalle2 a setting conditions the samples, and the bound is always the same."""
    for seed, noise in ((1, 0.0), (2, 0.01), (3, -0.02)):
        for line, values in (
            (first, (0.3 + noise, 0.1 + noise)),
            (second, (0.5 + 2 * noise, 0.4 - noise)),
        ):
            told = [*line.split(), f"seed={seed}"]
            choices = dict(o.split("=") for o in told if o.startswith(("sampler", "denoiser")))
            make_run(
                tmp_path,
                "levels",
                seed,
                1.9 + seed,
                overrides=told,
                choices=choices,
                **measured(values),
            )
    found, story = one(tmp_path), read_study([tmp_path])
    assert found.of_drawing == drawing
    if drawing:
        assert found.subject == "setting" and found.question.metric.name == "sliced_wasserstein"
        assert story.answer.endswith("prior is clear of text.") and not found.notes
    else:
        assert found.deciding is None and "lowest test bound" in story.question


def test_setting_with_nan_measure_is_not_ranked_best(tmp_path):
    """If one seed's samples have no figure, the setting has no mean and comes last."""
    for seed in (1, 2, 3):
        draw_run(tmp_path, "ddim", seed, **measured((0.5, 0.30 + seed / 100)))
        draw_run(
            tmp_path, "heun", seed, **measured((0.5 + seed / 100, 0.1 if seed != 2 else math.nan))
        )
    found = one(tmp_path)
    assert [(row.label, row.verdict) for row in table_rows(found)] == [
        ("ddim", "lowest mean"), ("heun", "not settled")]  # fmt: skip
    assert ranking(found, found.measures["sliced_wasserstein"]).count("heun is clear") == 0


def test_samples_measured_at_other_values_are_in_no_comparison(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path, "x0", seed, 1.9, **measured((0.3, 0.1)))
        make_run(tmp_path, "v", seed, 1.9, **measured((0.3, 0.1), key="sampler.eta"))
    found = one(tmp_path)
    assert [*found.measures["precision"].cells] == [found.cells[0].label]


@pytest.mark.parametrize(
    "key, other", [("_target_", "b.R"), ("title", "square"), ("unit", "m"), ("direction", "higher")]
)
def test_report_notes_different_sample_metrics_under_one_name(tmp_path, key, other):
    same = {"_target_": "a.R", "title": "radius", "unit": "", "direction": "lower"}
    for objective, is_it in (("x0", same), ("v", same | {key: other})):
        told = {"title": is_it["title"], "unit": is_it["unit"], "better": is_it["direction"]}
        about = {"n": 8, "metrics": {"r": told}}
        run = make_run(tmp_path, objective, 1, 1.9, measures={"r": {"mean": 0.5}}, measured=about)
        with (run / "config.yaml").open("a") as file:
            file.write(f"metrics: {{r: {{_target_: {is_it['_target_']}}}}}\n")
    note = "The runs define the metric r differently: do not compare it."
    assert note in one(tmp_path).notes


SAMPLERS = {
    "ancestral": {1: 0.40, 2: 0.42, 3: 0.37, 4: 0.41},
    "ddim": {1: 0.30, 2: 0.33, 3: 0.28, 4: 0.31},
    "heun": {1: 0.31, 2: 0.32, 3: 0.29, 4: 0.30},
}


def sampler_sweep(root, table=SAMPLERS, metric="sliced_wasserstein", **floor):
    """Make runs of one model a seed under several samplers, with one figure of samples each."""
    about = {"n": 100, "reference": "100 new points of ring"}
    if floor:
        about["floor"] = {metric: floor}
    for sampler, figures in table.items():
        for seed, figure in figures.items():
            own = {"measures": {metric: {"mean": figure}}, "measured": about}
            draw_run(root, sampler, seed, **own)
    return one(root)


def holm_by_hand(table):
    """Return {rival: (difference to the best, low, high, corrected p)} by scipy, from the table."""
    best = min(table, key=lambda name: np.mean([*table[name].values()]))
    pairs = [*combinations(table, 2)]
    p = {
        pair: stats.ttest_rel(*([*table[name].values()] for name in pair)).pvalue for pair in pairs
    }
    corrected, largest = {}, 0.0
    for rank, pair in enumerate(sorted(pairs, key=p.get)):
        largest = max(largest, min(1.0, (len(pairs) - rank) * p[pair]))
        corrected[pair] = largest
    found = {}
    for pair in pairs:
        if best not in pair:
            continue
        (rival,) = set(pair) - {best}
        d = np.subtract([*table[rival].values()], [*table[best].values()])
        half = stats.t.ppf(1 - 0.025 / len(pairs), len(d) - 1) * stats.sem(d)
        found[rival] = (d.mean(), d.mean() - half, d.mean() + half, corrected[pair])
    return found


def test_sampler_sweep_has_paired_differences_with_corrected_p(tmp_path):
    found, by_hand = sampler_sweep(tmp_path), holm_by_hand(SAMPLERS)
    best, *rows = table_rows(found)
    assert (best.label, best.verdict, best.entries["difference"].text) == (
        "ddim",
        "lowest mean",
        "best",
    )
    assert [(row.label, row.verdict) for row in rows] == [
        ("heun", "not settled"), ("ancestral", "worse")]  # fmt: skip
    for row in rows:
        difference, p = row.entries["difference"], row.entries["p"]
        shown = (difference.value, difference.low, difference.high, p.value)
        assert shown == pytest.approx(by_hand[row.label])
    report = write_report(tmp_path)
    html = report.html.read_text()
    assert "paired difference to best [95% together]" in html and "p (Holm)" in html
    assert "sliced Wasserstein distance more than ddim" in html and "Right of zero is worse" in html
    (section,) = json.loads(
        as_json(report.study, {run.dir: run.dir.name for run in report.study.runs})
    )["sections"]
    assert section["against"][2][0][2] == "better" and section["against"][0][2][2] == "worse"
    assert "ddim is clear of ancestral, not settled against heun" in report.study.answer
    written = {path.name: path for path in write_figures(report.study, tmp_path / "out")}
    assert "forest.svg" in written
    (row,) = (
        row
        for row in csv.DictReader(written["results.csv"].open())
        if row["sampler"] == "ancestral"
    )
    shown = [
        float(row[f"paired difference to best [95% together]{end}"])
        for end in ("", ", low", ", high")
    ]
    assert [*shown, float(row["p (Holm)"])] == pytest.approx(by_hand["ancestral"])


def test_sampler_sweep_by_metric_where_higher_is_better(tmp_path):
    table = {name: {seed: 1 - x for seed, x in row.items()} for name, row in SAMPLERS.items()}
    found = sampler_sweep(tmp_path, table, "precision")
    assert [(row.label, row.verdict) for row in table_rows(found)] == [
        ("ddim", "highest mean"), ("heun", "not settled"), ("ancestral", "worse")]  # fmt: skip
    with figure_style():
        drawn = forest(found, dict.fromkeys(table, "C0"))
    assert drawn.axes[0].get_xlabel() == "precision more than ddim"
    assert [*drawn.sentences][-1] == "Left of zero is worse."


def test_sampler_sweep_of_one_seed_claims_nothing(tmp_path):
    found = sampler_sweep(tmp_path, {name: {1: row[1]} for name, row in SAMPLERS.items()})
    assert [row.verdict for row in table_rows(found)] == ["lowest mean", "", ""]
    assert [row.entries["p"].text for row in table_rows(found)][1:] == ["–", "–"]
    assert [row.entries["difference"].text for row in table_rows(found)][1:] == ["+0.010", "+0.100"]
    assert "nothing is settled" in describe_verdict(found).headline


def test_sampler_sweep_at_floor_of_true_data_says_so(tmp_path):
    found = sampler_sweep(tmp_path, median=0.2, low=0.1, high=0.35)
    assert [row.verdict for row in table_rows(found)] == [
        "lowest mean", "as near as true data", "worse"]  # fmt: skip


def test_range_of_true_data_is_the_mean_over_seeds(tmp_path):
    """One seed's range holds pure noise and says nothing of the other seeds' samples."""
    for sampler in ("ddim", "heun"):
        for seed, high in ((1, 0.36), (2, 0.24), (3, 0.18)):
            reference = {"median": high / 2, "low": high / 4, "high": high}
            measures = {"sliced_wasserstein": {"mean": 0.15 + seed / 100}}
            about = {"n": 100, "reference": "100 new points"}
            about |= {"floor": {"sliced_wasserstein": reference}}
            about |= {"noise": {"sliced_wasserstein": high - 0.05}}
            draw_run(tmp_path, sampler, seed, measures=measures, measured=about)
    table = one(tmp_path).measures["sliced_wasserstein"]
    assert table.floor == pytest.approx((0.13, 0.065, 0.26))
    assert table.noise == pytest.approx(0.21)


def test_samples_that_were_measured_elsewhere_are_noted(tmp_path):
    for seed in (1, 2):
        draw_run(tmp_path, "ddim", seed, **measured((0.3, 0.2)))
        draw_run(tmp_path, "heun", seed, **measured((0.3, 0.2), key="sampler.steps"))
    (note,) = [note for note in one(tmp_path).notes if "measured at" in note]
    assert "only runs that agree with the first are compared" in note
    assert [*one(tmp_path).measures["sliced_wasserstein"].cells] == ["ddim"]


def test_sampler_sweep_by_calls_has_a_difference_at_each_value(drawn):
    found = one(drawn)
    columns, rows = difference_rows(found)
    headings = [column.heading for column in columns]
    assert headings[0] == "paired difference to best at 5 [95% together]" and len(headings) == 4
    entries = {row.label: row.entries for row in rows}
    assert entries["ddim"]["difference@0"].text == "best" == entries["heun"]["difference@1"].text
    claim = found.metric_test("sliced_wasserstein", 0, "ddim", "heun")
    shown = entries["heun"]["difference@0"]
    assert (shown.value, shown.low, shown.high) == (claim.pair.mean, *claim.interval)
    assert shown.low > 0 and entries["heun"]["p@0"].value == claim.p < 0.05
    html = write_report(drawn).html.read_text()
    assert "Differences by evaluations" in html and "more than heun at 10" in html


def test_sampler_setting_without_measure_keeps_its_row(tmp_path):
    sampler_sweep(tmp_path)
    for seed in (1, 2):
        draw_run(tmp_path, "langevin", seed)
    found = one(tmp_path)
    assert [row.label for row in table_rows(found)] == ["ddim", "heun", "ancestral", "langevin"]
    assert table_rows(found)[-1].verdict == "not measured"
    assert write_report(tmp_path).html.exists()


def test_sampler_settings_the_same_within_margin_are_so_in_row_and_headline(tmp_path):
    sampler_sweep(tmp_path)
    (found,) = compare(read_runs(tmp_path), DecisionRule(equal_within=0.05))
    assert table_rows(found)[1].verdict == "same within 0.05"
    answer = describe_verdict(found).headline
    assert "ddim is clear of ancestral, the same as heun within 0.05" in answer
    assert "within 0.05. “Not settled”" in footnote(found)
