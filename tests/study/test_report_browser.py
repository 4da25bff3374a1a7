"""The page in a real browser, used like a person would.

Its figures are computed again from the summaries.
"""

import base64
import contextlib
import functools
import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from triptych.cli import report as cli
from triptych.study.render import write_report

from . import fake_runs
from .browser import CHROMIUM, Browser
from .fake_runs import TARGETS, edit, failed, make_run, make_runs, picture, running, sweep
from .firefox import FIREFOX, Firefox

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"
    ),
]
RUNS = ".tools:has(+ .table [data-name=runs])"  # the tools of the table of runs
FIELD = f"{RUNS} input[type=search]"
# The visible rows: {key of a column: text}, in order.
ROWS = """(() => { const table = document.querySelector(`table[data-name="${NAME}"]`);
  const heads = [...table.tHead.rows[0].cells];
  return [...table.tBodies[0].rows].map(row =>
    Object.fromEntries(heads.map((head, i) => [head.dataset.key, row.cells[i]])
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
# Elements beyond the right edge that cannot be reached by scrolling.
CUT_OFF = """[...document.querySelectorAll("svg.plot, svg.plot text, p, h1, h2, h3, li, img, .tools *")]
  .filter(e => { const b = e.getBoundingClientRect();
    const seen = e.checkVisibility({contentVisibilityAuto: true}) && !e.closest(".table");
    return seen && b.width && b.right > innerWidth + 1; })
  .map(e => e.textContent.slice(0, 60))"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Start one browser of each kind for all tests of this file."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start(kind):
            return stack.enter_context(contextlib.closing(kind(tmp_path_factory.mktemp("browser"))))

        yield start


@pytest.fixture
def chrome(started, request):
    """Chromium, or the browser that a test names."""
    kind = getattr(request, "param", Browser)
    if kind is Firefox and FIREFOX is None:
        pytest.skip("no firefox or firefox-esr on PATH")
    return started(kind)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """15 runs, with pictures of real images; intervals over seeds alone."""
    root = sweep(tmp_path_factory.mktemp("small") / "objectives")
    for run in filter(lambda path: path.is_dir(), root.iterdir()):
        picture(run / "samples" / "real.png", 8)
    return write_report(root)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """As many settings as there are colours, some of them with long names."""
    more = {f"x0 / min_snr / {k}": 2.2 + 0.013 * k for k in range(7)}
    return write_report(sweep(tmp_path_factory.mktemp("twelve") / "objectives", TARGETS | more))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return write_report(fake_runs.crossed(tmp_path_factory.mktemp("grid") / "crossed"))


@pytest.fixture
def page(chrome, small):
    chrome.open(small.html)
    yield chrome
    assert chrome.complaints == []
    assert chrome.requests == [small.html.as_uri()] * len(chrome.requests)


def table(chrome, name):
    return chrome.run(ROWS.replace("${NAME}", name))


def bounds(report):
    """Return {setting: {seed: test bound}}, read directly from the summaries."""
    found = {}
    for path in sorted(report.html.parent.glob("*/summary.json")):
        record = json.loads(path.read_text())
        if record["status"] == "finished":
            known = found.setdefault(record["choices"]["objective"], {})
            known[record["seed"]] = record["test"]["bpd"]["mean"]
    return found


def numbers(text):
    return [float(part) for part in re.findall(r"[+-]?\d+\.?\d*", text.replace("−", "-"))]


@pytest.mark.parametrize(
    "chrome, of, width, dark",
    [
        (Browser, "twelve", 390, False),
        (Browser, "grid", 500, True),
        (Browser, "small", 1200, False),
        (Firefox, "small", 390, True),
    ],
    indirect=["chrome"],
)
def test_report_layout_has_no_overlap_and_no_network_requests(chrome, request, of, width, dark):
    """No words of a figure overlap, nothing is cut off, and no request is sent."""
    report = request.getfixturevalue(of)
    chrome.open(report.html, width=width, dark=dark)
    assert chrome.complaints == [] and chrome.requests == [report.html.as_uri()]
    assert chrome.run("document.documentElement.scrollWidth") <= width
    assert chrome.run(OVERLAPS) == [] and chrome.run(CUT_OFF) == []
    chrome.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert chrome.run("document.documentElement.scrollWidth") <= width and chrome.run(CUT_OFF) == []
    shown = chrome.run("getComputedStyle(document.body).backgroundColor")
    assert (max(numbers(shown)) < 60) == dark
    assert report.html.stat().st_size < 5e6


