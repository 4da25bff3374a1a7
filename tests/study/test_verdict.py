"""The answer in plain words: no more than the corrected test supports, and what would settle it."""

import html
import json
import math
import shutil

import numpy as np
import pytest
import torch

from triptych.cli.resume import print_result
from triptych.diffusion.loss import P2, Elbo, Level, MinSNR, Squared
from triptych.diffusion.process import VariancePreserving
from triptych.diffusion.schedule import Linear
from triptych.run.directory import RunDirectory
from triptych.run.parsing import Curve
from triptych.study.render import print_table, write_report
from triptych.study.study import read_study
from triptych.study.tables import table_rows
from triptych.study.verdict import describe_verdict, names_with_size
from triptych.study.weighting import neglects_bound

from .fake_runs import edit, failed, make_run, make_runs, metrics
from .test_report_compare import HINTS, one, runs_of

CLEAR = {
    "a": {1: 1.0, 2: 1.1, 3: 1.05},
    "b": {1: 1.1, 2: 1.0, 3: 1.06},
    "c": {1: 2.0, 2: 2.1, 3: 2.06},
}
COMMAND = ["triptych-train", "-m", "ablation=objectives"]


def recorded(root, **facts):
    (root / "sweep.json").write_text(json.dumps({"command": COMMAND} | facts))
    return read_study([root])


def test_verdict_states_lowest_clear_and_not_settled(tmp_path):
    """With three seeds, c is 1 above a in each, and b is above and below."""
    said = describe_verdict(runs_of(tmp_path, CLEAR))
    assert said.sentences[:2] == ("a is lowest: 1.050 ± 0.029 bits/dim.", "Clear of c.")
    assert "Not settled against b: expected interval ± " in said.headline


def test_settings_with_equal_figures_are_equal_and_not_open(tmp_path):
    """As two samplers in a table of bounds: no seed could ever tell them apart."""
    row = {1: 2.0, 2: 2.1, 3: 2.2}
    found = runs_of(tmp_path, {"a": row, "b": row, "c": {1: 3.0, 2: 3.11, 3: 3.2}})
    said = describe_verdict(found).headline
    assert "Equal to b in every digit." in said and "Clear of c." in said
    assert "Not settled" not in said
    assert [row.verdict for row in table_rows(found)] == ["lowest mean", "identical", "worse"]
    assert recorded(tmp_path).next_step is None


def test_verdict_of_one_seed_recommends_more_seeds(tmp_path):
    runs_of(tmp_path, {"x0": {1: 1.9}, "v": {1: 2.0}})
    story = recorded(tmp_path)
    assert story.answer == "x0 is lowest: 1.900 bits/dim. One seed: nothing is settled."
    again = "triptych-train -m ablation=objectives seed=1,2,3"
    step = (
        f"2 more seeds per setting, about 2 min 57 s of computing; finished runs are kept: {again}"
    )
    assert str(story.next_step) == step
    assert again in write_report(tmp_path).html.read_text()
    # A single run has the error over its items, and is named.
    (run,) = tmp_path.glob("*x0*")
    story = read_study([run])
    assert story.answer.startswith("x0: 1.900 ± 0.018 bits/dim (297 items), 1 seed.")
    assert f'"name":"{run.name}"' in write_report(run).html.read_text()


def test_verdict_names_failed_setting_and_retry_command(tmp_path):
    runs_of(tmp_path, {"a": {1: 1.0, 2: 1.1}, "b": {1: 2.0, 2: 2.1}})
    for seed in (1, 2):
        failed(tmp_path, "c", seed, "ValueError: no")
    story = recorded(tmp_path, expected=6)
    assert "c failed with 2 of 2 seeds" in story.answer
    retry = "triptych-train -m ablation=objectives retry=true"
    assert (
        str(story.next_step)
        == f"2 runs failed; mend the cause first; finished runs are kept: {retry}"
    )


def test_next_step_keeps_nothing_if_all_runs_failed(tmp_path):
    for seed in (1, 2):
        failed(tmp_path, "c", seed, "ValueError: no")
    retry = "triptych-train -m ablation=objectives retry=true"
    assert (
        str(recorded(tmp_path, expected=2).next_step)
        == f"2 runs failed; mend the cause first: {retry}"
    )


