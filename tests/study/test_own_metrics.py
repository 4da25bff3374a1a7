"""Metrics of a package of one's own in the tables, and what a stranger's record says of them."""

import pytest

from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.render import write_report
from triptych.study.terminal import print_table

from .fake_runs import make_run, metrics


def runs(root):
    for objective, base in (("v", 2.0), ("x0", 2.2)):
        for seed in (1, 2):
            own = {"sharp": {"mean": 10 * base + seed, "stderr": 0.5, "n": 297}}
            test = metrics(base + seed / 100, "bpd") | own
            make_run(root, objective, seed, base, test=test, metrics={"sharp": "higher"})
    return root


def test_a_metric_of_ones_own_is_a_column_everywhere(tmp_path, capsys):
    report = write_report(runs(tmp_path / "runs"))
    html = report.html.read_text()
    assert "test sharp (higher is better)" in html
    assert "21.500 ± 0.500" in html and "23.500 ± 0.500" in html  # over seeds 1, 2: half their difference
    assert "test/sharp" in report.csv.read_text().splitlines()[0]
    print_table(tmp_path / "runs", report=report)
    assert "test sharp" in capsys.readouterr().out


@pytest.mark.parametrize("gammas, told", [((0.0, 0.0), False), ((0.0, 1.0), True)])
def test_metrics_of_one_name_and_different_keys_are_not_to_be_compared(tmp_path, gammas, told):
    for seed, gamma in enumerate(gammas):
        run = make_run(tmp_path, "v", seed, 2.0 + seed, metrics={"sharp": ""})
        with (run / "config.yaml").open("a") as file:
            file.write(f"metrics: {{sharp: {{_target_: lab.Sharp, gamma: {gamma}}}}}\n")
    (comparison,) = compare(read_runs(tmp_path))
    assert (
        comparison.subject == "configuration" and len(comparison.cells[0].runs) == 2
    )  # seeds of one setting
    said = "the metric sharp with different metrics.sharp.gamma: do not compare it"
    assert any(said in note for note in comparison.notes) == told


@pytest.mark.parametrize(
    "said", [["sharp"], {"<b>x</b>": "higher", "a b": ""}, {"sharp": ["higher"]}, "sharp", {"": 1}]
)
def test_names_that_are_none_and_senses_that_are_none_are_left_out(tmp_path, said):
    make_run(tmp_path, "v", 1, 2.0, metrics=said)
    (run,) = read_runs(tmp_path)
    assert run.status == "finished" and dict(run.metrics) in ({}, {"sharp": ""})


def test_a_strangers_thousand_metrics_make_no_thousand_columns(tmp_path):
    make_run(tmp_path, "v", 1, 2.0, metrics={f"m{i}": "" for i in range(1000)})
    assert len(read_runs(tmp_path)[0].metrics) == 32
