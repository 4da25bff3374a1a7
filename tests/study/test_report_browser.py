"""The page in a real browser, used as a person uses it; its figures computed again from the summaries."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats

from triptych.study.render import write_report

from .browser import CHROMIUM, browser
from .fake_runs import TARGETS, failed, make_run, metrics, picture, running, sweep

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]
# rows that are shown: {key of a column: text}, in their order; a group's heading is its text
ROWS = """(() => { const table = document.querySelector(`table[data-name="${NAME}"]`);
  const heads = [...table.tHead.rows[0].cells];
  return [...table.tBodies[0].rows].map(row => row.classList.contains("group") ? row.textContent
    : Object.fromEntries(heads.map((head, i) => [head.dataset.key, row.cells[i]])
        .filter(([, cell]) => !cell.hidden).map(([key, cell]) => [key, cell.firstChild?.textContent === ""
          ? cell.textContent : key === "seeds" ? cell.firstChild.textContent : cell.textContent]))); })()"""
OVERLAPS = """(() => { const found = [];
  document.querySelectorAll("svg.plot").forEach((svg, k) => {
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()])
      .filter(([text, box]) => text.trim() && box.width);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (w > 1 && h > 0.35 * Math.min(p.height, q.height)) found.push(k + ": " + a + " | " + b); }));
  });
  return found; })()"""
# what is beyond the right edge, and cannot be scrolled to
CUT_OFF = """[...document.querySelectorAll("svg.plot, svg.plot text, p, h1, h2, h3, li, img, .tools *")]
  .filter(e => { const b = e.getBoundingClientRect();
    const seen = e.checkVisibility({contentVisibilityAuto: true}) && !e.closest(".table");
    return seen && b.width && b.right > innerWidth + 1; })
  .map(e => e.textContent.slice(0, 60))"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """15 runs, with pictures of each stage and a log; intervals over seeds alone."""
    root = sweep(tmp_path_factory.mktemp("small") / "objectives")
    for run in filter(lambda path: path.is_dir(), root.iterdir()):
        picture(run / "samples" / "step_0000400.png", 7)
        (run / "train.log").write_text(
            "step 1\rstep 2\n\x1b[31mdone </script><script>window.pwned = 1\x1b[0m\n"
        )
        record = json.loads((run / "summary.json").read_text())
        record["cost"] = {"memory": 2.5 * 2**30, "evaluations": 250}
        (run / "summary.json").write_text(json.dumps(record))
    return write_report(root)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """As many settings as there are colours, some with long names."""
    more = {f"x0 / min_snr / {k}": 2.2 + 0.013 * k for k in range(7)}
    return write_report(sweep(tmp_path_factory.mktemp("twelve") / "objectives", TARGETS | more))


@pytest.fixture
def page(chrome, small):
    chrome.open(small.html)
    yield chrome
    assert chrome.complaints == []
    assert chrome.requests == [small.html.as_uri()] * len(chrome.requests)


def table(chrome, name):
    return chrome.run(ROWS.replace("${NAME}", name))


def first_paint(chrome, path):
    """Milliseconds from the start of loading, the least of three: other processes are at work as well."""
    found = []
    for _ in range(3):
        chrome.open(path)
        while (at := chrome.run("performance.getEntriesByType('paint')[0]?.startTime")) is None:
            chrome.rest()
        found.append(at)
    return min(found)


def bounds(report):
    """{setting: {seed: test bound}}, read from the summaries as they lie there."""
    found = {}
    for path in sorted(report.html.parent.glob("*/summary.json")):
        record = json.loads(path.read_text())
        if record["status"] == "finished":
            found.setdefault(record["choices"]["objective"], {})[record["seed"]] = record["test"]["bpd"][
                "mean"
            ]
    return found


def numbers(text):
    return [float(part) for part in re.findall(r"[+-]?\d+\.?\d*", text.replace("−", "-"))]


@pytest.mark.parametrize("width, dark", [(390, False), (500, True), (1200, False)])
@pytest.mark.parametrize("cells", [5, 12])
def test_a_page_lays_out_and_asks_nothing_of_the_network(chrome, small, twelve, cells, width, dark):
    report = small if cells == 5 else twelve
    chrome.open(report.html, width=width, dark=dark)
    assert chrome.complaints == [] and chrome.requests == [report.html.as_uri()]
    assert chrome.run("document.documentElement.scrollWidth") <= width
    assert chrome.run(OVERLAPS) == [] and chrome.run(CUT_OFF) == []
    chrome.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert chrome.run("document.documentElement.scrollWidth") <= width and chrome.run(CUT_OFF) == []
    shown = chrome.run("getComputedStyle(document.body).backgroundColor")
    assert (max(numbers(shown)) < 60) == dark
    assert report.html.stat().st_size < 5e6


def test_the_first_paint_comes_soon(chrome, small):
    assert first_paint(chrome, small.html) < 1500


def test_every_figure_of_the_table_is_that_of_the_summaries(page, small):
    """Means, standard errors, paired differences, intervals and Holm's p, to every possible reference."""
    known = bounds(small)
    order = sorted(known, key=lambda name: np.mean(list(known[name].values())))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    test = {}
    for a, b in pairs:
        found = stats.ttest_rel([known[b][s] for s in (1, 2, 3)], [known[a][s] for s in (1, 2, 3)])
        test[a, b] = found.pvalue, found.confidence_interval()
    ranked = sorted(pairs, key=lambda pair: test[pair][0])
    p, largest = {}, 0.0
    for i, pair in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - i) * test[pair][0]))
        p[pair] = largest
    for reference in order:
        page.choose(".tools select:has(option[value='v'])", "" if reference == order[0] else reference)
        for row in (rows := {row["setting"]: row for row in table(page, "t0")}).values():
            name = row["setting"]
            values = list(known[name].values())
            assert numbers(row["bound"]) == pytest.approx([np.mean(values), stats.sem(values)], abs=5.1e-4)
            if name == reference:
                assert row["difference"] == ("best" if name == order[0] else "reference") and row["p"] == ""
                continue
            forward = order.index(reference) < order.index(name)
            pair = (reference, name) if forward else (name, reference)
            low, high = test[pair][1] if forward else (-test[pair][1].high, -test[pair][1].low)
            mean = np.mean([known[name][s] - known[reference][s] for s in (1, 2, 3)])
            assert numbers(row["difference"]) == pytest.approx([mean, low, high], abs=5.1e-4)
            assert float(row["p"].strip("<")) == pytest.approx(p[pair], rel=0.06)
            claimed = p[pair] <= 0.05
            assert row["verdict"].startswith(
                ("worse" if mean > 0 else "better") if claimed else ("may", "not")
            )
        assert len(rows) == 5