def test_tables_fit_a_wide_window_and_mark_columns_beyond_the_edge_of_a_narrow_one(chrome, grid):
    """The shadow at the right edge goes where a table is scrolled to its end."""
    chrome.open(grid.html, width=1300)
    fits = "[...document.querySelectorAll('.table')].every(t => t.scrollWidth <= t.clientWidth)"
    assert chrome.run(fits)
    chrome.open(grid.html, width=390)
    assert brightness_at_right_edge(chrome) < 200
    chrome.run("document.querySelector('.table').scrollLeft = 1e6")
    assert brightness_at_right_edge(chrome) > 240


def brightness_at_right_edge(chrome):
    """Return the brightness at the right edge of the first table, above its caption."""
    chrome.rest()
    x, y = chrome.run(
        "(() => { const box = document.querySelector('.table').getBoundingClientRect();"
        " return [box.right + scrollX, box.top + scrollY]; })()"
    )
    clip = {"x": x - 4, "y": y, "width": 4, "height": 4, "scale": 1}
    shot = chrome.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
    return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("L").getpixel((2, 1))


# Scroll each table to its end; its columns that have no room beside the first one, and its caption if cut.
CROWDED = """[...document.querySelectorAll(".table")].flatMap(t => { t.scrollLeft = 1e6;
  const box = t.getBoundingClientRect(), cells = [...t.querySelector("thead tr").cells];
  const room = box.right - cells[0].getBoundingClientRect().right + 1;
  const caption = t.querySelector("caption"), at = caption.getBoundingClientRect();
  const cut = at.height > 1 && getComputedStyle(caption).position === "sticky"
    && (at.left < box.left - 1 || at.right > box.right + 1);
  return [...cells.slice(1).filter(c => c.getBoundingClientRect().width > room), ...(cut ? [caption] : [])]
    .map(e => e.textContent); })"""


def test_names_of_rows_leave_room_for_each_other_column_on_a_phone(chrome, tmp_path):
    """The names of settings and runs stay in sight, and would cover all else if as wide as it."""
    name = "a_name_as_wide_as_the_screen_of_a_phone / with_a_second_part"
    table = {name: {1: 2.0, 2: 2.1, 3: 2.2}, "v": {1: 2.2, 2: 2.21, 3: 2.3}}
    for setting, row in table.items():
        for seed, bound in row.items():
            own = {"overrides": [f"objective={setting}", f"seed={seed}", "note=long_and_unbroken"]}
            make_run(tmp_path, setting, seed, bound, **own)
    failed(tmp_path, "x0", 1, f"ValueError: {'x' * 80}")
    chrome.open(write_report(tmp_path).html, width=390)
    chrome.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert chrome.run("document.querySelectorAll('.table').length") >= 2
    assert chrome.run("document.documentElement.scrollWidth") <= 390
    assert chrome.run(CROWDED) == []


def test_links_to_runs_of_a_setting_are_in_the_order_of_seeds(chrome, tmp_path):
    """That of a run that diverged stands among the others."""
    make_runs(tmp_path, {"v": {2: 2.0, 10: 2.1}, "x0": {1: 2.2, 2: 2.3, 10: 2.4}})
    fake_runs.diverged(tmp_path, "v", 1)
    chrome.open(write_report(tmp_path).html)
    seeds = "[...document.querySelectorAll('td[data-seeds] small')].map(e => e.textContent)"
    assert chrome.run(seeds) == ["1 2 10", "1 2 10"]


