"""A paper's claims in a report and on the page of results."""

import json
import pickle
import re
import subprocess
import warnings

import pytest

from tests.study.fake_runs import edit, sweep
from tests.study.test_report_page import Checker
from triptych.cli import report as cli
from triptych.config.describe import read_yaml
from triptych.config.metric import metric_version
from triptych.config.source import CONFIGS
from triptych.study import results_page
from triptych.study.claims_figure import claims_figure
from triptych.study.papers.claim import Claim, MetricPoint
from triptych.study.papers.paper import settings_digest
from triptych.study.render import print_table, write_report

NODE = {
    "cite": "A. <b>Author</b> 2020",
    "where": "table | 1",
    "arxiv": "2001.00001",
    "minutes": 3,
    "claims": {
        "wrong": {
            "says": "x0 beats <i>v</i>.", "published": {"x0": 1.0, "v": "2.0 ± .1"}, "order": ["x0", "v"],
        },
        "right": {"says": "v beats x0.", "order": ["v", "x0"]},
        "open": {"says": "Nobody knows.", "value": {"v": 2.1}, "within": 0.02},
    },
}  # fmt: skip


PAPER_NODES: dict[bytes, bytes] = {}  # by a file's settings and a scale, pickled


@pytest.fixture(autouse=True)
def known_papers(monkeypatch):
    """Compute the node of each paper's file once; each page reads all of them."""
    compute = results_page._paper_node

    def node(settings, scale):
        key = pickle.dumps([settings, scale])
        if key not in PAPER_NODES:
            PAPER_NODES[key] = pickle.dumps(compute(settings, scale))
        return pickle.loads(PAPER_NODES[key])

    monkeypatch.setattr(results_page, "_paper_node", node)


@pytest.fixture
def paper(tmp_path):
    """Make a finished sweep of three claims, one false and one undecided."""
    root = sweep(tmp_path / "sweeps" / "it", {"v": 2.09, "x0": 2.45}, items=True)
    axes = {"seed": ["1", "2", "3"], "objective": ["v", "x0"]}
    facts = {"paper": NODE, "paper_name": "it", "paper_axes": axes, "scale": "small"}
    edit(root / "sweep.json", expected=6, machine="x86, 2 cores", **facts)
    return root


def page(folder, *roots) -> str:
    """Return the page of results over these roots."""
    results_page.write_results(folder / "results.md", list(roots))
    return (folder / "results.md").read_text()


def test_a_report_opens_with_the_claims(paper):
    html = write_report(paper).html.read_text()
    checked = Checker(html)
    assert html.index("A. &lt;b&gt;Author&lt;/b&gt; 2020") < html.index('class="answer"')
    assert "x0 beats &lt;i&gt;v&lt;/i&gt;." in html and "<i>v</i>" not in html
    found = [
        html.index(f'class="verdict {word}"')
        for word in ("contradicted", "reproduced", "cannot-tell")
    ]
    assert found == sorted(found), "one look for all, in the order of the file"
    assert "x0: 1.0" in html and "2.0 ± .1" in html and "arXiv:2001.00001" in html
    assert {a for a in checked.addresses if a.startswith("objective")} == {
        f"objective%3D{name}%2Cseed%3D{seed}" for name in ("v", "x0") for seed in (1, 2, 3)
    }
    assert "Of 3 nearly forced claims: 1 reproduced, 1 contradicted and 1 cannot tell." in html
    assert "“Nearly forced”: the setting decides the claim" in html and "“Controls” test" in html


def test_a_terminal_has_a_line_a_claim(paper, capsys):
    print_table(write_report(paper))
    lines = capsys.readouterr().out.splitlines()
    told = {line.split(":")[0] for line in lines if line.startswith(("repro", "contra", "cannot"))}
    assert told == {"reproduced", "contradicted", "cannot tell"}


def test_claims_that_changed_after_a_result_are_told_everywhere(paper):
    edit(paper / "sweep.json", claims_changed=True)
    said = "claims or their seeds were changed after some of these runs had finished"
    assert said in write_report(paper).html.read_text()
    assert "claims changed during the runs" in page(paper, paper)


