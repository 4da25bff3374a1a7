"""What leaves a report for a paper."""

import csv
import re
import shutil
import subprocess

from triptych.cli import report as cli
from triptych.study.export import to_latex
from triptych.study.tables import Entry, TableRow

from .fake_runs import sweep


def test_figures_and_tables_for_a_paper(tmp_path, capsys):
    root, out = sweep(tmp_path / "runs", {"levels": 1.9, "v": 2.1}, (1, 2)), tmp_path / "paper" / "figures"
    assert cli.main([str(root), "--figures", str(out)]) == 0
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
    assert f"Figures: {len(before)} files in {out}" in capsys.readouterr().out
    assert cli.main([str(root), "--figures", str(out)]) == 0
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    file = tmp_path / "file"
    file.touch()
    assert cli.main([str(root), "--figures", str(file)]) == 1
    assert capsys.readouterr().err == f"error: --figures {file}: is a file; must be a directory\n"


def test_a_table_in_latex_has_no_sign_that_breaks_it(tmp_path):
    rows = [TableRow(r"50% \input{x} $y$ #1_2", {"a": Entry("[−1, ∞] ± ε…")}, best=True)]
    text = to_latex([("setting", "a & b"), ("a", "γ²")], rows)
    assert r"\textbf{50\% \textbackslash{}input\{x\} \$y\$ \#1\_2}" in text
    assert r"a \& b & $\gamma$$^2$ \\" in text and text.isascii()
    assert re.search(r"begin\{tabular\}\{lr\}", text)
    if latex := shutil.which("pdflatex"):
        (tmp_path / "a.tex").write_text(
            "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n" + text + "\\end{document}\n"
        )
        done = subprocess.run([latex, "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stdout[-2000:]