def test_links_to_runs_of_a_paper_fit_a_phone(chrome, tmp_path):
    """Their names are long and have no space at which they could be broken."""
    make_run(tmp_path, "v", 1, 2.0, overrides=["objective=v", "seed=1", f"note={'x' * 50}"])
    make_run(tmp_path, "x0", 1, 2.1)
    claim = {"says": "v is lower.", "kind": "trained", "order": ["v", "x0"]}
    axes = {"objective": ["v", "x0"], "seed": ["1"]}
    untestable = {"says": "x0 is lower.", "kind": "trained", "order": ["x0", "v"]}
    untestable["untestable"] = "One seed cannot tell."
    claims = {"lower": claim, "higher": untestable}
    node = {"cite": "A", "where": "b", "minutes": 1, "claims": claims}
    edit(tmp_path / "sweep.json", schema=1, paper=node, paper_axes=axes, scale="small")
    report = write_report(tmp_path)
    chrome.open(report.html, width=390)
    chrome.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert chrome.run("document.querySelectorAll('.published p a').length") == 4
    said = "[...document.querySelectorAll('.published .why')].map(e => e.textContent)"
    first, second = chrome.run(said)
    assert "by its figures" not in first
    assert second.startswith("not testable hereby its figures: neither")
    assert chrome.run("document.documentElement.scrollWidth") <= 390
    assert chrome.run(CROWDED) == []


def test_report_table_matches_summaries(page, small):
    """Check means, standard errors, paired differences, Holm's p and intervals, to each reference.

    All intervals have the level of Bonferroni's method.
    """
    known = bounds(small)
    order = sorted(known, key=lambda name: np.mean(list(known[name].values())))
    test = {
        (a, b): stats.ttest_rel([known[b][s] for s in (1, 2, 3)], [known[a][s] for s in (1, 2, 3)])
        for a, b in itertools.combinations(order, 2)
    }
    p, largest = {}, 0.0
    for i, pair in enumerate(sorted(test, key=lambda pair: test[pair].pvalue)):
        largest = p[pair] = max(largest, min(1.0, (len(test) - i) * test[pair].pvalue))
    rows = {row["setting"]: row for row in table(page, "t0")}
    for name, row in rows.items():
        values = list(known[name].values())
        assert numbers(row["bound"]) == pytest.approx(
            [np.mean(values), stats.sem(values)], abs=5.1e-4
        )
        if name != order[0]:
            assert float(row["p"].strip("<")) == pytest.approx(p[order[0], name], rel=0.06)
    for a, b in itertools.permutations(order, 2):
        pair = (a, b) if (a, b) in test else (b, a)
        found = test[pair].confidence_interval(1 - 0.05 / len(test))
        low, high = found if pair == (a, b) else (-found.high, -found.low)
        mean = np.mean([known[b][s] - known[a][s] for s in (1, 2, 3)])
        page.choose("select[name=a]", f"0:{a}")
        page.choose("select[name=b]", f"0:{b}")
        said = page.run("document.querySelector('.pair').textContent")
        difference, told = said.removeprefix(f"{b} minus {a}: ").split(", p ")
        assert numbers(difference) == pytest.approx([mean, low, high], abs=5.1e-4)
        assert float(told.split(". ")[0].strip("<")) == pytest.approx(p[pair], rel=0.06)
        claimed = ("worse" if mean > 0 else "better") if p[pair] <= 0.05 else "not settled"
        assert told.endswith(f"{b}: {claimed}.")
        if a == order[0]:
            assert difference == rows[b]["difference"] and claimed == rows[b]["verdict"]