def test_settings_of_unusual_size_are_named_with_it(tmp_path):
    """Two have the usual size: others say by how much theirs differs, rounded to a percent."""
    sizes = {"levels": 110_000, "v": 100_000, "x0": 100_000, "score": 87_000, "exact": 0}
    for place, (objective, parameters) in enumerate(sizes.items()):
        for seed in (1, 2, 3):
            bound = 1.0 + 0.3 * place + seed / 100 + place * seed / 1000
            make_run(tmp_path, objective, seed, bound, parameters=parameters)
    said = recorded(tmp_path).answer
    assert said.startswith("levels (10% more parameters) is lowest: 1.020 ± 0.006 bits/dim.")
    others = "v, x0, score (13% fewer parameters) and exact (nothing was trained)"
    assert f"Clear of {others}." in said
    page = html.unescape(write_report(tmp_path).html.read_text())
    assert "levels (10% more parameters) is lowest" in page and "Parameters:" not in page


def test_of_several_frequent_sizes_the_smallest_is_usual(tmp_path):
    for objective, parameters in (("levels", 110_087), ("v", 104_455), ("x0", 104_460)):
        make_run(tmp_path, objective, 1, 2.0, parameters=parameters)
    cells = one(tmp_path).cells
    assert names_with_size(cells)["levels"] == "levels (5% more parameters)"
    assert names_with_size(cells)["x0"] == "x0", "a twentieth of a percent"


def test_next_step_replaces_typed_seeds(tmp_path):
    comparison = runs_of(tmp_path, HINTS | {"c": {1: 1.11, 2: 1.2, 3: 1.36}})
    story = recorded(tmp_path, command=[*COMMAND, "seed=1,2,3"])
    widths = []
    for place in (1, 2):
        test = comparison.pair_test(0, place)
        widths += [test.pair.expected_half_width(seeds, test.level) for seeds in (6, 12)]
    twice_b, four_b, twice_c, four_c = (f"{width:.3f}" for width in widths)
    expected = (
        f"for b ± {twice_b} with 6 seeds, ± {four_b} with 12; "
        f"for c ± {twice_c} with 6 seeds, ± {four_c} with 12."
    )
    assert f"Not settled against b and c: expected interval {expected}" in story.answer
    assert "lear of" not in story.answer
    step = "seed=1,2,3 until=decided max_seeds=12"
    assert str(story.next_step).endswith(f"ablation=objectives {step}")
    # Nine more seeds of three settings, 44.3 s each.
    assert str(story.next_step).startswith(
        "Up to 9 more seeds per setting, up to about 19 min 56 s"
    )


def test_no_seeds_are_advised_beyond_those_that_somebody_would_train(tmp_path):
    table = {"a": {1: 2.0, 2: 2.1, 3: 2.2}, "b": {1: 2.01, 2: 2.0, 3: 2.3}}
    runs_of(tmp_path, table)
    story = recorded(tmp_path)
    assert "Not settled against b: expected interval" in story.answer
    assert story.next_step is None


def test_no_seeds_are_advised_for_samples_at_floor_of_true_data(tmp_path):
    for high, advised in ((0.05, True), (0.2, False)):
        root = tmp_path / str(high)
        floor = {"sliced_wasserstein": {"median": 0.04, "low": 0.03, "high": high}}
        for sampler, worse in (("ddim", 0.0), ("heun", 0.03)):
            for seed in (1, 2, 3):
                figures = measured({"sliced_wasserstein": 0.1 + worse * seed / 2}, floor=floor)
                own = {"overrides": [f"sampler={sampler}", f"seed={seed}"]}
                own["choices"] = {"sampler": sampler}
                make_run(root, "v", seed, 2.0 + seed / 100, **figures, **own)
        story = recorded(root)
        assert "nothing is settled" in story.answer
        assert (story.next_step is not None) is advised
        assert ("raise measures.n rather than the number of seeds" in story.answer) is not advised


def test_verdict_says_which_settings_more_seeds_can_settle_beside_those_at_floor(tmp_path):
    """Heun lies at the floor as DDIM does; the ancestral sampler is open and beyond it."""
    floor = {"sliced_wasserstein": {"median": 0.04, "low": 0.03, "high": 0.2}}
    for sampler, worse in (("ddim", 0.0), ("heun", 0.015), ("ancestral", 0.1)):
        for seed in (1, 2, 3):
            figures = measured({"sliced_wasserstein": 0.1 + worse * seed}, floor=floor)
            own = {"overrides": [f"sampler={sampler}", f"seed={seed}"]}
            own["choices"] = {"sampler": sampler}
            make_run(tmp_path, "v", seed, 2.0 + seed / 100, **figures, **own)
    story = recorded(tmp_path)
    assert "ddim and heun are as near as true data: raise measures.n" in story.answer
    assert "number of seeds; more seeds can settle only ancestral." in story.answer
    assert story.next_step is not None