def test_the_page_has_one_row_a_claim_and_keeps_papers_whose_sweeps_are_gone(
    paper, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        results_page, "read_papers", lambda *_: {"it": NODE, "other": NODE | {"minutes": 90}}
    )
    file = tmp_path / "docs" / "results.md"
    assert cli.main(["--results", str(file), str(tmp_path)]) == 0
    text = file.read_text()
    counts = "1 reproduced, 1 contradicted and 1 cannot tell"
    assert f"**Of 3 nearly forced claims: {counts}.**" in text and "## Words" in text
    row = next(line for line in text.splitlines() if "x0 beats &lt;i&gt;v" in line)
    assert "| **contradicted** | – | v: 2.0 ± .1; x0: 1.0 | v − x0 = −0.3" in row
    assert "| `other` | 90 |" in text and "To run again" not in text
    assert (file.parent / "results" / "claims.png").read_bytes().startswith(b"\x89PNG")
    details = (file.parent / "results" / "it.md").read_text()
    assert "A. &lt;b&gt;Author&lt;/b&gt; 2020 (arXiv:2001.00001): table \\| 1.\n" in details
    assert "*Nearly forced*: the setting decides it" in details and "../papers.md" in details
    assert "commit 0123456789" in details and "x86, 2 cores" in details and "2025-01-01" in details
    (tmp_path / "sweeps").rename(tmp_path / "elsewhere")
    (tmp_path / "none").mkdir()
    assert (
        cli.main(["--results", str(file), str(tmp_path / "none")]) == 0 and file.read_text() == text
    )
    for other in (b"\xff\xfe\x00", b'{"schema": 1}'):  # as a run's record
        file.write_bytes(other)
        assert cli.main(["--results", str(file), str(tmp_path / "none")]) == 1, (
            "it is no page of ours"
        )
        assert file.read_bytes() == other


def test_titles_say_which_set_of_seeds_a_page_has(paper, tmp_path):
    """As docs/second_seeds.md stands beside docs/results.md."""
    title = "# Published claims, measured"
    for name, addition in (("results", ""), ("second_seeds", ": second seeds")):
        file = tmp_path / "docs" / f"{name}.md"
        for _ in range(2):  # its own page is known again
            assert cli.main(["--results", str(file), str(paper)]) == 0
            assert file.read_text().startswith(f"{title}{addition}\n\n")
        assert (file.with_suffix("") / "it.md").read_text().startswith(f"# it{addition}\n\n")


def test_time_is_from_start_to_end_where_the_records_have_it(paper):
    def row() -> str:
        text = page(paper, paper)
        assert ("only training and test" in text) == ("\\*" in text)
        return next(line for line in text.splitlines() if line.startswith("| [it](results"))

    assert row().endswith("| 4 min 26 s\\* |"), "six runs of 44.3 s of training and test"
    for file in paper.glob("*/provenance.json"):
        edit(file, started="2025-01-01T00:00:00+0000", executions=[{"host": "box"}])
        edit(file.with_name("summary.json"), ended="2025-01-01T02:01:30+0100")
    assert row().endswith("| 6 h 09 min |")


def test_a_claim_that_changed_since_is_to_be_run_again(paper, tmp_path, monkeypatch):
    other = NODE | {"claims": NODE["claims"] | {"open": NODE["claims"]["open"] | {"within": 0.5}}}
    monkeypatch.setattr(results_page, "read_papers", lambda *_: {"it": other})
    text = page(tmp_path, tmp_path)
    assert "**Of 2 nearly forced claims: 1 reproduced and 1 contradicted.**" in text
    assert "- To run again: 1." in text
    rows = [line for line in text.splitlines() if line.startswith("| [it:")]
    assert ["to run again" in row for row in rows] == [False, False, True]
    # The keys that the file sets for its runs decide, too.
    file = tmp_path / "results" / "it.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"settings": "then"}))
    monkeypatch.setattr(results_page, "read_papers", lambda *_: {"it": NODE | {"settings": "now"}})
    assert "**To run again: 3.**" in page(tmp_path)


