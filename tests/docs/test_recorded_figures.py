"""Figures of the pages against the results and benchmarks that record them."""

import json
import math
import re
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def record(path: str) -> dict:
    return json.loads((ROOT / path).read_text())


def row(text: str, start: str) -> list[str]:
    """Return the cells of a table's row, from the second on."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def measured(claim: str) -> dict[str, tuple[float, float]]:
    """Return {setting: (mean, standard error)} of a claim of ``guidance_scale``."""
    claims = {one["name"]: one for one in record("docs/results/guidance_scale.json")["claims"]}
    pairs = claims[claim]["all_measured"]
    return {name: tuple(map(float, text.split(" ± "))) for name, text in pairs}


@pytest.mark.parametrize("scale", ["1", "1.1", "2", "3"])
def test_guidance_table_is_the_recorded_result(scale):
    accuracy, distance = row(page("guidance.md"), scale)
    distances = measured("little") | measured("much")
    assert distance == "{:.1f} ± {:.1f}".format(*distances[scale])
    if accuracy:
        shown = [float(number) for number in accuracy.split(" ± ")]
        assert shown == pytest.approx(measured("classes")[scale], abs=5e-5)


@pytest.mark.parametrize(
    ("name", "recorded"),
    [
        ("`dpm_solver`", "triptych dpm_solver"),
        ("`ancestral`", "triptych ancestral"),
        ("`ddim`", "triptych ddim"),
    ],
)
def test_sampler_table_is_the_recorded_benchmark(name, recorded):
    text = page("samplers.md").split("## Beside another implementation")[1]
    figures = record("benchmarks/results/sampler_quality.json")["figures"]
    assert row(text, name) == [f"{distance:.3f}" for distance in figures[recorded]]
    assert row(text, "floor: two true sets")[0].startswith(f"{figures['floor']:.3f} ")


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("U-Net step, batch 64, to diffusers': 1M; 5M", [
            ("unet_step_1M_64", "step / diffusers's"), ("unet_step_5M_64", "step / diffusers's")]),
        ("with `compile=true`", [
            ("unet_step_1M_64", "compiled step / diffusers's"),
            ("unet_step_5M_64", "compiled step / diffusers's")]),
        ("to denoising-diffusion-pytorch's, of 3/4 the operations", [
            ("unet_step_1M_64", "step / denoising-diffusion-pytorch's"),
            ("unet_step_5M_64", "step / denoising-diffusion-pytorch's")]),
        ("to its own convolutions alone", [
            ("unet_step_1M_64", "step / convolutions's"),
            ("unet_step_5M_64", "step / convolutions's")]),
        ("lowest distance at 5, 10 calls to diffusers'", [
            ("sampler_quality", "distance at 5 calls / theirs"),
            ("sampler_quality", "distance at 10 calls / theirs")]),
        ("evaluations for a standard error to uniform times'", [
            ("estimator", "evaluations, controlled / uniform")]),
    ],
)  # fmt: skip
def test_performance_table_is_the_recorded_benchmark(name, results):
    shown = re.findall(r"\d+\.\d+", row(page("performance.md"), name)[0])
    ratios = [record(f"benchmarks/results/{file}.json")["ratios"][key] for file, key in results]
    assert shown == [f"{ratio:.2f}" for ratio in ratios]


def test_seconds_of_a_report_are_the_recorded_ones():
    runs = {count: seconds for count, seconds, _ in growth()["runs"]}
    assert f"A report of 1000 runs: {runs[1000]:.1f} s of CPU time." in page("performance.md")


def growth() -> dict:
    return record("benchmarks/results/growth.json")["figures"]


def test_cascade_ratios_follow_from_their_table():
    text = page("imagen.md").split("## Is the second stage worth it?")[1]

    def distance(name: str) -> float:
        return float(row(text, name)[0].split()[0])

    for name, words in (
        ("first stage, bilinear", "{:.1f} times nearer than low pictures enlarged bilinearly"),
        ("first stage, nearest", "{:.1f} times nearer than by nearest neighbour"),
    ):
        assert words.format(distance(name) / distance("cascade")) in text


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("## Measured at equal settings", "objectives"),
        ("**At equal parameters.**", "objectives_equal_parameters"),
        ("## Each at its best rate", "objectives_tuned"),
    ],
)
def test_objectives_table_is_the_recorded_comparison(section, name):
    text = page("objectives.md").split(section)[1]
    settings = record(f"benchmarks/results/{name}.json")["settings"]
    table_cells = run_path(str(ROOT / "docs/comparison.py"))["table_cells"]
    assert re.findall(r"^\| (\w+) \| \d", text, re.M)[: len(settings)] == list(settings)
    for setting, figures in settings.items():
        assert row(text, setting) == table_cells(figures)


def test_span_of_the_score_follows_from_the_endpoints():
    low, high = -7, 6  # gamma, as the page's section "Measured at equal settings" says
    spans = [math.sqrt(1 + math.exp(-gamma)) for gamma in (high, low)]  # 1 / sigma
    text = page("objectives.md")
    assert f"gamma from {low} to {high}" in text
    assert "`1 / sigma`, from {:.0f} to {:.0f} here".format(*spans) in text