def test_verdict_of_many_open_settings_counts_them(tmp_path):
    table = {
        f"s{k}": {s: 2 + s / 50 + k / 900 + (s - 2) * k**2 / 6000 for s in (1, 2, 3)}
        for k in range(7)
    }
    said = describe_verdict(runs_of(tmp_path, table)).headline
    assert "Not settled against 6 settings." in said


def test_next_step_is_empty_if_settled_planned_or_unfinished(tmp_path):
    table = {"a": {1: 1.0, 2: 1.1, 3: 1.05}, "c": {1: 2.0, 2: 2.1, 3: 2.06}}
    runs_of(tmp_path, table)
    assert recorded(tmp_path).next_step is None
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    runs_of(tmp_path, {"a": table["a"], "b": {1: 1.1, 2: 1.13, 3: 1.15}})
    assert str(recorded(tmp_path).next_step).endswith(" seed=1,2,3 until=decided max_seeds=12")
    assert recorded(tmp_path, until={"looks": 3}).next_step is None
    waiting = recorded(tmp_path, expected=8)
    assert waiting.next_step is None
    assert "Runs are still to come: nothing is settled before they end." in waiting.answer


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (
            {"elbo": 8.5, "flat": 13.0},
            "No setting is better than the per-pixel histogram (7.100 bits/dim): none has learned the data yet.",
        ),
        (
            {"elbo": 7.5, "flat": 9.0},
            "No setting is better than the per-pixel histogram (7.100 bits/dim): none has learned the data yet.",
        ),
        (
            {"elbo": 6.5, "flat": 9.0},
            "flat is no better than the per-pixel histogram (7.100 bits/dim).",
        ),
        ({"elbo": 13.0}, "elbo is no better than the per-pixel histogram (7.100 bits/dim)."),
        ({"elbo": 6.0, "flat": 6.5}, ""),
    ],
)
def test_verdict_names_settings_no_better_than_baseline(tmp_path, bounds, said):
    """A uniform distribution needs log2 256 = 8 bits a value, the histogram of these data 7.1."""
    simple = {"uniform": {"mean": 8.0, "n": 297}, "histogram": {"mean": 7.1, "n": 297}}
    for objective, bound in bounds.items():
        for seed in (1, 2, 3):
            make_run(
                tmp_path,
                objective,
                seed,
                bound + seed / 50 * (1 + len(objective)),
                baselines=simple,
            )
    headline = describe_verdict(one(tmp_path)).headline
    if said:
        assert said in headline
        # The warning precedes the answer if the best setting is among the weak ones.
        assert headline.startswith("elbo is lowest" if said.startswith("flat") else said)
        assert read_study([tmp_path]).answer == headline
    else:
        assert "better than" not in headline


def test_next_step_is_empty_if_no_setting_beats_baseline(tmp_path):
    runs_of(tmp_path, HINTS, baselines={"uniform": {"mean": 1.05, "n": 297}})
    assert "expected interval" in recorded(tmp_path).answer and recorded(tmp_path).next_step
    for file in tmp_path.glob("*/summary.json"):
        edit(file, baselines={"uniform": {"mean": 0.9, "n": 297}})
    story = recorded(tmp_path)
    assert story.answer.endswith("Not settled against b and c.") and story.next_step is None


def measured(values, **about):
    figures = {name: {"mean": v, "n": 100} for name, v in values.items()}
    return {
        "measures": figures,
        "measured": {"n": 100, "reference": "100 new points", "floor": {}} | about,
    }


@pytest.mark.parametrize(("noise", "advised"), [(0.05, False), (0.5, True)])
def test_no_seeds_are_advised_for_samplers_no_better_than_noise(tmp_path, noise, advised):
    """The bound, by which all settings beat the histogram, does not decide here."""
    for sampler, worse in (("ddim", 0.0), ("heun", 0.03)):
        for seed in (1, 2, 3):
            value = {"sliced_wasserstein": 0.1 + worse * seed / 2}
            figures = measured(value, noise={"sliced_wasserstein": noise})
            own = {"overrides": [f"sampler={sampler}", f"seed={seed}"]}
            own["choices"] = {"sampler": sampler}
            make_run(tmp_path, "v", seed, 2.0 + seed / 100, **figures, **own)
    story = recorded(tmp_path)
    assert ("no better than pure noise" in story.answer) is not advised
    assert (story.next_step is not None) is advised


