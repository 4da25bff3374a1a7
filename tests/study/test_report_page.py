"""The written report: correct numbers, no outside requests, no breaking input."""

import csv
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from triptych.cli import report as cli
from triptych.study import render
from triptych.study.panels import assign_colours
from triptych.study.render import to_latex, write_report
from triptych.study.study import read_study
from triptych.study.tables import Column, Entry, TableRow

from .fake_runs import TARGETS, diverged, edit, failed, make_run, make_runs, metrics, running, sweep

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Checker(HTMLParser):
    """Check that elements are closed in order, and record ids and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.addresses, self.scripts, self.images = [], [], [], 0, 0
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._note(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def _note(self, tag, attrs):
        self.scripts += tag == "script"
        self.images += tag == "img"
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value)


def check(html: str) -> Checker:
    """Check what holds for every page."""
    page = Checker(html)
    assert page.scripts == 2
    json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1]
    )
    assert len(page.ids) == len(set(page.ids))
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in page.addresses)
    named = re.sub(
        r'xmlns(:\w+)?="[^"]*"|"http://www.w3.org/2000/svg"', "", html
    )  # names, no addresses
    assert not re.search(r"https?:", named)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    return page


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return write_report(sweep(tmp_path_factory.mktemp("full") / "objectives"))


def test_report_shows_answer_before_details(full):
    html = full.html.read_text()
    page = check(html)
    body = html[html.index("<body>") :]
    order = [full.study.question, "levels is lowest", "Clear of v, epsilon, x0 and score.", "<svg"]
    order += [
        "bits/dim more than levels",
        "<table",
        "What is measured",
        "Samples",
        ">Runs<",
        "Reproduce",
    ]
    places = [body.index(text) for text in order]
    assert places == sorted(places)
    assert page.images == len(TARGETS)
    assert body.count("<svg") == 6 and "image-rendering: pixelated" in html
    assert "triptych-train -m ablation=objectives" in body and "of 15 runs finished" not in body
    (comparison,) = full.study.comparisons
    for i, cell in enumerate(comparison.cells):
        assert f"{cell.bound.mean:.3f} ± {cell.bound.stderr:.3f}" in body
        assert i == 0 or f"{comparison.pair_test(0, i).pair.mean:+.3f}" in body


def test_csv_has_every_run_in_full_precision(full):
    rows = list(csv.DictReader(full.csv.open()))
    assert {row["directory"] for row in rows} == {run.dir.name for run in full.study.runs}
    assert len(rows) == 15 and {row["objective"] for row in rows} == set(TARGETS)
    runs = {(run.overrides["objective"], run.seed): run for run in full.study.runs}
    for row in rows:
        run = runs[row["objective"], int(row["seed"])]
        assert float(row["test/bpd"]) == run.test["bpd"].mean and row["test/bpd_n"] == "297"
        assert (row["train/bpd_stderr"], row["seconds/fit"], row["parameters"]) == (
            "0.018",
            "41.2",
            "123456",
        )


def test_write_report_is_deterministic_and_leaves_no_other_files(full):
    before = {path.name: path.read_bytes() for path in full.html.parent.iterdir() if path.is_file()}
    write_report(full.html.parent)
    after = {path.name: path.read_bytes() for path in full.html.parent.iterdir() if path.is_file()}
    assert before == after and set(after) == {"report.html", "results.csv"}
    assert not os.access(full.html, os.X_OK) and full.html.stat().st_mode & 0o444


def test_report_escapes_markup_in_names(tmp_path):
    nasty = [
        "<script>alert(1)</script>",
        "a|b `c` $\\frac$ & \"q\" 'r'",
        "{{ 7 * 7 }}",
        "bell\x07 \u202e名",
    ]
    for place, text in enumerate(nasty):
        for seed in (1, 2):
            told = {"overrides": [f"seed={seed}"], "name": text}
            make_run(tmp_path / str(place), text, seed, 2.0 + len(text) / 30 + seed / 77, **told)
    edit(tmp_path / "sweep.json", title="</title><img src=x onerror=alert(1)>", command=nasty)
    report = write_report(tmp_path)
    html = report.html.read_text()
    page = check(html)
    assert page.images == 0 and "<script>alert" not in html and "49" not in report.study.answer
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "{{ 7 * 7 }}" in html
    render.print_table(report)


def test_report_of_unfinished_sweep_shows_progress_and_failures(tmp_path):
    sweep(tmp_path, {"levels": 1.9, "v": 2.0}, seeds=(1, 2, 3))
    running(tmp_path, "x0", 1, step=120)
    running(tmp_path, "x0", 2, updated=1.0)
    failed(tmp_path, "score", 1, "ValueError: <b>loss</b> is nan")
    edit(tmp_path / "sweep.json", expected=15)
    report = write_report(tmp_path)
    html = report.html.read_text()
    check(html)
    assert (
        "6 of 15 runs finished, 1 running, 1 interrupted (the same command resumes it), 1 failed"
        in html
    )
    assert report.study.answer.startswith("So far: ") and "fit 120 of 800" in html
    for text in (
        "Runs that failed or diverged",
        "ValueError: &lt;b&gt;loss&lt;/b&gt; is nan",
        "train.log",
    ):
        assert text in html
    assert re.search(
        r"0 \(1 running, 1 interrupted\)</td>\s*(<td></td>\s*)+<td[^>]*>no result yet", html
    )
    edit(tmp_path / "sweep.json", expected=12, title="T", command="make ablation")
    story = read_study([tmp_path])
    assert (story.expected, story.title, story.command) == (12, "T", "make ablation")


def test_report_lists_corrupt_summary_beside_other_runs(tmp_path):
    sweep(tmp_path, {"x0": 2.0})
    broken = make_run(tmp_path, "v", 1, 2.0)
    (broken / "summary.json").write_text("{")
    (broken / "samples" / "final.png").write_text("not a picture")
    html = write_report(tmp_path).html.read_text()
    assert (
        'class="text unreadable"' in html
        and "summary.json: cannot be read (Expecting" in html
        and "x0: 2.0" in html
    )


def test_report_without_finished_runs(tmp_path):
    running(tmp_path, "x0", 1)
    edit(tmp_path / "sweep.json", expected=3)
    html = write_report(tmp_path).html.read_text()
    check(html)
    assert "0 of 3 runs finished, 1 running" in html


def test_report_separates_bits_and_nats(tmp_path):
    figure = {"stderr": 0.001, "n": 500}
    truth = {"entropy": figure | {"mean": 0.4}, "gap": figure | {"mean": 0.1}}
    for seed in (1, 2):
        make_run(tmp_path / "d", "x0", seed, 2.0 + seed / 50)
        ring = metrics(-0.5 + seed / 50, "nats_per_dim") | truth
        make_run(tmp_path / "m", "x0", seed, 0.0, measure="nats_per_dim", data="ring", test=ring)
    report = write_report(tmp_path)
    html = report.html.read_text()
    check(html)
    assert "digits, bits/dim" in html and "ring, nats/dim" in html and "section of its own" in html
    for place in (
        r'data-name="t(\d)"',
        r'data-of="cells:(\d)"',
        r'data-seeds="(\d):',
        r'data-ink="(\d):',
    ):
        assert re.findall(place, html) == ["0", "1"], place
    assert "gap to entropy" in html
    assert (
        "On digits (bits/dim)" in report.study.answer
        and "On ring (nats/dim)" in report.study.answer
    )
    render.print_table(report)


def test_figures_are_encoded_per_comparison_to_limit_memory(tmp_path, monkeypatch):
    """A figure takes megabytes in memory, but its SVG only tens of kilobytes."""
    for place, data in enumerate(("digits", "cifar10")):
        make_runs(tmp_path / data, {"x0": {1: 2.02 + place, 2: 2.04 + place}}, data=data)
    order: list[str] = []
    for name in ("headline_panels", "to_svg"):
        whole = getattr(render, name)
        monkeypatch.setattr(
            render, name, lambda *a, of=whole, name=name: order.append(name) or of(*a)
        )
    write_report(tmp_path)
    assert [name for name, _ in itertools.groupby(order)] == ["headline_panels", "to_svg"] * 2


def test_twelve_cells_have_distinct_colours():
    assert (
        len({*assign_colours({f"setting {i}": f"setting {i}" for i in range(12)}).values()}) == 12
    )


def test_print_table_shows_same_numbers_at_each_width(tmp_path, capsys, monkeypatch):
    """A narrow terminal keeps bounds, seeds and verdicts."""
    root = sweep(tmp_path, {f"a setting of a long name {k}": 2 + k / 9 for k in range(3)})
    diverged(root, "a setting of a long name 2", 9)
    report = write_report(root)
    story = report.study
    for width in (60, 80, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        render.print_table(report)
        text = capsys.readouterr().out
        assert all(f"{cell.bound.mean:.3f}" in text for cell in story.comparisons[0].cells)
        assert " ".join(story.answer.split()) in " ".join(text.split()) and "±: seeds alone" in text
        assert "; 297 test items, taken as independent" in text
        assert max(map(len, text.splitlines()[:8])) <= width
        assert "verdict" in text and text.count("worse") == 2 and "3 (1" in text
        assert ("to best [95% together]" in text) == (width >= 80), (
            "a heading is text, not rich's markup"
        )


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("a setting of a long name 1", "a setting of a long name 2"), "a setting …g name 1 "),
        (
            ("a setting of number 1 with a name", "a setting of number 2 with a name"),
            "2 with a name ",
        ),
    ],
)
def test_narrow_table_shortens_or_wraps_names_for_differences(
    tmp_path, capsys, monkeypatch, names, shown
):
    """Names that would be equal when shortened wrap."""
    root = sweep(tmp_path, dict.fromkeys(names, 2.0), noise=0.1)
    for run in root.glob("*/summary.json"):
        gap = {"mean": 0.12345, "stderr": 0.00001, "n": 297}
        edit(run, test=json.loads(run.read_text())["test"] | {"gap": gap})
    monkeypatch.setenv("COLUMNS", "80")
    render.print_table(render.Report(root / "page", root / "table", read_study([root])))
    lines = capsys.readouterr().out.splitlines()
    assert any("[95% together]" in line for line in lines)
    assert any(line.startswith(f" {shown}") for line in lines), lines


def test_runs_of_one_cause_are_reported_in_one_line(tmp_path, capsys):
    """They are 15 settings, and each diverges at another step."""
    sweep(tmp_path, {f"good_{i}": 2 + i / 9 for i in range(3)}, seeds=(1,))
    for i in range(15):
        run = diverged(tmp_path, f"wild_{i}", 1)
        problem = f"diverged at step {i + 2}: the loss is not finite"
        edit(run / "summary.json", stage="fit", step=i + 2, error=problem)
    report = write_report(tmp_path)
    html = report.html.read_text()
    cause = "15 of 18 runs diverged in the fit"
    assert html.count("the loss is not finite</code>") == 1
    assert f"{cause}</span>: <code>the loss is not finite</code>" in html
    render.print_table(report)
    shown = [line for line in capsys.readouterr().out.splitlines() if "diverged" in line]
    banner, line, sentence = shown
    assert banner == "3 of 18 runs finished, 15 diverged"
    assert line.startswith(f"{cause}: the loss is not finite (see {tmp_path}/objective=wild_")
    assert report.study.sentences[-1] == "15 settings diverged with 1 of 1 seed: no figures."


def test_report_command_writes_joint_report_and_prints(tmp_path, capsys):
    first, second = (
        sweep(tmp_path / "a", {"x0": 2.0}),
        sweep(tmp_path / "b", {"v": 2.4}, noise=0.01),
    )
    edit(
        first / "sweep.json", title="mine", command=["triptych-train", "-m", "name=a", "seed=1,2,3"]
    )
    own = write_report(first)
    before = {path: path.read_bytes() for path in (own.html, own.csv)}
    capsys.readouterr()
    assert cli.main([str(first), str(second)]) == 0
    out = capsys.readouterr().out
    assert "Clear of v." in " ".join(out.split()) and "a + b" in out and "mine" not in out
    assert read_study([first, second]).command == "", "the first one's makes not the runs of both"
    assert (first / "joint_report.html").exists() and (first / "joint_results.csv").exists()
    assert {path: path.read_bytes() for path in before} == before and not (
        second / "report.html"
    ).exists()


def test_report_imports_no_heavy_modules_and_is_fast(tmp_path):
    """A separate process imports nothing heavy, and 15 runs take less than six seconds of CPU."""
    root = sweep(tmp_path)
    code = (
        "import sys, time; start = time.process_time()\n"
        "from triptych.cli.report import main\nmain(sys.argv[1:])\n"
        "heavy = {'torch', 'lightning', 'pytorch_lightning', 'scipy.stats', 'matplotlib.pyplot'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\nprint('SECONDS', time.process_time() - start)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    run = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(run, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("SECONDS")[1]) < 6


def test_report_labels_ode_likelihood_and_its_items(tmp_path):
    """The likelihood of a flow is exact for that flow alone, and for its own items."""
    part = {"stderr": 0.02, "n": 64, "draw_stderr": 0.006}
    ode = {"bpd_ode": {"mean": 2.58, **part}, "bpd_ode_bound": {"mean": 1.91, **part}}
    ode |= {"bpd_iw": {"mean": 1.87, **part}}
    report = write_report(
        make_runs(tmp_path, {"x0": {1: 1.89}, "v": {1: 1.89}}, test=metrics(1.89) | ode)
    )
    text = report.html.read_text()
    for head in ("importance-weighted", "by the ODE, its own items", "bound of those items"):
        assert head in text, head
    assert "2.580" in text and "1.910" in text
    with open(report.csv, newline="") as file:
        own = [
            (row["test/bpd_ode_n"], row["test/bpd_ode_draw_stderr"]) for row in csv.DictReader(file)
        ]
    assert own == [("64", "0.006")] * 2


def test_figures_option_writes_figures_and_results_csv(tmp_path, capsys):
    root, out = (
        sweep(tmp_path / "runs", {"levels": 1.9, "v": 2.1}, (1, 2)),
        tmp_path / "paper" / "figures",
    )
    assert cli.main([str(root), "--figures", str(out)]) == 0
    run = next(root.rglob("summary.json")).parent
    there = {*run.iterdir()}
    assert cli.main([str(root), "--figures", str(run)]) == 1 and {*run.iterdir()} == there, (
        "it is a run's own"
    )
    for place, problem in (
        (root, f"--figures={root}: holds a report"),
        (run / "samples", f"--figures={run / 'samples'}: lies in a run's or sweep's directory"),
    ):
        capsys.readouterr()
        assert cli.main([str(root), "--figures", str(place)]) == 1
        assert capsys.readouterr().err.startswith(f"error: {problem}")
    names = {path.stem for path in out.iterdir()}
    assert {"headline", "forest", "noise_levels", "training", "training_time", "results"} <= names
    for path in out.glob("forest.*"):
        begins = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}[path.suffix]
        assert path.read_bytes().startswith(begins)
    rows = {row["objective"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert rows["levels"]["seeds"] == "2" and rows["v"]["verdict"] == "worse"
    page = (root / "report.html").read_text()
    assert f'data-v="{rows["v"]["test bound, bits/dim"]}"' in page
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert cli.main([str(root), "--figures", str(out)]) == 0
    assert f"Figures: {len(before)} files in {out}" in capsys.readouterr().out
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    file = tmp_path / "file"
    file.touch()
    assert cli.main([str(root), "--figures", str(file)]) == 1
    assert (
        capsys.readouterr().err == f"error: --figures={file}: cannot be written (Not a directory)\n"
    )


def test_to_latex_escapes_special_characters(tmp_path):
    rows = [TableRow(r"50% \input{x} $y$ #1_2", {"a": Entry("[−1, ∞] ± ε…")}, best=True)]
    text = to_latex([Column("setting", "a & b", is_text=True), Column("a", "γ²")], rows)
    assert r"\textbf{50\% \textbackslash{}input\{x\} \$y\$ \#1\_2}" in text
    assert r"a \& b & $\gamma$$^2$ \\" in text and text.isascii()
    assert re.search(r"begin\{tabular\}\{lr\}", text)
    if latex := shutil.which("pdflatex"):
        (tmp_path / "a.tex").write_text(
            "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
            + text
            + "\\end{document}\n"
        )
        done = subprocess.run([latex, "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stdout[-2000:]