def test_sorting_and_filtering_choose_rows_and_change_no_figure(page, small):
    known = {f"objective={o},seed={s}": v for o, seeds in bounds(small).items() for s, v in seeds.items()}
    before = {row["run"]: row for row in table(page, "runs")}
    assert set(before) == set(known)
    head = "table[data-name=runs] th[data-key=bound] button"
    page.click(head)
    assert [row["run"] for row in table(page, "runs")] == sorted(known, key=known.get)
    page.click(head)
    assert [row["run"] for row in table(page, "runs")] == sorted(known, key=known.get, reverse=True)
    field = ".tools:has(+ .table [data-name=runs]) input[type=search]"
    for text, kept in (
        ("objective=v", [n for n in known if "=v," in n]),
        ("objective!=v seed>1", [n for n in known if "=v," not in n and "seed=1" not in n]),
        ("SEED=2 x0", ["objective=x0,seed=2"]),
        ("seed=9", []),
        ("", list(known)),
    ):
        page.type(field, text)
        rows = table(page, "runs")
        assert {row["run"] for row in rows} == set(kept)
        assert all(row == before[row["run"]] and numbers(row["bound"]) == [round(known[row["run"]], 3)]
                   for row in rows)  # fmt: skip
        said = page.run("document.querySelector('.tools:has(+ .table [data-name=runs]) output').value")
        assert said == ("" if len(kept) == 15 else f"{len(kept)} of 15 rows")
    page.choose(".tools:has(+ .table [data-name=runs]) select[aria-label]", "objective=score")
    assert len(table(page, "runs")) == 3


def test_a_group_says_its_mean_over_all_of_its_runs_or_none(page, small):
    known = bounds(small)
    page.choose(".tools:has(+ .table [data-name=runs]) label select", "seed")
    rows = table(page, "runs")
    assert [type(row) for row in rows] == [str, *[dict] * 5] * 3
    for seed, row in zip((1, 2, 3), rows[::6], strict=True):
        mean = np.mean([values[seed] for values in known.values()])
        assert row == f"seed = {seed}5 runs · mean {mean:.3f} bits/dim, 1 seed"
    page.choose(".tools:has(+ .table [data-name=runs]) label select", "objective")
    page.type(".tools:has(+ .table [data-name=runs]) input[type=search]", "seed=1")
    assert [row for row in table(page, "runs") if isinstance(row, str)][0] == "objective = epsilon1 run"