def test_samples_no_better_than_noise_are_named(tmp_path):
    noise = {"frechet_distance": 50.0, "class_accuracy": 0.1}
    for seed in (1, 2, 3):
        good = measured({"frechet_distance": 9.0 + seed / 9, "class_accuracy": 0.8}, noise=noise)
        bad = measured({"frechet_distance": 60.0 + seed, "class_accuracy": 0.1}, noise=noise)
        make_run(tmp_path, "x0", seed, 1.9 + seed / 25, **good)
        make_run(tmp_path, "v", seed, 1.9 + seed / 50, **bad)
    said = " ".join(describe_verdict(one(tmp_path)).lines)
    assert "no better than pure noise (50.000): v" in said
    assert "no better than pure noise (0.100): v" in said and "noise (50.000): x0" not in said


def test_samples_as_good_as_true_data_are_not_called_noise(tmp_path):
    """The precision of noise, .9, is within that of true data, .8 to .95: it tells neither apart."""
    about = {
        "noise": {"precision": 0.9},
        "floor": {"precision": {"median": 0.88, "low": 0.8, "high": 0.95}},
    }
    for seed in (1, 2, 3):
        for objective, precision in (("x0", 0.82), ("v", 0.5)):
            run = measured({"precision": precision + seed / 1000}, **about)
            make_run(tmp_path, objective, seed, 1.9 + seed / 50, **run)
    (line,) = describe_verdict(one(tmp_path)).lines
    assert "no better than pure noise (0.900): v;" in line and line.count("noise") == 1


def test_nine_runs_that_failed_for_one_reason_show_reason_and_retry_first(tmp_path):
    reason = "ValueError: data.root=/gone: no such folder; pass data.root=DIR"
    for objective in ("a", "b", "c"):
        for seed in (1, 2, 3):
            failed(tmp_path, objective, seed, reason)
    study = recorded(tmp_path, expected=9)
    assert study.answer == "9 of 9 runs failed; no run has reported a test bound."
    assert list(map(str, study.failures)) == [f"9 of 9 runs failed: {reason}"]
    first = write_report(tmp_path).html.read_text().partition('<p class="answer">')[0]
    assert f"9 of 9 runs failed: {reason}" in first and "retry=true</code>" in first


def test_next_step_is_empty_for_runs_without_seed(tmp_path):
    for objective, bound in (("x0", 2.1), ("v", 2.0)):
        run = make_run(tmp_path, objective, 1, bound, overrides=[f"objective={objective}"])
        edit(run / "summary.json", seed=None)
        edit(run / "provenance.json", command=["triptych-train", "-m", "seed=1"])
    assert read_study([tmp_path]).next_step is None


def test_next_step_omits_force_and_is_empty_for_papers_and_searches(tmp_path):
    close = {"x0": {1: 2.0, 2: 2.1, 3: 2.3}, "v": {1: 2.1, 2: 2.13, 3: 2.4}}
    make_runs(tmp_path, close)
    command = ["triptych-train", "-m", "objective=x0,v", "seed=1,2,3", "force=true"]
    edit(tmp_path / "sweep.json", command=command)
    step = str(read_study([tmp_path]).next_step)
    assert "seed=1,2,3 until=decided" in step and "force" not in step
    claims = {"one": {"says": "It is so.", "order": ["x0", "v"]}}
    node = {"cite": "A. Author 2020", "where": "table 1", "minutes": 1, "claims": claims}
    axes = {"seed": ["1", "2", "3"], "objective": ["x0", "v"]}
    edit(tmp_path / "sweep.json", command=[*command[:2], "paper=it"], paper=node, paper_axes=axes)
    story = read_study([tmp_path])
    assert story.published and story.next_step is None, "claims have their seeds"
    edit(tmp_path / "sweep.json", command=[*command[:2], "hparams_search=optuna"])
    assert read_study([tmp_path]).next_step is None