def test_report_table_sorting_and_filtering_keep_values(page, small):
    known = {
        f"objective={o},seed={s}": v for o, seeds in bounds(small).items() for s, v in seeds.items()
    }
    before = {row["run"]: row for row in table(page, "runs")}
    assert set(before) == set(known)
    head = "table[data-name=runs] th[data-key=bound] button"
    page.click(head)
    assert [row["run"] for row in table(page, "runs")] == sorted(known, key=known.get)
    page.click(head)
    assert [row["run"] for row in table(page, "runs")] == sorted(known, key=known.get, reverse=True)
    for text, kept in (
        ("objective=v", [n for n in known if "=v," in n]),
        ("objective!=v seed>1", [n for n in known if "=v," not in n and "seed=1" not in n]),
        ("SEED=2 x0", ["objective=x0,seed=2"]),
        ("seed>=2.0 seed<=2", [n for n in known if "seed=2" in n]),
        ("seed=9", []),
        ("", list(known)),
    ):
        page.type(FIELD, text)
        rows = table(page, "runs")
        assert {row["run"] for row in rows} == set(kept)
        assert all(row == before[row["run"]] and numbers(row["bound"]) == [round(known[row["run"]], 3)]
                   for row in rows)  # fmt: skip
        said = page.run(f"document.querySelector('{RUNS} output').value")
        assert said == ("" if len(kept) == 15 else f"{len(kept)} of 15 rows")
    # A setting has a property if one of its runs has it.
    page.type(FIELD.replace("=runs", "=t0"), "seed=1 objective!=v")
    assert {row["setting"] for row in table(page, "t0")} == {
        name.split("=")[1].split(",")[0] for name in known
    } - {"v"}
    page.type(FIELD.replace("=runs", "=t0"), "")
    # A table's figure is a key, too; an unknown key is named.
    page.type(FIELD, "bound<2.1")
    assert {row["run"] for row in table(page, "runs")} == {n for n in known if known[n] < 2.1}
    page.type(FIELD, "bond<2.1")
    said = page.run(f"document.querySelector('{RUNS} output').value")
    assert said == "no column or setting is named bond" and table(page, "runs") == []


def test_report_hover_and_run_page_show_run(page, small):
    known = bounds(small)
    mark = page.run(
        "(() => { const all = [...document.querySelectorAll('.headline [data-run]')];"
        " return [all.length, all[4].dataset.run]; })()"
    )
    assert mark[0] == 15
    dot = f".headline [data-run='{mark[1]}'] use"
    page.move(*page.place(dot))
    said = page.run("document.querySelector('.hover').textContent")
    name = re.search(r"objective=(\w+?),seed=(\d)", said)
    assert (
        f"test bound {known[name[1]][int(name[2])]:.3f} ± 0.018" in said
        and "objective=" + name[1] in said
    )
    page.click(dot)
    run = "document.querySelector('article.run')"
    assert page.run(f"{run}.querySelector('h2').textContent") == name[0]
    assert page.run("document.querySelector('main').hidden") and name[0] in page.run(
        "document.title"
    )
    text = page.run(f"{run}.textContent")
    for told in ("800", "train/loss", "triptych-train -m ablation=objectives", "0123456789abcdef"):
        assert told in text, told
    page.back()
    assert page.run(f"{run} === null")
    page.click(dot)
    page.click("article.run .back")
    assert page.run(f"{run} === null && !document.querySelector('main').hidden")


@pytest.mark.parametrize("chrome", [Browser, Firefox], indirect=True, ids=["chromium", "firefox"])
def test_report_link_restores_selection(chrome, small):
    chrome.open(small.html)
    chrome.choose("select[name=a]", "0:v")
    chrome.choose("select[name=b]", "0:x0")
    chrome.click("table[data-name=runs] th[data-key=bound] button")
    chrome.type(FIELD, "seed>1 objective!=v")
    chrome.click("table[data-name=runs] a")
    fragment, rows, cells = chrome.run("location.hash"), table(chrome, "runs"), table(chrome, "t0")
    title = chrome.run("document.title")
    chrome.open(small.html, fragment)
    assert (table(chrome, "runs"), table(chrome, "t0"), chrome.run("document.title")) == (
        rows,
        cells,
        title,
    )
    assert chrome.run("document.querySelectorAll('article.run').length") == 1 and len(rows) == 8
    chrome.click("article.run .back")
    assert table(chrome, "runs") == rows
    assert "x0 minus v: +0.3" in chrome.run("document.querySelector('.pair').textContent")
    # Each choice is a step back in the history; letters typed into one field are one step.
    chrome.run("document.querySelector('main').scrollIntoView()")
    chrome.click("table[data-name=runs] th[data-key=steps] button")
    chrome.type(FIELD, "seed=1")
    assert len(table(chrome, "runs")) == 5
    chrome.back()
    assert table(chrome, "runs") != rows and len(table(chrome, "runs")) == 8
    chrome.back()
    assert table(chrome, "runs") == rows
    # Unknown names are ignored.
    chrome.open(small.html, "#run=gone&runs.sort=gone&c.name=gone&c.a=gone&c.b=9:x")
    assert chrome.complaints == [] and len(table(chrome, "runs")) == 15


