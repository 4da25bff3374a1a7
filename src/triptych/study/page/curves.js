// Draw the curves of all runs in one chart, and compare any two settings. The address keeps the reader's choices.

class Overlay {
  constructor() {
    this.names = [...new Set(data.runs.flatMap(run => run.curves.map(curve => curve.name)))];
    if (!this.names.length) return;
    const cells = data.sections.flatMap((section, i) => section.cells.map(cell => [`${i}:${cell.label}`, cell.label]));
    const choose = (what, label, options) => {
      const select = element("select", {name: what}, ...options.map(([value, text]) => element("option", {value}, text)));
      select.addEventListener("change", () => { state.set(`c.${what}`, select.value); this.show(); });
      return element("label", {}, label + " ", select);
    };
    const check = what => element("label", {}, element("input", {type: "checkbox", name: what, onchange: event => {
      state.set(`c.${what}`, event.target.checked ? "1" : ""); this.show(); }}), ` log ${what.at(-1)}`);
    this.smooth = element("input", {type: "range", name: "smooth", min: 0, max: 0.98, step: 0.02, value: 0, oninput: () => {
      state.set("c.smooth", this.smooth.value === "0" ? "" : this.smooth.value); this.show(); }});
    this.bar = element("div", {class: "tools", role: "group", "aria-label": "Choose curves"},
      choose("name", "Curve", this.names.map((name, i) => [i ? name : "", name])),
      this.along = choose("x", "against", [["", "steps"], ["seconds", "seconds"]]), check("logx"), check("logy"),
      element("label", {}, "smoothing ", this.smooth),
      ...(cells.length > 1 ? [choose("a", "Compare", [["", "all settings"], ...cells]), choose("b", "with", [["", "none"], ...cells])] : []));
    this.place = element("div", {});
    const part = element("section", {class: "panel"}, element("h3", {}, "Curves of all runs"), element("p", {class: "how"},
      "Choose two settings to see them side by side. Filters of the table of runs apply here too."), this.bar, this.place);
    document.querySelector("h2.runs").before(part);
    // Draw thousands of lines only when the reader scrolls near them.
    this.near = data.runs.length <= MANY;
    if (!this.near) new IntersectionObserver(([one], watch) => {
      if (one.isIntersecting) { this.near = true; watch.disconnect(); this.show(); }
    }, {rootMargin: "400px"}).observe(part);
  }

  show() {
    if (!this.near) return;
    for (const control of this.bar.querySelectorAll("[name]"))
      if (control.type === "checkbox") control.checked = Boolean(state.get(`c.${control.name}`));
      else control.value = state.get(`c.${control.name}`) || (control === this.smooth ? "0" : "");
    const name = this.names.includes(state.get("c.name")) ? state.get("c.name") : this.names[0];
    const pair = ["a", "b"].map(what => state.get(`c.${what}`)).filter(Boolean), weight = Number(this.smooth.value);
    const runs = data.runs.filter(run => !left.has(run) && (!pair.length || pair.includes(`${run.section}:${run.cell}`)));
    const seconds = state.get("c.x") === "seconds", lines = [];
    let of = "training step";
    for (const run of runs)
      for (const curve of run.curves.filter(one => one.name === name)) {
        const timed = seconds && curve.seconds?.length;
        of = timed ? "seconds of training" : curve.of;
        if (!seconds || timed || !curve.seconds)
          lines.push({x: timed ? curve.seconds : curve.x, y: smoothed(curve.y, weight), ink: inkOf(run), dash: dashOf(run),
            run: run.mark, far: run.far, label: run.name, unit: curve.unit, every: curve.every, cell: run.cell});
      }
    // A curve with its own axis, such as noise levels, has no choice of steps or seconds.
    this.along.hidden = !runs.some(run => run.curves.some(curve => curve.name === name && curve.seconds?.length));
    const title = [name, lines[0]?.unit].filter(Boolean).join(", ");
    const log = {x: state.get("c.logx"), y: state.get("c.logy") || data.runs.some(run => run.curves.some(c => c.name === name && c.log))};
    const thinned = thinningNote(lines), legend = new Map(lines.map(line => [line.cell, line]));
    this.place.replaceChildren(element("div", {class: "plots", "data-figure": `${name} of all runs`},
      lines.length ? chart(lines, title, of, log) : "No run that is shown has this curve."),
      ...(thinned ? [element("p", {class: "how"}, thinned)] : []), element("p", {class: "small"}, title + ": ", ...[...legend].flatMap(([cell, line]) =>
        [sampleOf(line), cell + " "])), ...(pair.length === 2 ? comparePair(...pair) : []));
  }
}

// Return a short piece of a line, for a legend.
function sampleOf({ink, dash}) {
  const piece = svgElement("svg", {viewBox: "0 0 26 8", class: "piece", "aria-hidden": "true"});
  piece.append(stroke("M1 4H25", ink, dash));
  return piece;
}

// Return the tested difference of two settings, and a table of what differs in their configurations.
function comparePair(...pair) {
  const known = pair.map(key => {
    const [i, label] = [Number(key.slice(0, key.indexOf(":"))), key.slice(key.indexOf(":") + 1)];
    return [i, data.sections[i]?.cells.findIndex(cell => cell.label === label) ?? -1];
  });
  const [[i, a], [j, b]] = known, parts = [];
  if (a < 0 || b < 0 || a === b && i === j) return parts;
  const section = data.sections[i], [one, other] = [section.cells[a], data.sections[j].cells[b]];
  const tested = i === j ? section.against[a]?.[b] : null;
  if (tested) parts.push(element("p", {class: "pair"},
    `${other.label} minus ${one.label}: ${tested[0]}, p ${tested[1]}. ${other.label}: ${tested[2]}.`));
  const keys = data.keys.filter(key => one.own[key] !== other.own[key]);
  parts.push(tableOf("What differs", ["key", one.label, other.label],
    keys.map(key => [key, one.own[key] ?? "none", other.own[key] ?? "none"]), [0, 1, 2]));
  return parts;
}

// Return the exponential moving average of values, in which each step back multiplies the weight by `weight`.
function smoothed(values, weight) {
  let sum = 0, total = 0;
  return values.map(value => { sum = weight * sum + value; total = weight * total + 1; return sum / total; });
}