def test_settings_of_one_model_without_measures_have_no_verdict(tmp_path):
    for sampler in ("ddim", "heun"):
        for seed in (1, 2):
            own = {
                "overrides": [f"sampler={sampler}", f"seed={seed}"],
                "choices": {"sampler": sampler},
            }
            make_run(tmp_path, "v", seed, 2.0 + seed / 100, **own)
    story = read_study([tmp_path])
    assert (
        "to compare their samples, set measures.n=1000" in story.answer
        and "lowest" not in story.answer
    )
    assert story.question == "Which sampler draws the best samples from one and the same model?"


def test_intervals_of_a_report_share_one_level(tmp_path):
    """Ten pairs: each interval is at .05 / 10, wherever Holm's steps end (Bonferroni)."""
    random = np.random.default_rng(1)
    for name in "abcdz":
        for seed in (1, 2, 3, 4):
            make_run(tmp_path, name, seed, 2.0 + 0.01 * random.normal() + (name == "z"))
    claims = one(tmp_path).claims.values()
    assert {claim.is_significant for claim in claims} == {True, False}
    for claim in claims:
        assert claim.interval == claim.pair.interval(0.05 / 10)


def test_table_states_number_of_seeds_with_metric(tmp_path):
    for seed, psnr in ((1, 21.0), (2, 22.0), (3, math.nan)):
        figure = {"psnr": {"mean": psnr, "stderr": 0.1, "n": 297}}
        make_run(tmp_path, "v", seed, 2.0, test=metrics(2.0) | figure, metrics={"psnr": "higher"})
    (row,) = table_rows(one(tmp_path))
    assert row.entry("metric/psnr").text.endswith("(2 seeds)")


@pytest.mark.parametrize(
    ("metric", "best"), [("val.bound.mean", "lr=0.2"), ("val.accuracy.mean", "lr=0.1")]
)
def test_search_with_test_false_names_best_by_optimized_metric(tmp_path, metric, best):
    """The best has the lowest bound or the highest accuracy, never by test or training figures."""
    for rate, bound in (("0.1", 3.0), ("0.2", 2.0), ("0.3", 2.5)):
        val = metrics(bound) | {"accuracy": {"mean": bound / 4, "stderr": 0.01, "n": 32}}
        overrides = [f"lr={rate}", "test=false"]
        run = make_run(
            tmp_path, "v", 1, bound, overrides=overrides, test={}, val=val, train=metrics(-bound)
        )
        with (run / "config.yaml").open("a") as file:
            file.write(f"optimized_metric: {metric}\n")
    figure = {"lr=0.1": "0.750", "lr=0.2": "2.000"}[best]
    said = f"Best of 3 runs without a test: {best},test=false, {metric} {figure}."
    assert read_study([tmp_path]).answer == said


def test_answer_without_results_names_no_best_run(tmp_path):
    failed(tmp_path, "v", 1, "it rained")
    assert read_study([tmp_path]).answer == "1 of 1 run failed; no run has reported a test bound."


def weighted_sweep(root, weights, **extra):
    """Make three seeds of each loss {label: weight by gamma}; later ones have the larger bound."""
    gamma = np.linspace(-13.2, 4.9, 100)
    for k, (loss, weight) in enumerate(weights.items()):
        curve = {"gamma": [*gamma], "effective": [*(0 * gamma + weight(gamma))]}
        for seed in (1, 2, 3):
            bound = 2 + k + seed / 100 + k * seed / 300
            figures = {name: f(k, seed) for name, f in extra.items()}
            make_run(root, loss, seed, bound, weighting=curve, **figures)
    return read_study([root])


def test_bound_does_not_judge_a_loss_by_levels_that_it_hardly_trains(tmp_path):
    """Weights of the bound, of min-SNR, of L_simple for epsilon and of the squared error of v."""
    losses = {"elbo": lambda g: 1.0, "min_snr": lambda g: 0.3 * np.minimum(1, 5 * np.exp(g)),
              "simple": lambda g: 0.1, "v": lambda g: 1 + np.exp(g)}  # fmt: skip
    study = weighted_sweep(
        tmp_path,
        losses,
        measures=lambda k, seed: {"fid": {"mean": 5 - k + seed / 100}, "recall": {"mean": k / 9}},
        measured=lambda k, seed: {"n": 100},
    )
    assert "elbo is lowest" in study.answer
    judged = "The bound judges noise levels that the loss of min_snr hardly trains"
    assert f"{judged}: compare samples by FID and recall." in study.answer
    assert judged in write_report(tmp_path).html.read_text()
    bare = weighted_sweep(tmp_path / "bare", {"elbo": losses["elbo"], "min_snr": losses["min_snr"]})
    assert f"{judged}: compare samples with measures.n=1000." in bare.answer
    names = ("elbo", "simple", "v")
    equal = weighted_sweep(tmp_path / "equal", {name: losses[name] for name in names})
    assert "judges noise levels" not in equal.answer