def test_report_first_screen_shows_means_and_differences(chrome, small):
    """The first screen has means and paired differences, on a desktop and on a phone.

    Both have their captions. A verdict fits on one line.
    """
    plots = "[...document.querySelectorAll('.headline svg')]"
    captions = "[...document.querySelectorAll('.headline figcaption')]"
    for width, height in ((1200, 900), (390, 844)):
        chrome.open(small.html, width=width, height=height)
        ends = chrome.run(f"{plots}.map(e => e.getBoundingClientRect().bottom)")
        assert len(ends) == 2 and max(ends) < height
        assert min(chrome.run(f"{captions}.map(e => e.offsetHeight)")) > 0
    shown = chrome.run(f"{plots}.map(e => e.getAttribute('aria-label'))")
    assert "levels 1.9" in shown[0] and "v worse" in shown[1] and "v +0.1" in shown[1]
    cells = "[...document.querySelectorAll('td.verdict')]"
    chrome.open(small.html)
    assert max(chrome.run(f"{cells}.map(e => e.offsetHeight)")) < 40
    assert chrome.run(f"{cells}.map(e => getComputedStyle(e).borderTopWidth)") == 5 * ["0px"]


def test_report_curves_overlay_runs_and_compare_two_settings(page, small):
    figure = '[data-figure$="of all runs"]'
    lines = f"document.querySelectorAll('{figure} g[data-run]').length"
    axis = f"[...document.querySelectorAll('{figure} text')].map(e => e.textContent)"
    assert page.run(lines) == 15 and "training step" in page.run(axis)
    path = f"document.querySelector('{figure} g[data-run] path').getAttribute('d')"
    before = page.run(path)
    page.click("input[name=logy]")
    assert page.run(path) != before
    against = "document.querySelector('select[name=x]').closest('label').hidden"
    page.choose("select[name=name]", "squared error of ε by noise level")
    assert page.run(against) and "γ = −log SNR" in page.run(axis), (
        "no curve against steps or seconds"
    )
    assert "−" in "".join(page.run(axis)) and "-" not in "".join(page.run(axis))
    page.choose("select[name=name]", "train/loss")
    assert not page.run(against)
    page.run("document.querySelector('input[name=smooth]').value = '0.9'")
    page.run("document.querySelector('input[name=smooth]').dispatchEvent(new Event('input'))")
    assert page.run("location.hash").endswith("c.logy=1&c.name=train%2Floss&c.smooth=0.9")
    page.choose("select[name=a]", "0:v")
    page.choose("select[name=b]", "0:x0")
    assert page.run(lines) == 6
    assert page.run("document.querySelectorAll('[data-name*=differs] tbody tr').length") == 2
    # A filter of runs affects every figure.
    page.type(FIELD, "seed=1")
    assert page.run(lines) == 2
    assert page.run("document.querySelectorAll('.headline [data-run].out').length") == 10


