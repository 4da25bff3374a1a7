"""Panels of a trusted package; what fails costs a panel, not the report."""

import sys

import pytest

from triptych.config import trust
from triptych.study.export import write_figures
from triptych.study.render import write_report

from .fake_runs import make_run

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
    """Writes ``panels.py`` of the package panel_lab, which is trusted."""

    def write(text: str):
        (tmp_path / "panel_lab").mkdir()
        (tmp_path / "panel_lab" / "__init__.py").write_text("")
        (tmp_path / "panel_lab" / "panels.py").write_text(text)
        trusting("panel_lab")

    return write


def runs(root):
    for objective, base in (("v", 2.0), ("x0", 2.2)):
        for seed in (1, 2):
            make_run(root, objective, seed, base + seed / 100)
    return root


def test_panels_of_a_trusted_package(lab, tmp_path):
    lab(PANELS)
    report = write_report(runs(tmp_path / "runs"))
    html = report.html.read_text()
    assert "<h3>Drawn</h3>" in html and "<h3>Empty</h3>" not in html
    assert "It cannot be drawn. ZeroDivisionError: division by zero" in html
    assert "It cannot be drawn. SystemExit: 0" in html
    assert f"({tmp_path}/panel_lab/panels.py:8, in broken)" in html
    exported = {path.name for path in write_figures(report.story, tmp_path / "figures")}
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
def test_a_package_that_cannot_be_imported_costs_its_panels_alone(lab, tmp_path, text, why):
    lab(text)
    html = write_report(runs(tmp_path / "runs")).html.read_text()
    assert "<h3>Panels of panel_lab.panels</h3>" in html and f"It cannot be drawn. {why}" in html
    assert f"({tmp_path}/panel_lab/panels.py:1)" in html and "bits/dim more than v" in html


def test_what_lies_in_a_directory_that_is_reported_is_run_by_nobody(lab, tmp_path, monkeypatch):
    lab(PANELS)
    monkeypatch.setenv("TRIPTYCH_TRUST", "")
    trust.trusted.cache_clear()
    root = runs(tmp_path / "runs")
    for place in (root, next(root.iterdir())):
        (place / "panels.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nPANELS = []\n")
        (place / "panel_mine.py").write_text((place / "panels.py").read_text())
    monkeypatch.chdir(root)
    html = write_report(root).html.read_text()
    assert "<h3>Drawn</h3>" not in html and not (tmp_path / "mark").exists()
    assert "panel_lab.panels" not in sys.modules