@pytest.mark.parametrize(
    ("loss", "neglects"),
    [(Elbo(), False), (Squared("epsilon"), False), (Squared("v"), False), (MinSNR(), True),
     (P2(), True), (Squared("x0"), True)],
)  # fmt: skip
def test_losses_that_neglect_the_bound(loss, neglects):
    """The share of the bound at levels of little relative weight is at least a quarter."""
    schedule, gamma = Linear(-13.3, 5.0), torch.linspace(-13.2, 4.9, 100)
    times = schedule.t_of(gamma)
    level = Level(VariancePreserving(), gamma, schedule.dgamma(times), times, "x0")
    weight = loss.weight(level).expand(100)
    assert neglects_bound(Curve(tuple(gamma.tolist()), tuple(weight.tolist()), ())) is neglects
    error = torch.exp(-gamma) / (1 + torch.exp(-gamma))
    relative = weight / (weight * error).mean() * error.mean()
    share = error[relative < 0.1].sum() / error.sum()
    assert (share > 0.25) == neglects


def test_malformed_weighting_neglects_nothing():
    for value in ((0.0, 0.0), (math.nan, 1.0)):
        assert not neglects_bound(Curve((-1.0, 1.0), value, ()))
    assert not neglects_bound(Curve((900.0, 1e4), (1.0, 1.0), ()))


def test_one_common_seed_is_said_to_carry_no_verdict(tmp_path):
    found = runs_of(tmp_path, {"a": {1: 1.0, 2: 1.1}, "b": {2: 1.3, 3: 1.4}})
    assert [row.verdict for row in table_rows(found)] == ["lowest mean", "one common seed"]
    page = html.unescape(write_report(tmp_path).html.read_text())
    assert "one seed in common carries no interval and no verdict" in page


def test_setting_alone_has_the_true_reason_why_it_is_compared_with_none(tmp_path):
    """Only runs on the same data are compared: others lost their data, or have no result."""
    make_run(tmp_path, "v", 1, 2.0)
    alone = read_study([tmp_path])
    assert alone.answer.endswith("1 seed. No other setting has a result on these data.")
    elsewhere = ["objective=v", "seed=1", "data=shapes"]
    other = make_run(tmp_path, "w", 1, 2.0, overrides=elsewhere, data="shapes", status="failed")
    answer = read_study([tmp_path]).answer
    assert answer.endswith("a result on these data. No run on shapes has a test bound.")
    shutil.rmtree(other)
    failed(tmp_path, "x0", 1, "no memory")
    answer = read_study([tmp_path]).answer
    assert answer.endswith("a result on these data. x0 failed with 1 of 1 seed: no figures.")


@pytest.mark.parametrize(
    ("reconstruction", "schedule", "hinted"),
    [(2.6, True, True), (0.9, True, False), (2.6, False, False)],
)
def test_reconstruction_of_many_bits_is_noted_with_the_key_that_lowers_it(
    tmp_path, capsys, reconstruction, schedule, hinted
):
    """256 levels at gamma_min -8: the noise in z_0 spans several levels; a VAE has no gamma_min."""
    for seed in (1, 2):
        test = metrics(5.0)
        test["bpd_reconstruction"]["mean"] = reconstruction
        test["bpd_diffusion"]["mean"] = 5.0 - 0.002 - reconstruction
        run = make_run(tmp_path, "v", seed, 5.0, test=test)
        if schedule:
            with (run / "config.yaml").open("a") as file:
                file.write("schedule: {gamma_min: -8.0}\n")
    hint = "Reconstruction costs 2.6 bits/dim; a lower schedule.gamma_min, as VDM's -13.3, makes"
    report = write_report(tmp_path)
    print_table(report)
    in_terminal = " ".join(capsys.readouterr().out.split())
    print_result(RunDirectory(run))
    for text in (html.unescape(report.html.read_text()), in_terminal, capsys.readouterr().out):
        assert (hint in text) is hinted