def test_columns_are_hidden_and_settings_shown(page):
    menu = ".tools:has(+ .table [data-name=runs]) details"
    page.click(f"{menu} summary")
    page.click(f"{menu} input[value=host]")
    page.click(f"{menu} input[value='own:objective.name']")
    rows = table(page, "runs")
    assert all("host" not in row and row["own:objective.name"] in row["run"] for row in rows)
    page.click("table[data-name=runs] th[data-key='own:objective.name'] button")
    assert [row["own:objective.name"] for row in table(page, "runs")][::3] == sorted(TARGETS)
    assert page.run("new URLSearchParams(location.hash.slice(1)).get('runs.hide')") == "host"
    page.click(f"{menu} input[value=host]")
    assert all(row["host"] == "box" for row in table(page, "runs"))


def test_a_run_under_the_pointer_and_its_own_page(page, small):
    known = bounds(small)
    mark = page.run(
        "(() => { const all = [...document.querySelectorAll('.headline .broad [data-run]')];"
        " return [all.length, all[4].dataset.run]; })()"
    )
    assert mark[0] == 15
    dot = f".headline .broad [data-run='{mark[1]}'] use"
    page.move(*page.place(dot))
    said = page.run("document.querySelector('.hover').textContent")
    name = re.search(r"objective=(\w+?),seed=(\d)", said)
    assert f"test bound {known[name[1]][int(name[2])]:.3f} ± 0.018" in said and "objective=" + name[1] in said
    page.click(dot)
    run = "document.querySelector('article.run')"
    assert page.run(f"{run}.querySelector('h2').textContent") == name[0]
    assert page.run("document.querySelector('main').hidden") and name[0] in page.run("document.title")
    text = page.run(f"{run}.textContent")
    for told in ("800", "train/loss", "step 400", "at the end", "triptych-train -m ablation=objectives",
                 "0123456789abcdef", "step 2", "done </script><script>window.pwned = 1"):  # fmt: skip
        assert told in text, told
    assert "step 1" not in text.split("End of train.log")[1] and page.run("window.pwned") is None
    assert page.run(f"{run}.querySelectorAll('img').length") == 2
    page.back()
    assert page.run(f"{run} === null")
    page.click(dot)
    page.click("article.run .back")
    assert page.run(f"{run} === null && !document.querySelector('main').hidden")


def test_a_link_restores_what_was_chosen(chrome, small):
    chrome.open(small.html)
    chrome.choose(".tools select:has(option[value='v'])", "v")
    chrome.click("table[data-name=runs] th[data-key=bound] button")
    chrome.type(".tools:has(+ .table [data-name=runs]) input[type=search]", "seed>1 objective!=v")
    chrome.choose(".tools:has(+ .table [data-name=runs]) label select", "objective")
    chrome.click("table[data-name=runs] a")
    fragment, rows, cells = chrome.run("location.hash"), table(chrome, "runs"), table(chrome, "t0")
    title = chrome.run("document.title")
    chrome.open(small.html, fragment)
    assert (table(chrome, "runs"), table(chrome, "t0"), chrome.run("document.title")) == (rows, cells, title)
    assert chrome.run("document.querySelectorAll('article.run').length") == 1 and len(rows) == 12
    chrome.click("article.run .back")
    assert table(chrome, "runs") == rows
    heading = chrome.run("document.querySelector('table[data-name=t0] th[data-key=difference]').textContent")
    assert heading == "paired difference to v [95%]"
    # what names nothing is passed over
    chrome.open(
        small.html, "#run=gone&runs.sort=gone&runs.group=gone&t0.ref=gone&runs.hide=gone,&runs.show=gone"
    )
    assert chrome.complaints == [] and len(table(chrome, "runs")) == 15


