"""User packages add columns and panels to a report; an error costs a panel, not the report."""

import sys

import pytest

from triptych.run.read import read_runs
from triptych.study.compare import compare
from triptych.study.render import print_table, write_figures, write_report

from .fake_runs import make_run, metrics

PANELS = """
from matplotlib.figure import Figure

def figure(comparison, colours):
    return Figure()

def broken(comparison, colours):
    return 1 / 0

def leaving(comparison, colours):
    raise SystemExit(0)

def nothing(comparison, colours):
    return None

PANELS = [
    ("Drawn", "How.", (figure,)),
    ("Broken", "How.", (broken,)),
    ("Leaving", "How.", (leaving,)),
    ("Empty", "How.", (nothing,)),
]
"""


@pytest.fixture
def lab(tmp_path, trusting):
    """Write ``panels.py`` of the trusted package panel_lab."""

    def write(text: str):
        (tmp_path / "panel_lab").mkdir()
        (tmp_path / "panel_lab" / "__init__.py").write_text("")
        (tmp_path / "panel_lab" / "panels.py").write_text(text)
        trusting("panel_lab")

    return write


@pytest.fixture
def runs(tmp_path):
    """Make runs of two settings and seeds, with a user's own metric."""
    for objective, base in (("v", 2.0), ("x0", 2.2)):
        for seed in (1, 2):
            own = {"sharp": {"mean": 10 * base + seed, "stderr": 0.5, "n": 297}}
            test = metrics(base + seed / 100, "bpd") | own
            make_run(
                tmp_path / "runs", objective, seed, base, test=test, metrics={"sharp": "higher"}
            )
    return tmp_path / "runs"


def test_user_metric_is_column_in_report_csv_and_terminal(runs, capsys):
    report = write_report(runs)
    html = report.html.read_text()
    assert "test sharp (higher is better)" in html
    assert (
        "21.500 ± 0.500" in html and "23.500 ± 0.500" in html
    )  # over seeds 1, 2: half their difference
    assert "test/sharp" in report.csv.read_text().splitlines()[0]
    print_table(report)
    assert "test sharp" in capsys.readouterr().out


@pytest.mark.parametrize("gammas, told", [((0.0, 0.0), False), ((0.0, 1.0), True)])
def test_report_notes_user_metric_with_different_keys(tmp_path, gammas, told):
    for seed, gamma in enumerate(gammas):
        run = make_run(tmp_path, "v", seed, 2.0 + seed, metrics={"sharp": ""})
        with (run / "config.yaml").open("a") as file:
            file.write(f"metrics: {{sharp: {{_target_: lab.Sharp, gamma: {gamma}}}}}\n")
    (comparison,) = compare(read_runs(tmp_path))
    assert (
        comparison.subject == "configuration" and len(comparison.cells[0].runs) == 2
    )  # of one setting
    said = "the metric sharp differently: do not compare it"
    assert any(said in note for note in comparison.notes) == told


@pytest.mark.parametrize("metrics", [["sharp"], "sharp", {"sharp": ["higher"]}])
def test_run_with_malformed_metrics_entry_is_unreadable(tmp_path, metrics):
    (run,) = read_runs(make_run(tmp_path, "v", 1, 2.0, metrics=metrics))
    assert run.status == "unreadable"


def test_excess_metric_names_are_dropped(tmp_path):
    metrics = {f"m{i}": "" for i in range(1000)}
    (run,) = read_runs(make_run(tmp_path, "v", 1, 2.0, metrics=metrics))
    assert run.status == "finished" and list(run.metrics) == [f"m{i}" for i in range(32)]


def test_report_draws_panels_of_trusted_package(lab, runs, tmp_path):
    lab(PANELS)
    report = write_report(runs)
    html = report.html.read_text()
    assert "<h3>Drawn</h3>" in html and "<h3>Empty</h3>" not in html
    assert "This panel cannot be drawn: ZeroDivisionError: division by zero" in html
    assert "This panel cannot be drawn: SystemExit: 0" in html
    assert f"({tmp_path}/panel_lab/panels.py:8, in broken)" in html
    exported = {path.name for path in write_figures(report.study, tmp_path / "figures")}
    assert {one for one in exported if "panel_lab" in one} == {
        f"panel_lab.panels-figure.{ending}" for ending in ("svg", "pdf", "png")
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
    ],
)
def test_failing_panel_package_does_not_stop_report(lab, runs, tmp_path, text, why):
    lab(text)
    html = write_report(runs).html.read_text()
    assert (
        "<h3>Panels of panel_lab.panels</h3>" in html
        and f"This panel cannot be drawn: {why}" in html
    )
    assert f"({tmp_path}/panel_lab/panels.py:1)" in html and "bits/dim more than v" in html


def test_report_runs_no_code_of_reported_directory(lab, runs, tmp_path, monkeypatch):
    lab(PANELS)
    monkeypatch.setenv("TRIPTYCH_TRUST", "")
    for place in (runs, next(runs.iterdir())):
        (place / "panels.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nPANELS = []\n")
        (place / "panel_mine.py").write_text((place / "panels.py").read_text())
    monkeypatch.chdir(runs)
    html = write_report(runs).html.read_text()
    assert "<h3>Drawn</h3>" not in html and not (tmp_path / "mark").exists()
    assert "panel_lab.panels" not in sys.modules
