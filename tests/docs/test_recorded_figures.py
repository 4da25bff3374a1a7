"""Figures of the pages against the results and benchmarks that record them."""

import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
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


IDLE = "benchmarks/results/idle.json"


def idle_rows() -> list[str]:
    return [name for name in record(IDLE)["figures"] if not name.endswith("processes")]


@pytest.mark.parametrize("name", idle_rows())
def test_table_of_the_main_thread_is_the_recorded_benchmark(name):
    recorded = record(IDLE)
    figures, ratios = recorded["figures"][name], recorded["ratios"]
    parts = figures["milliseconds"]
    rest = parts["copies"] + parts["loss"] + parts["loop"]
    shown = [parts[part] for part in ("draws", "data", "EMA", "clipping", "logging")]
    cells = [f"{number:.2f}" for number in (*shown, rest, parts["AdamW"])]
    shares = ["", "", ""]
    if figures["expected step"] > 1:
        draws, others = ratios[f"{name}: draws"], ratios[f"{name}: all else"]
        assert draws <= 0.03 and others <= 0.05
        shares = [f"{figures['expected step']:.0f}", f"{draws:.1%}", f"{others:.1%}"]
    assert row(page("performance.md"), name) == cells + shares


def test_share_above_the_aim_is_named():
    recorded, name = record(IDLE), "CIFAR-10, 512, 1 GPU"
    figures, others = recorded["figures"][name], recorded["ratios"][f"{name}: all else"]
    step, launches = figures["expected step"], 0.005 * figures["operators"]["AdamW"]
    more = others + figures["a batch in one thread"] / step
    optimiser = (figures["milliseconds"]["AdamW"] + launches) / step
    text = " ".join(page("performance.md").split())
    assert f"{more:.1%} of the step in place of {others:.1%}, above the aim" in text
    assert f"AdamW is a further {optimiser:.1%}." in text


def test_draws_of_a_share_do_not_grow_with_processes():
    figures = record(IDLE)["figures"]
    growth = [row for name, row in figures.items() if name.endswith("processes")]
    times = [row["milliseconds"]["draws"] for row in growth]
    operators = [row["operators"]["draws"] for row in growth]
    assert len(growth) == 3 and len({*operators}) == 1
    words = "draws {:.2f}, {:.2f} and {:.2f} ms in {}, {} and {} operators"
    assert words.format(*times, *operators) in page("performance.md")


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


def by_seed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def mean_to(decimals: int) -> Callable[[Sequence[float]], str]:
    return lambda values: f"{statistics.mean(values):.{decimals}f}"