def test_tables_are_saved_as_they_are_shown(page, small):
    page.choose(".tools select:has(option[value='v'])", "epsilon")
    bar = ".tools:has(+ .table [data-name=t0])"
    page.type(f"{bar} input[type=search]", "objective!=v")
    for place, ending in enumerate(("csv", "md", "tex"), 1):
        page.click(f"{bar} .exports button:nth-child({place})")
        text = page.downloaded(f"on-digits-bits-dim.{ending}").decode()
        if ending == "csv":
            saved = {row["objective"]: row for row in csv.DictReader(io.StringIO(text))}
            assert list(saved) == ["levels", "epsilon", "x0", "score"]
            for name, row in saved.items():
                values = list(bounds(small)[name].values())
                assert float(row["test bound, bits/dim"]) == pytest.approx(np.mean(values), rel=1e-12)
                assert float(row["test bound, bits/dim, standard error"]) == pytest.approx(stats.sem(values))
            assert saved["x0"]["paired difference to epsilon [95%], 95% low"]
        else:
            lines = [line for line in text.splitlines() if line.count({"md": "|", "tex": "&"}[ending]) > 3]
            shown = table(page, "t0")
            assert len(lines) == 5 + (ending == "md")
            assert (
                len({re.sub(r"\\.", "", line).count({"md": "|", "tex": "&"}[ending]) for line in lines}) == 1
            )
            assert all(
                row["bound"].replace("±", "$\\pm$" if ending == "tex" else "±") in text for row in shown
            )
    assert r"\begin{tabular}{llrrrlrrr}" in text and r"\midrule" in text and "−" not in text


def test_figures_are_saved_as_svg_and_png(page):
    count = page.run("document.querySelectorAll('main .exports.figure').length")
    assert count == page.run("document.querySelectorAll('main [data-figure]').length") == 8
    page.click("[data-figure='Training set against test set'] .exports button:nth-child(1)")
    text = page.downloaded("training-set-against-test-set.svg").decode()
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "var(" not in text and root.get("width")
    assert {"levels"} <= {element.text for element in root.iter() if element.tag.endswith("text")}
    page.click("[data-figure='Error by noise level 2'] .exports button:nth-child(2)")
    data = page.downloaded("error-by-noise-level-2.png")
    assert data.startswith(b"\x89PNG") and int.from_bytes(data[16:20], "big") >= 1600
    # a run's own page has its own
    page.click("table[data-name=runs] a")
    page.click("article.run [data-figure] .exports button:nth-child(1)")
    assert ElementTree.fromstring(page.downloaded("val-bpd-objective-epsilon-seed-1.svg")).tag.endswith("svg")


NASTY = [
    "<img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    'a\' "b" {{7*7}} `c`',
    "=cmd|' /C calc'!A0",
    r"50% \input{x} $y$ #1_2",
    "bell\x07 \u202e\u2028名",
]


def test_what_a_run_calls_itself_stays_text(chrome, tmp_path):
    for place, text in enumerate(NASTY):
        for seed in (1, 2):
            run = make_run(tmp_path / str(place), text, seed, 2 + place / 9 + seed / 77, name=text,
                           device=text, overrides=[f"seed={seed}"], choices={"objective": text})  # fmt: skip
            (run / "config.yaml").write_text(
                json.dumps({"objective": {"name": text}, "seed": seed, "extra": text})
            )
            (run / "train.log").write_text(text)
            provenance = json.loads((run / "provenance.json").read_text())
            provenance |= {"command": NASTY, "packages": {"torch": text}, "executions": [{"host": text}]}
            (run / "provenance.json").write_text(json.dumps(provenance))
    report = write_report(tmp_path, title=NASTY[1])
    chrome.open(report.html)
    labels = {row["setting"] for row in table(chrome, "t0")}
    assert {text for text in NASTY if text.isprintable()} <= labels and len(labels) == len(NASTY)
    chrome.choose(".tools:has(+ .table [data-name=runs]) label select", "extra")
    for row in range(len(NASTY)):  # a filter of each value, then each run's page
        options = ".tools:has(+ .table [data-name=runs]) select[aria-label] optgroup[label=extra] option"
        value = chrome.run(f"[...document.querySelectorAll({json.dumps(options)})][{row}].value")
        chrome.choose(".tools:has(+ .table [data-name=runs]) select[aria-label]", value)
        assert len([one for one in table(chrome, "runs") if isinstance(one, dict)]) == 2, value
        chrome.click("table[data-name=runs] a")
        text = chrome.run("document.querySelector('article.run').textContent")
        assert any(nasty in text for nasty in NASTY)
        chrome.click("article.run .back")
        chrome.type(".tools:has(+ .table [data-name=runs]) input[type=search]", "")
    bar = ".tools:has(+ .table [data-name=t0]) .exports button"
    chrome.click(f"{bar}:nth-child(1)")
    rows = list(csv.reader(io.StringIO(chrome.downloaded("on-digits-bits-dim.csv").decode())))
    assert {row[0] for row in rows[1:]} >= {"'" + NASTY[3], NASTY[0]}
    chrome.click(f"{bar}:nth-child(3)")
    latex = chrome.downloaded("on-digits-bits-dim.tex").decode()
    assert r"50\% \textbackslash{}input\{x\} \$y\$ \#1\_2" in latex
    assert chrome.run("[window.pwned ?? 0, document.querySelectorAll('img').length]") == [0, 0]
    assert chrome.complaints == [] and set(chrome.requests) == {report.html.as_uri()}