def test_a_digest_of_a_papers_settings_is_of_its_scale_and_not_of_its_words():
    hydra = [{"sweeper": {"params": {}, "scales": {"paper": {"a": a}}}} for a in (1, 2)]
    file = {"paper": {"says": "a"}, "seed": 1, "hydra": hydra[0]}
    small, large = (settings_digest(file, scale) for scale in ("small", "paper"))
    other = file | {"paper": {"says": "b"}}
    assert small != large and settings_digest(other, "small") == small
    other["hydra"] = hydra[1]
    assert settings_digest(other, "small") == small and settings_digest(other, "paper") != large
    assert settings_digest(file | {"seed": 2}, "small") != small


@pytest.mark.parametrize(
    "settings, ratio",
    [
        ((1.0, 2.0), 0.5),
        (("≤ 3.70", "3.75"), 3.7 / 3.75),
        (("diverges", 2.0), None),
        ((1.0,), None),
    ],
)
def test_a_published_ratio_is_of_the_settings_that_decide(settings, ratio):
    claim = Claim("it", "It.", "bound", "", tuple(zip("ab", map(str, settings), strict=False)), ())
    points = [MetricPoint("bound", (("objective", name), ("objective/loss", "b"))) for name in "ab"]
    assert results_page.published_at(claim, *points)[1] == (ratio and pytest.approx(ratio))


