"""The data of the page's script: figures as computed, and a run's own files alone."""

import base64
import json
import math
import re

import numpy as np
import pytest

from triptych.study import details
from triptych.study.curves import find_crossing
from triptych.study.panels import sample_pictures
from triptych.study.render import write_report
from triptych.study.study import read_study
from triptych.study.tables import difference_entries

from .fake_runs import edit, failed, make_run, picture, running, sweep


def told(*roots):
    story = read_study(roots)
    return story, details.details(story, {run.dir: run.dir.name for run in story.runs})


@pytest.fixture(scope="module")
def objectives(tmp_path_factory):
    return told(sweep(tmp_path_factory.mktemp("details") / "objectives"))


def test_details_compare_each_setting_with_every_other(objectives):
    """Seen from the other side, a difference has the other sign and p is the same."""
    story, found = objectives
    (comparison,), (section,) = story.comparisons, found["sections"]
    rows = section["against"]
    assert [cell["label"] for cell in section["cells"]] == [cell.label for cell in comparison.cells]
    for i in range(5):
        for j in range(5):
            difference, p, verdict = rows[i][j]
            if i == j:
                assert p == "" and verdict == ("" if i else "lowest mean")
                continue
            mean = comparison.cells[j].bound.mean - comparison.cells[i].bound.mean
            assert float(difference.split()[0].replace("−", "-")) == pytest.approx(mean, abs=5.1e-4)
            assert p == rows[j][i][1] and verdict == ("worse" if mean > 0 else "better")
    assert found["keys"] == ["objective", "seed", "objective.name"]
    assert (
        difference_entries(comparison, 0, 1)[1] == "worse"
        and difference_entries(comparison, 1, 0)[1] == "better"
    )


def test_details_json_escapes_script_end_and_nan(tmp_path):
    text = "</script><!--<script>&\u2028"
    make_run(tmp_path, "x0", 1, math.nan, name=text, choices={"objective": text})
    story = read_study([tmp_path])
    found = details.as_json(story, {run.dir: text for run in story.runs})
    assert not set("<>&\u2028") & set(found)
    assert json.loads(found)["runs"][0]["name"] == text


def test_details_curves_are_thinned_recorded_points(objectives):
    story, found = objectives
    for run, told_ in zip(story.runs, found["runs"], strict=True):
        curves = {curve["name"]: curve for curve in told_["curves"]}
        assert list(curves)[:2] == ["val/bpd", "train/loss"]
        for name in ("val/bpd", "train/loss"):
            steps, values = run.history(name)
            curve = curves[name]
            assert curve["x"][0] == steps[0] and curve["x"][-1] == steps[-1]
            known = dict(zip(steps, values, strict=True))
            assert curve["y"] == pytest.approx([known[x] for x in curve["x"]], rel=1e-4)
            assert len(curve["x"]) >= len(steps) // curve["every"]
    thin = details._thin_curve(range(1000), range(1000), 24)
    assert thin["every"] == 42 and thin["x"][-1] == 999 and len(thin["x"]) <= 25


def test_details_numbers_may_be_rounded_again():
    """The page shows four digits, or two of very small ones, of the five that it carries."""
    rng = np.random.default_rng(1)
    recorded = [2.010504, 2.010496, 2.0105, -0.0370049, 0.5, 0.0, *rng.lognormal(0, 5, 20_000)]
    for value in map(float, recorded):
        carried = details._round_to_five_digits(value)
        assert f"{carried:.4g}" == f"{value:.4g}" and f"{carried:.1e}" == f"{value:.1e}"
        assert carried == pytest.approx(value, rel=1e-4) and len(f"{carried:.15g}") <= 12


