// Show a run's own page within the report, and a summary of the run under the pointer.

const byMark = new Map(data.runs.map(run => [run.mark, run]));
const byName = new Map(data.runs.map(run => [run.name, run]));
const linkTo = run => element("a", {href: state.link(run.name), "data-run": run.mark}, run.name);

function tableOf(title, head, rows, left = [0]) {
  const text = i => ({class: left.includes(i) ? "text" : "", scope: "col"});
  const cellOf = (cell, i) => element(i ? "td" : "th", i ? {class: text(i).class} : {class: text(i).class, scope: "row"}, cell);
  const table = element("table", {class: head.length === 2 ? "pairs" : "", "data-name": title},
    element("caption", {}, title),
    element("thead", {}, element("tr", {}, ...head.map((name, i) => element("th", text(i), name)))),
    element("tbody", {}, ...rows.map(row => element("tr", {}, ...row.map(cellOf)))));
  return element("section", {class: "panel"}, element("div", {class: "table"}, table));
}

// {section:cell: its colour and dash}, as in the figures.
const styles = new Map([...document.querySelectorAll("[data-ink]")].map(dot => [dot.dataset.ink, dot.dataset]));
const styleOf = run => styles.get(`${run.section}:${run.cell}`);
const inkOf = run => styleOf(run)?.colour ?? "var(--accent, #0072b2)";
const dashOf = run => styleOf(run)?.dash ?? "none";

const figureOf = (title, how, svg) => element("div", {}, element("h4", {}, title), how ? element("p", {class: "how"}, how) : null, svg);

function runPage(run) {
  const place = data.runs.indexOf(run), page = element("article", {class: "run", tabindex: -1});
  const near = [data.runs[place - 1], data.runs[place + 1]];
  page.append(element("nav", {},
    element("a", {href: state.link(""), class: "back"}, "← all runs"),
    near[0] ? element("a", {href: state.link(near[0].name), rel: "prev"}, "previous") : null,
    near[1] ? element("a", {href: state.link(near[1].name), rel: "next"}, "next") : null));
  page.append(element("h2", {}, run.name), element("p", {class: "answer small-answer"},
    run.bound ? `Test bound ${run.bound}` : "No test bound yet", " ", element("span", {class: run.status}, run.status)));
  if (run.error) page.append(element("p", {class: "failed"}, run.error));
  const facts = element("dl", {});
  for (const [what, value] of run.facts) facts.append(element("dt", {}, what), element("dd", {}, value));
  page.append(facts);
  if (run.again) page.append(element("p", {class: "next"}, "Run it again: ", element("code", {class: "copy"}, run.again)));
  if (run.bound) page.append(element("p", {class: "how"},
    "± is the standard error over the items of this run's test set; the report's own ± is over seeds."));
  if (run.curves.length) {
    const plots = element("div", {class: "plots"});
    for (const curve of run.curves) {
      const title = [curve.name, curve.unit].filter(Boolean).join(", ");
      plots.append(figureOf(title, thinningNote([curve]),
        chart([{...curve, ink: inkOf(run)}], title, curve.of, {y: curve.log})));
    }
    page.append(element("section", {class: "panel"}, element("h3", {}, "Curves"), plots));
  }
  if (Object.keys(run.own).length) page.append(tableOf("What sets this run apart", ["key", "value"], Object.entries(run.own), [0, 1]));
  page.append(tableOf("Provenance", ["what", "recorded"], run.provenance, [0, 1]));
  return page;
}

// Return a sentence on the recorded values that these curves leave out, or "".
function thinningNote(curves) {
  const all = curves.map(curve => curve.every), least = Math.min(...all.filter(every => every > 1)), most = Math.max(...all);
  if (most <= 1) return "";
  const which = least < most ? `${ordinal(least)} to ${ordinal(most)}` : ordinal(most);
  return `Each ${which} recorded value${all.includes(1) ? " of long curves" : ""}.`;
}

const ordinal = n => n + (["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th");

// Show a run's page instead of the report while the address names a run.
function route() {
  const run = byName.get(state.get("run")), report = document.querySelector("main"), old = document.querySelector("article.run");
  const title = document.body.dataset.title ??= document.title;
  hover.hide();
  old?.remove();
  if (old === null && run) document.body.dataset.scroll = scrollY;
  report.hidden = Boolean(run);
  document.title = run ? `${run.name} · ${title}` : title;
  if (!run) { if (old) scrollTo(0, Number(document.body.dataset.scroll ?? 0)); return; }
  const page = runPage(run);
  report.after(page);
  addCopies(page);
  scrollTo(0, 0);
  page.focus({preventScroll: true});
}

const hover = {
  box: element("div", {class: "hover", role: "tooltip", hidden: true}),
  hide() { hover.box.hidden = true; },
  over(event) {
    const of = event.target.closest?.("[data-run]"), run = byMark.get(of?.dataset.run);
    if (!run) return hover.hide();
    if (of.href) of.href = state.link(run.name); // tables may have changed since the link was made
    const own = Object.entries(run.own), lines = own.slice(0, 8).map(([key, value]) => `${key}=${value}`);
    if (own.length > 8) lines.push(`${own.length - 8} more settings`);
    hover.box.replaceChildren(element("strong", {}, run.name),
      element("p", {}, [run.status, run.bound && `test bound ${run.bound}`].filter(Boolean).join(", ")),
      element("p", {}, run.facts.slice(0, 4).map(([what, value]) => `${what} ${value}`).join(" · ")),
      element("ul", {}, ...lines.map(line => element("li", {}, line))));
    hover.box.hidden = false;
    const {left, bottom, top} = event.target.getBoundingClientRect(), size = hover.box.getBoundingClientRect();
    const x = Math.max(8, Math.min(event.clientX ?? left, innerWidth - size.width - 8));
    const below = bottom + 8 + size.height < innerHeight;
    hover.box.style.left = `${x}px`;
    hover.box.style.top = `${below ? bottom + 8 : Math.max(8, top - size.height - 8)}px`;
  },
};