def test_without_a_sweep_nothing_was_run(tmp_path):
    assert (
        page(tmp_path, tmp_path).partition("## Not run")[2].count("| `")
        == len(results_page.read_papers())
        > 10
    )


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert cli.main(["--results", str(tmp_path / "taken" / "results.md"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_make_papers_asks_for_each_and_renews_the_page_though_one_fails(root):
    """The Makefile's rule, with commands that record their calls; exit code 3 is a divergence."""
    (root / "configs").symlink_to(CONFIGS)
    (root / "bin").mkdir()
    for command in ("triptych-train", "triptych-report"):
        script = root / "bin" / command
        ends = 'case "$*" in *heun) exit 1;; *_steps) exit 3;; esac'
        script.write_text(f'#!/bin/sh\necho "$*" >> {root}/log\n{ends}\n')
        script.chmod(0o755)
    line = [
        "make",
        "-f",
        str(CONFIGS.parent / "Makefile"),
        "-o",
        "install",
        f"BIN={root}/bin",
        "papers",
    ]
    for papers, code in (("edm_heun vdm_steps sit_paths", 2), ("vdm_steps sit_paths", 0)):
        (root / "log").unlink(missing_ok=True)
        done = subprocess.run(
            [*line, f"PAPERS={papers}"], cwd=root, capture_output=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        asked = [text for text in (root / "log").read_text().splitlines() if text.startswith("-")]
        wanted = [f"-m paper={name}" for name in papers.split()]
        assert asked == [*wanted, "--results docs/results.md logs/sweeps"]


def test_what_is_not_testable_has_its_interval_its_range_and_one_reason(
    paper, tmp_path, monkeypatch
):
    why = "the figures are made up"
    node = NODE | {
        "claims": NODE["claims"] | {"right": NODE["claims"]["right"] | {"untestable": why}}
    }
    monkeypatch.setattr(results_page, "read_papers", lambda *_: {"it": node})
    edit(paper / "sweep.json", paper=node)
    page(tmp_path, tmp_path)
    text = (tmp_path / "results" / "it.md").read_text()
    assert re.search(
        rf"testable here\*\*, by its figures: as claimed\. {why}\. "
        r"x0 − v = \+0\.3[^|]*\], above 0 is claimed\. \|",
        text,
    )


def test_a_setting_no_better_than_a_trivial_model_is_named_beside_the_verdict(paper):
    for file in paper.glob("objective=*/summary.json"):
        edit(file, baselines={"histogram": {"mean": 2.4, "n": 297}})
    rows = page(paper, paper).splitlines()
    marks = [
        row
        for row in rows
        if "**reproduced**, but x0 is no better than the per-pixel histogram" in row
    ]
    assert len(marks) == 1 and "v beats x0" in marks[0]


def test_a_published_reason_stands_once():
    nodes = [read_yaml(file)["paper"] for file in (CONFIGS / "paper").glob("*.yaml")]
    claims = [claim for node in nodes for claim in node["claims"].values()]
    for entry in results_page.read_entries(CONFIGS.parent / "docs" / "results"):
        claims += entry["claims"]
    assert not [claim["says"] for claim in claims if claim.get("untestable") and claim.get("note")]


def test_a_claim_by_reference_is_that_of_its_scale():
    for scale, steps in (("small", [100, 10]), ("paper", [4000, 400])):
        claims = results_page.read_papers(scale)["iddpm_hybrid"]["claims"]
        assert claims["tenth"]["same"] == steps
        assert claims["samples"]["at"] == {"sampler.steps": steps[0]}


def test_a_file_that_refers_beyond_itself_is_read_as_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "paper").mkdir()
    text = "name: 2024-06-01\nhydra: null\npaper: {claims: {a: {at: {sampler.steps: '${sampler.steps}'}}}}\n"
    (tmp_path / "paper" / "theirs.yaml").write_text(text)
    monkeypatch.setattr(results_page, "config_folders", lambda: (tmp_path,))
    claims = results_page.read_papers()["theirs"]["claims"]
    assert claims == {"a": {"at": {"sampler.steps": "${sampler.steps}"}}}


@pytest.mark.parametrize("facts", [{"scale": "/../../../pwned"}, {"paper_name": "/../../pwned"}])
def test_a_sweep_of_a_strangers_writes_into_the_folder_alone(paper, tmp_path, facts):
    edit(paper / "sweep.json", **facts)
    (tmp_path / "docs" / "results" / "it_").mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert (
        cli.main(["--results", str(tmp_path / "docs" / "results.md"), str(tmp_path / "sweeps")])
        == 0
    )
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "docs") for path in new)


@pytest.mark.parametrize("n", [1, 2])
def test_a_figure_of_few_claims_has_room_for_them(n):
    claim = {
        "name": "soft",
        "kind": "trained",
        "word": "reproduced",
        "is_tie": False,
        "published_ratio": 1.5,
    }
    claims = [claim | {"ratio": [1.2, 1.0, 1.4]}] * n
    with warnings.catch_warnings(action="error"):  # else of axes without a size
        png = claims_figure(
            {"could fail": [({"title": f"Author {i}"}, claim) for i, claim in enumerate(claims)]}
        )
    assert int.from_bytes(png[20:24], "big") > 230  # pixels of the height


def test_a_result_older_than_what_measured_it_is_to_be_run_again(paper, tmp_path, monkeypatch):
    """A record without a version has the first; only conditional samples depend on the classes'."""
    monkeypatch.setattr(results_page, "read_papers", lambda *_: {"it": NODE})
    assert "**to run again**" not in page(tmp_path, paper), "no samples are measured"
    for file in paper.glob("*/config.yaml"):
        file.write_text("measures: {n: 8}\n")
    assert "**to run again**" not in page(tmp_path, paper), "samples are of no classes"
    for file in paper.glob("*/config.yaml"):
        file.write_text("measures: {n: 8}\nmodel: {conditional: true}\n")
    assert "**To run again: 3.**" in page(tmp_path, paper), "by a former version of this package"
    files = [*paper.glob("*/summary.json")]
    for file in files:
        edit(file, versions={"classes": metric_version("classes")})
    assert "**to run again**" not in page(tmp_path, paper)
    edit(files[0], versions={"classes": metric_version("classes") - 1})
    assert "**To run again: 3.**" in page(tmp_path, paper)


def test_a_metric_of_ones_own_has_a_version(paper, tmp_path, monkeypatch, trusting):
    monkeypatch.setattr(results_page, "read_papers", lambda *_: {"it": NODE})
    trusting("version_lab", "class Mine:\n    version = 2\n")
    assert metric_version("version_lab.Mine") == 2
    for file in paper.glob("*/config.yaml"):
        file.write_text("metrics: {mine: {_target_: version_lab.Mine}}\n")
    assert "**To run again: 3.**" in page(tmp_path, paper)
    for file in paper.glob("*/summary.json"):
        edit(file, versions={"version_lab.Mine": 2})
    assert "**to run again**" not in page(tmp_path, paper)
    entry = {"claims": [{"metric": "mine"}], "versions": {"no_lab.Mine": 2}}
    assert results_page.has_current_versions(entry), "it is not installed here"