def test_a_constant_is_no_curve_and_the_bound_comes_first(tmp_path):
    """A bound and its parts have the bound's unit."""
    run = make_run(tmp_path, "x0", 1, 2.0)
    head = [
        f"train/{name}"
        for name in ("loss", "loss_variance", "lr", "images_per_second", "grad_norm")
    ]
    head += "val/bound_stderr val/bpd val/bpd_prior val/bpd_diffusion val/mine train/norm".split()
    rows = [["step", "val/bpd_reconstruction", *head], *([k, 0.11, *[k] * 11] for k in range(9))]
    (run / "metrics.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    [found] = told(tmp_path)[1]["runs"]
    units = {curve["name"]: curve["unit"] for curve in found["curves"]}
    assert [*units] == ["val/bpd", *(name for name in head if name != "val/bpd")]
    assert {units["val/bpd"], units["val/bpd_diffusion"]} == {"bits/dim"}


def test_refused_run_adds_no_differing_key_and_no_axis_value(tmp_path):
    """The last rate of a grid was refused before its configuration was known."""
    for objective in ("x0", "v"):
        for rate in ("0.001", "0.002", "1000"):
            typed = [f"objective={objective}", f"optimizer.lr={rate}", "seed=1"]
            if rate == "1000":
                run = failed(tmp_path, objective, 1, "refused")
                (run / "config.yaml").unlink()
                edit(run / "summary.json", overrides=typed)
                continue
            run = make_run(tmp_path, objective, 1, 2.0 + float(rate), overrides=typed)
            config = {f"k{i}": {"a": i} for i in range(99)} | {"optimizer": {"lr": rate}}
            (run / "config.yaml").write_text(json.dumps(config))
    story, found = told(tmp_path)
    keys = found["keys"]
    assert not [key for key in keys if key.startswith("k")] and "optimizer.lr" in keys
    assert find_crossing(story.comparisons[0]).along.values == ("0.001", "0.002")


def test_report_shows_only_png_files_within_run(tmp_path):
    picture(tmp_path / "elsewhere.png", 1)
    kinds = (
        lambda file: file.symlink_to(tmp_path / "elsewhere.png"),
        lambda file: file.write_text("<svg onload=alert(1)>"),
        lambda file: picture(file, 2),
    )
    for place, make in enumerate(kinds):
        run = make_run(tmp_path / "a", f"m{place}", 1, 2.0)
        make(run / "samples" / "final.png")
        (run / "samples" / "real.png").symlink_to(run / "samples" / "final.png")
    page = write_report(tmp_path / "a").html.read_text()
    shown = re.findall('<img src="data:image/png;base64,[^"]+" alt="Samples, ([^"]+)"', page)
    assert shown == ["m2, seed 1", "real images of the test set"] and page.count("<img") == 2
    assert base64.b64encode((tmp_path / "elsewhere.png").read_bytes()).decode() not in page
    (comparison,) = read_study([tmp_path / "a"]).comparisons
    own = run / "samples" / "final.png"
    own.unlink()
    own.symlink_to(
        tmp_path / "elsewhere.png"
    )  # after the run was read, which refuses such a directory
    assert sample_pictures(comparison) == []


def test_report_shows_trajectory_and_prompts_for_each_setting(tmp_path):
    sweep(tmp_path, {"x0": 2.0, "v": 2.1}, seeds=(1, 2))
    for run in filter(lambda path: path.is_dir(), list(tmp_path.iterdir())):
        picture(run / "samples" / "trajectory.png", 5)
        picture(run / "samples" / "prompts.png", 6)
    page = write_report(tmp_path).html.read_text()
    assert page.count('alt="From noise to sample, ') == page.count('alt="By caption, ') == 2


@pytest.mark.parametrize(("measure", "style"), [("bpd", ""), ("nats_per_dim", " plotted")])
def test_sample_pictures_marks_plots_of_points(tmp_path, measure, style):
    run = make_run(tmp_path, "v", 1, 2.0, measure=measure)
    picture(run / "samples" / "final.png", 1)
    (comparison,) = read_study([tmp_path]).comparisons
    assert [gallery.style for gallery in sample_pictures(comparison)] == [style]


def test_details_include_failed_and_running_runs(tmp_path):
    sweep(tmp_path, {"x0": 2.0})
    running(tmp_path, "v", 1)
    failed(tmp_path, "score", 1, "boom")
    _, found = told(tmp_path)
    by_status = {run["status"]: run for run in found["runs"]}
    assert by_status["failed"]["error"] == "boom" and by_status["running"]["bound"] == ""
    assert by_status["running"]["facts"][0] == ("stage", "fit, step 120 of 800")
    pending = [cell for cell in found["sections"][0]["cells"] if cell["label"] in ("v", "score")]
    assert len(pending) == 2 and len(found["sections"][0]["against"]) == 0


def test_every_headline_dot_links_to_a_run(objectives):
    story, found = objectives
    marks = [run["mark"] for run in found["runs"]]
    assert len(set(marks)) == 15
    page = write_report(story.roots[0]).html.read_text()
    headline = page[page.index('class="plots headline"') : page.index("</svg>")]
    assert sorted(mark for mark in marks if f'data-run="{mark}"' in headline) == sorted(marks)


def test_rerun_command_omits_name_of_finished_run(tmp_path):
    """With its own name the finished run would be found, and nothing would run."""
    directory = make_run(tmp_path, "v", 1, 2.0)
    for typed, command in (
        (["name=first", "objective=v", "seed=1"], "triptych-train objective=v seed=1"),
        (["ablation=x", "name=first", "seed=1"], "triptych-train -m name=again ablation=x seed=1"),
    ):
        edit(directory / "provenance.json", overrides=typed)
        (run,) = told(tmp_path)[1]["runs"]
        assert run["again"] == command