def test_a_sweep_that_is_not_whole_says_what_it_can(chrome, tmp_path):
    """Running, interrupted, failed and diverged runs, and two data sets, which are never compared."""
    for seed in (1, 2):
        for name, bound in (("x0", 2.4), ("v", 2.1)):
            make_run(tmp_path / "a", name, seed, bound + seed / 50)
        make_run(tmp_path / "b", "x0", seed, 0.0, measure="nats_per_dim", data="ring",
                 test=metrics(-0.5 + seed / 50, "nats_per_dim"))  # fmt: skip
    running(tmp_path / "a", "score", 1)
    running(tmp_path / "a", "score", 2, updated=1.0)
    failed(tmp_path / "a", "levels", 1, "ValueError: <b>no</b>")
    lost = failed(tmp_path / "a", "levels", 2, "the loss is not finite")
    record = json.loads((lost / "summary.json").read_text())
    (lost / "summary.json").write_text(json.dumps(record | {"status": "diverged", "step": 7}))
    report = write_report(tmp_path, expected=12)
    chrome.open(report.html)
    assert chrome.run("document.querySelectorAll('main table[data-of^=cells]').length") == 2
    assert (
        chrome.run("[...document.querySelectorAll('select option')].filter(o => o.value === 'v').length") <= 1
    )
    # a mean over two data sets is none
    chrome.choose(".tools:has(+ .table [data-name=runs]) label select", "seed")
    assert not any("mean" in row for row in table(chrome, "runs") if isinstance(row, str))
    chrome.choose(".tools:has(+ .table [data-name=runs]) label select", "data")
    heads = [row for row in table(chrome, "runs") if isinstance(row, str)]
    assert ["nats/dim" in head for head in heads] == [False, True] or not any("mean" in h for h in heads[:1])
    chrome.choose(".tools:has(+ .table [data-name=runs]) label select", "")
    names = [row["run"] for row in table(chrome, "runs")]
    for name in names:  # each run has a page, whatever became of it
        chrome.run(f"location.hash = new URLSearchParams({{run: {json.dumps(name)}}})")
        chrome.run("new Promise(done => setTimeout(done, 0)).then(() => 1)")
        assert chrome.run("document.querySelector('article.run h2').textContent") == name
    assert chrome.complaints == []
    # while runs go on the page is loaded again, and keeps what was chosen: that a refresh by HTML forgets
    assert chrome.run("document.querySelector('meta[http-equiv=refresh]')") is None
    assert '<noscript><meta http-equiv="refresh"' in report.html.read_text()
    chrome.reload()
    assert chrome.run("document.querySelector('article.run h2').textContent") == names[-1]


@pytest.mark.slow
def test_two_hundred_runs(chrome, tmp_path):
    targets = {f"{name} / {rate}": bound + rate for name, bound in TARGETS.items() for rate in range(8)}
    report = write_report(sweep(tmp_path / "many", targets, seeds=(1, 2, 3, 4, 5)))
    assert len(report.story.runs) == 200 and report.html.stat().st_size < 10e6
    assert first_paint(chrome, report.html) < 1500
    assert chrome.complaints == [] and chrome.requests == [report.html.as_uri()]
    chrome.click("table[data-name=runs] th[data-key=bound] button")
    values = [numbers(row["bound"])[0] for row in table(chrome, "runs")]
    assert values == sorted(values) and len(values) == 200
    chrome.type(".tools:has(+ .table [data-name=runs]) input[type=search]", "seed=3 objective=v")
    assert len(table(chrome, "runs")) == 0  # their name is another
    chrome.type(".tools:has(+ .table [data-name=runs]) input[type=search]", "seed=3")
    assert len(table(chrome, "runs")) == 40
    chrome.choose(".tools:has(+ .table [data-name=t0]) select:has(option[value='v / 3'])", "v / 3")
    cell = next(row for row in table(chrome, "t0") if row["setting"] == "x0 / 3")
    known = bounds(report)
    apart = np.mean([known["x0 / 3"][s] - known["v / 3"][s] for s in known["v / 3"]])
    assert numbers(cell["difference"])[0] == pytest.approx(apart, abs=5.1e-4)
    chrome.click("table[data-name=runs] a")
    assert chrome.run("document.querySelectorAll('article.run svg').length") >= 3
    assert chrome.complaints == []