def mean_and_error(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


def span_to(decimals: int) -> Callable[[Sequence[float], Sequence[float]], str]:
    return lambda low, high: f"{min(low):.{decimals}f} to {max(high):.{decimals}f}"


def exponent(values: Sequence[float]) -> str:
    (value,) = values
    return re.sub(r"e([+-])0", r"e\1", f"{value:.1e}") if value else "0"


def signed_exponent(values: Sequence[float]) -> str:
    return exponent(values) if values[0] < 0 else f"+{exponent(values)}"


MODE, DISTANCE = "measures.mode_1.mean", "measures.sliced_wasserstein.mean"
FLOOR, FAR_FLOOR = "measured.floor.mode_1", "measured.floor.sliced_wasserstein"
ENDS = (".low", ".high")
# Page, start of the row, column, its form; record, setting and figures there.
CELLS = [
    ("langevin.md", "`langevin`", 1, by_seed, "langevin", "langevin", [MODE]),
    ("langevin.md", "`langevin`", 2, mean_to(2), "langevin", "langevin", [DISTANCE]),
    ("langevin.md", "`annealed_langevin`", 1, by_seed, "langevin", "annealed_langevin", [MODE]),
    ("langevin.md", "`annealed_langevin`", 2, mean_to(2), "langevin", "annealed_langevin",
     [DISTANCE]),
    ("langevin.md", "true points", 1, span_to(3), "langevin", "langevin",
     [FLOOR + end for end in ENDS]),
    ("langevin.md", "true points", 2, span_to(2), "langevin", "langevin",
     [FAR_FLOOR + end for end in ENDS]),
    ("vae.md", "1.987 ± 0.005", 0, mean_and_error, "vae", "vae", ["test.bpd.mean"]),
    ("vae.md", "1.987 ± 0.005", 1, mean_to(3), "vae", "vae", ["test.bpd_kl_1.mean"]),
    ("vae.md", "1.987 ± 0.005", 2, mean_to(3), "vae", "vae", ["test.bpd_reconstruction.mean"]),
    ("vae.md", "1.987 ± 0.005", 3, mean_to(3), "vae", "vae", ["train.bpd.mean"]),
    *[
        ("objectives.md", gamma, column, mean_to(3), "objectives_endpoints",
         f"{objective} / gamma_min={gamma}", ["val.bpd.mean"])
        for gamma in ("-9", "-8", "-7")
        for column, objective in enumerate(("levels", "v", "epsilon", "score", "x0"), 1)
    ],
    *[
        ("likelihood.md", setting, column, form, "likelihood", setting, [figure])
        for setting in ("1 | exact", "16 | exact", "16 | 4 probes", "16 | 16 probes",
                        "16 | 64 probes", "16 | exact, gamma_max = 8", "16 | exact, gamma_max = 16")
        for column, form, figure in (
            (2, signed_exponent, "error of the mean"),
            (3, exponent, "claimed"),
            (4, exponent, "error of an item"),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("name", "start", "column", "form", "file", "setting", "figures"), CELLS)
def test_cell_is_the_recorded_figure(name, start, column, form, file, setting, figures):
    line = next(line for line in page(name).splitlines() if line.startswith(f"| {start} |"))
    recorded = record(f"benchmarks/results/{file}.json")["settings"][setting]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[column] == form(*[recorded[figure] for figure in figures])


def test_words_on_endpoints_follow_from_their_table():
    settings = record("benchmarks/results/objectives_endpoints.json")["settings"]
    bound = {name: figures["val.bpd.mean"][0] for name, figures in settings.items()}
    text = page("objectives.md")
    for gamma in ("-9", "-8", "-7"):
        of_gamma = [mean for name, mean in bound.items() if name.endswith(f"gamma_min={gamma}")]
        assert row(text, gamma)[-1] == f"{statistics.mean(of_gamma):.3f}"
    levels, x0 = (
        {gamma: bound[f"{name} / gamma_min={gamma}"] for gamma in (-9, -8, -7)}
        for name in ("levels", "x0")
    )
    cost, far, near = levels[-7] - levels[-8], x0[-9] - levels[-9], x0[-7] - levels[-7]
    words = f"costs levels {cost:.3f}: the distance from levels to x0 is {far:.3f} at -9 and"
    assert f"{words} {near:.3f} at -7".replace(" 0.", " .") in text


def test_misses_and_forecasts_of_intervals_are_the_recorded_ones():
    recorded = record("benchmarks/results/intervals.json")["figures"]
    text = page("comparing.md")
    assert f"{recorded['draws']:,} draws" in " ".join(text.split())
    for shares in recorded["a miss"].values():
        assert " | ".join(f"{share:.1%}" for share in shares) in text
    wider = [100 * share for share, _, _ in recorded["wider, 10%, 90%"].values()]
    assert f"{min(wider):.0f}% to {max(wider):.0f}% of those" in text
    for _, low, high in recorded["wider, 10%, 90%"].values():
        assert f"| {low:.1f} to {high:.1f} |" in text


DENOISERS = {"with an exact denoiser": ("exact", "identity"), "of trained networks": ("trained",)}


@pytest.mark.parametrize("name", DENOISERS)
def test_second_set_of_seeds_has_no_opposite_verdict(name):
    """A claim that a label makes untestable has no verdict, whichever word its record has."""
    same, opposite = [], []
    for file in (ROOT / "docs" / "second_seeds").glob("*.json"):
        first, second = (
            record(f"docs/{set_of}/{file.name}") for set_of in ("results", "second_seeds")
        )
        words = {claim["name"]: claim["word"] for claim in first["claims"]}
        for claim in second["claims"]:
            if claim["kind"] in DENOISERS[name] and claim["word"] != "not testable here":
                both = {words[claim["name"]], claim["word"]}
                same.append(len(both) == 1)
                opposite.append(both in ({"reproduced", "contradicted"}, {"holds", "fails"}))
    section = page("papers.md").split("## A second set of seeds")[1]
    assert row(section, name) == [str(len(same)), str(sum(same)), str(sum(opposite))]
    assert not any(opposite)