def test_report_curves_say_which_values_they_leave_out(chrome, tmp_path):
    """A chart of all runs says the same as the chart of one."""
    for seed, count in ((1, 900), (2, 2400), (3, 20)):
        run = make_run(tmp_path, "v", seed, 2.0)
        rows = [f"{step},{2 + step % 7}\n" for step in range(count)]
        (run / "metrics.csv").write_text("step,train/loss\n" + "".join(rows))
    report = write_report(tmp_path)
    charts = "[...document.querySelectorAll('.plots + .how, article .plots .how')]"
    said = {}
    for seeds in ("1", "2", "3", "1,2", "1,2,3"):
        chrome.open(report.html)
        chrome.type(FIELD, " ".join(f"seed!={seed}" for seed in "123" if seed not in seeds))
        said[seeds] = chrome.run(f"{charts}.map(e => e.textContent)")
    low, high = (re.findall(r"\d+\w+", said[seed][0])[0] for seed in "12")
    assert said == {
        "1": [f"Each {low} recorded value."],
        "2": [f"Each {high} recorded value."],
        "3": [],
        "1,2": [f"Each {low} to {high} recorded value."],
        "1,2,3": [f"Each {low} to {high} recorded value of long curves."],
    }
    chrome.open(report.html, "#run=objective%3Dv%2Cseed%3D2")
    assert chrome.run(f"{charts}.map(e => e.textContent)")[-1:] == said["2"]


def test_report_curves_beyond_the_axis_are_cut_and_name_the_range_of_their_ends(chrome, tmp_path):
    ends = {}
    for objective, bound in (("v", 2.0), ("x0", 2.1), ("levels", 2.2), ("score", 30.0)):
        for seed in (1, 2, 3):
            end = bound * (1 + seed / 100)
            ends.setdefault(objective, []).append(end)
            run = make_run(tmp_path, objective, seed, end)
            rows = f"step,val/bpd\n0,{bound + 3}\n400,{bound + 0.4}\n800,{end}\n"
            (run / "metrics.csv").write_text(rows)
    chrome.open(write_report(tmp_path).html)
    figure = '[data-figure$="of all runs"]'
    texts = chrome.run(f"[...document.querySelectorAll('{figure} text')].map(e => e.textContent)")
    low, high = min(ends["score"]), max(ends["score"])
    assert [text for text in texts if "↑" in text] == [f"{low:.4g} to {high:.4g} ↑"]
    # A far run's line leaves the frame, which hides what is outside; it does not follow the edge.
    lines = f"[...document.querySelectorAll('{figure} g[data-run]')]"
    heights = chrome.run(f"{lines}.map(e => e.getBBox().y + e.getBBox().height)")
    assert sum(height < 0 for height in heights) == 3
    assert chrome.run(
        f"{lines}.every(e => getComputedStyle(e.closest('svg')).overflow == 'hidden')"
    )


def test_report_curves_of_settings_of_one_colour_differ_by_dash(chrome, tmp_path):
    more = {f"x0 / min_snr / {k}": 2.2 + 0.013 * k for k in range(9)}
    chrome.open(write_report(sweep(tmp_path / "fourteen", TARGETS | more)).html)
    figure = '[data-figure$="of all runs"]'
    style = "getComputedStyle(e.querySelector('path'))"
    lines = f"[...document.querySelectorAll('{figure} g[data-run]')]"
    colours = chrome.run(f"{lines}.map(e => {style}.stroke)")
    looks = chrome.run(f"{lines}.map(e => {style}.stroke + ' ' + {style}.strokeDasharray)")
    assert len(set(looks)) == 14 > len(set(colours))
    assert chrome.run("document.querySelectorAll('.piece').length") == 14


def test_report_curves_have_the_dashes_of_the_figures(chrome, tmp_path):
    """The table is in the order of the results, and the figures' colours and dashes are not."""
    better = {f"x0 / min_snr / {k}": 1.2 + 0.013 * k for k in range(9)}
    chrome.open(write_report(sweep(tmp_path / "fourteen", TARGETS | better)).html)
    figure = '[data-figure$="of all runs"]'
    script, drawn = (
        chrome.run(
            f"Object.fromEntries([...document.querySelectorAll('main {lines} > path:not(.reach)')]"
            ".map(e => [e.parentNode.dataset.run, e.style.strokeDasharray]))"
        )
        for lines in (f"{figure} g[data-run]", f".panel div:not({figure}) > svg g[data-run]")
    )

    def parts(dash):
        lengths = numbers(dash)
        return [round(length / lengths[0], 2) for length in lengths]

    assert len(drawn) > 20 and drawn.keys() <= script.keys()
    assert len({*map(str, map(parts, drawn.values()))}) == 2
    for mark, dash in drawn.items():
        assert parts(script[mark]) == parts(dash), (mark, script[mark], dash)


