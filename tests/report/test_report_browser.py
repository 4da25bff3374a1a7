"""The page in a real browser: it lays out, nothing runs over, its tables sort."""

import html
import json
import re
import shutil
import subprocess

import pytest

from triptych.report.render import write_report

from .fake_runs import sweep

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
PROBE = """<script>addEventListener("load", () => {
  const overlaps = [];
  document.querySelectorAll("svg.plot").forEach((svg, k) => {
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      const w = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const h = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (w > 1 && h > 0.35 * Math.min(p.height, q.height)) overlaps.push(k + ": " + a + " | " + b); }));
  });
  const first = () => document.querySelector("table.sortable tbody th").textContent;
  const button = document.querySelectorAll("table.sortable th button")[2];
  button.click(); const up = first(); button.click(); const down = first();
  const wide = document.documentElement.scrollWidth;
  document.title = JSON.stringify({overlaps, wide, screen: innerWidth, up, down});
});</script></body>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH"),
]


def browse(page, tmp_path, width, *what):
    profile = tmp_path / f"profile{width}{len(what[0])}"
    command = [
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},4000",
        *what,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("cells", [5, 12])
@pytest.mark.parametrize("width", [500, 1200])  # headless chromium is never narrower than 500 px
def test_page_in_a_browser(tmp_path, cells, width):
    targets = {"levels": 1.90, "v": 2.09, "epsilon": 2.14, "score": 2.50, "x0": 2.45}
    targets |= {f"x0 / min_snr / {k}": 2.2 + 0.013 * k for k in range(cells - 5)}
    report = write_report(sweep(tmp_path / "objectives", targets))
    probe = tmp_path / "probe.html"
    probe.write_text(report.html.read_text().replace("</body>", PROBE))
    dom = browse(probe, tmp_path, width, "--dump-dom").stdout
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL).group(1)))
    assert not found["overlaps"]
    assert found["wide"] <= found["screen"] + 1
    assert (found["up"].strip(), found["down"].strip()) == ("levels", "score")


def test_screenshot(tmp_path):
    report = write_report(sweep(tmp_path / "objectives"))
    browse(report.html, tmp_path, 1200, f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 100_000