def test_report_copy_button_copies_command(page):
    page.send(
        "Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    page.click("code.copy + .exports button")
    command = page.run("document.querySelector('code.copy').textContent")
    assert command.startswith("triptych-train ")
    assert page.run("navigator.clipboard.readText()") == command
    page.click("table[data-name=runs] a")
    again = page.run("document.querySelector('article.run code.copy').textContent")
    assert again == "triptych-train objective=epsilon seed=1"


def test_report_has_scopes_captions_and_aria_labels(page):
    page.click("table[data-name=runs] a")
    for lacking in (
        "thead th:not([scope])",
        "tbody th:not([scope])",
        "table:not(:has(caption))",
        "svg.plot:not([aria-label])",
    ):
        assert page.run(f"document.querySelectorAll({json.dumps(lacking)}).length") == 0, lacking
    captions = "[...document.querySelectorAll('article.run caption')]"
    shown = page.run(f"{captions}.map(e => getComputedStyle(e).clipPath + ' ' + e.textContent)")
    assert shown == ["none What sets this run apart", "none Provenance"]
    page.run("document.querySelector('article.run a').focus()")
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"


NASTY = [
    "<img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    'a\' "b" {{7*7}} `c`',
    "=cmd|' /C calc'!A0",
    r"50% \input{x} $y$ #1_2",
    "bell\x07 \u202e\u2028名",
]


def test_report_escapes_names_of_runs(chrome, tmp_path):
    for place, text in enumerate(NASTY):
        for seed in (1, 2):
            keys = {"overrides": [f"seed={seed}"], "choices": {"objective": text}}
            bound = 2 + place / 9 + seed / 77
            run = make_run(tmp_path / str(place), text, seed, bound, name=text, device=text, **keys)
            config = {"objective": {"name": text}, "seed": seed, "extra": text}
            (run / "config.yaml").write_text(json.dumps(config))
            more = {"packages": {"torch": text}, "executions": [{"host": text}]}
            edit(run / "provenance.json", command=NASTY, **more)
    edit(tmp_path / "sweep.json", title=NASTY[1])
    report = write_report(tmp_path)
    chrome.open(report.html)
    labels = {row["setting"] for row in table(chrome, "t0")}
    assert {text for text in NASTY if text.isprintable()} <= labels and len(labels) == len(NASTY)
    options = chrome.run(
        "[...document.querySelectorAll('#runs-settings option')].map(e => e.value)"
    )
    own = [option for option in options if option.startswith("extra=")]
    assert len(own) == len(NASTY)
    for value in own:
        # Filter by each value, and then open a run's page.
        chrome.type(FIELD, value)
        assert len(table(chrome, "runs")) == 2, value
        chrome.click("table[data-name=runs] a")
        text = chrome.run("document.querySelector('article.run').textContent")
        assert any(nasty in text for nasty in NASTY)
        chrome.click("article.run .back")
        chrome.type(FIELD, "")
    assert chrome.run("[window.pwned ?? 0, document.querySelectorAll('img').length]") == [0, 0]
    assert chrome.complaints == [] and set(chrome.requests) == {report.html.as_uri()}


def test_report_of_unfinished_sweep_shows_every_run(chrome, tmp_path):
    """Runs are running, interrupted, failed and diverged, and two data sets are never compared."""
    make_runs(tmp_path / "a", {"x0": {1: 2.42, 2: 2.44}, "v": {1: 2.12, 2: 2.14}})
    make_runs(tmp_path / "b", {"x0": {1: -0.48, 2: -0.46}}, measure="nats_per_dim", data="ring")
    running(tmp_path / "a", "score", 1)
    running(tmp_path / "a", "score", 2, updated=1.0)
    failed(tmp_path / "a", "levels", 1, "ValueError: <b>no</b>")
    fake_runs.diverged(tmp_path / "a", "levels", 2)
    edit(tmp_path / "sweep.json", expected=12)
    report = write_report(tmp_path)
    chrome.open(report.html)
    assert chrome.run("document.querySelectorAll('main table[data-of^=cells]').length") == 2
    names = [row["run"] for row in table(chrome, "runs")]
    for name in names:  # each run has a page, whatever became of it
        chrome.run(f"location.hash = new URLSearchParams({{run: {json.dumps(name)}}})")
        chrome.run("new Promise(done => setTimeout(done, 0)).then(() => 1)")
        assert chrome.run("document.querySelector('article.run h2').textContent") == name
    assert chrome.complaints == []
    # While runs go on, the page reloads and keeps its choices; a refresh by HTML would forget them.
    assert chrome.run("document.querySelector('meta[http-equiv=refresh]')") is None
    assert '<noscript><meta http-equiv="refresh"' in report.html.read_text()
    chrome.reload()
    assert chrome.run("document.querySelector('article.run h2').textContent") == names[-1]


def test_index_page_lists_status_of_all_sweeps(chrome, tmp_path, capsys):
    first = sweep(tmp_path / "sweeps" / "first", {"x0": 2.0}, seeds=(1, 2))
    edit(first / "sweep.json", expected=5)
    failed(first, "v", 1, "out of <b>memory</b>")
    (tmp_path / "sweeps" / "begun").mkdir()
    edit(tmp_path / "sweeps" / "begun" / "sweep.json", expected=2)
    make_run(tmp_path / "runs", "alone", 1, 2.0)
    running(tmp_path / "runs", "busy", 1)
    (first / "report.html").touch()
    assert cli.main([str(tmp_path)]) == 0
    assert f"Index: {tmp_path}/index.html" in capsys.readouterr().out
    rows = "[...document.querySelectorAll('tbody tr')].filter(e => e.offsetHeight).map(e => e.innerText)"
    chrome.open(tmp_path / "index.html", width=390)
    said = "\n".join(chrome.run(rows)).replace("\t", " ")
    assert "1 failed, 2 finished, 2 not started out of <b>memory</b>" in said
    assert re.search(r"sweeps/begun +2 not started", said) and "1 running" in said
    chrome.type("input", "memory first")
    assert len(chrome.run(rows)) == 1 and chrome.complaints == []
    link = chrome.run("document.querySelector('tbody tr:not([hidden]) a').href")
    assert link == (first / "report.html").as_uri()


@pytest.mark.slow
def test_report_of_many_runs_shows_first_400_rows(chrome, tmp_path):
    for seed in range(410):
        fake_runs.write_history(make_run(tmp_path, "v", seed, 2 + seed / 1000), 2.0)
    chrome.open(write_report(tmp_path).html)
    rows = "document.querySelectorAll('table[data-name=runs] tbody tr').length"
    drawn = "document.querySelectorAll('[data-figure$=\"of all runs\"] svg > path').length"
    assert chrome.run(rows) == 400
    chrome.place(RUNS)
    while not chrome.run(drawn):  # as it comes near
        chrome.rest()
    chrome.click("table[data-name=runs] th[data-key=bound] button")
    chrome.click("table[data-name=runs] th[data-key=bound] button")
    assert numbers(table(chrome, "runs")[0]["bound"]) == [2.409]
    chrome.click(f"{RUNS} output + .exports button")
    assert chrome.run(rows) == 410
    assert numbers(table(chrome, "runs")[409]["bound"]) == [2]
    chrome.type(f"{RUNS} input", "seed=409")
    assert chrome.run(rows) == 1
    assert chrome.run(f"document.querySelector('{RUNS} output + .exports button').hidden")
    assert chrome.complaints == []
