// Draw curves of runs, that is recorded values, on linear or logarithmic axes.

const SVG = "http://www.w3.org/2000/svg";

function svgElement(tag, properties, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const stroke = (d, ink, dash = "none") =>
  svgElement("path", {d, style: `fill: none; stroke-width: 1.6; stroke: ${ink}; stroke-dasharray: ${dash}`});

function ticks(low, high, most = 5) {
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(width => width >= rough);
  const places = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) places.push(k * step);
  return places;
}

const plain = value => {
  const size = Math.abs(value), short = size && (size >= 1e5 || size < 1e-3);
  const text = short ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(4)));
  return text.replaceAll("-", "−");
};

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  return low < high ? [low, high] : [low - (Math.abs(low) || 1) / 20, high + (Math.abs(high) || 1) / 20];
}

// lines: {x, y, ink, dash, run, far}; the last is on top. More than MANY lines share one path per colour and dash.
// log: {x, y}, whether each axis is logarithmic. On a linear axis, far lines do not set the limits: they are cut at
// the edge, and their last values are written beside it.
function chart(lines, name, of, log = {}) {
  const width = 460, height = 250, box = {left: 62, right: 446, top: 12, bottom: 208};
  const shown = lines.map(line => ({...line, points: line.x.map((x, i) => [x, line.y[i]])
    .filter(([x, y]) => (!log.x || x > 0) && (!log.y || y > 0))}));
  const axis = (k, start, end) => {
    const to = log["xy"[k]] ? Math.log10 : value => value;
    const near = shown.filter(line => !line.far);  // they set the limits, if they are of two or more settings
    const held = k && !log.y && new Set(near.map(line => line.ink)).size > 1 ? near : [];
    let [low, high] = extent((held.length ? held : shown).flatMap(line => line.points.map(point => to(point[k]))));
    if (k) [low, high] = [low - 0.04 * (high - low), high + 0.04 * (high - low)];
    const at = to === Math.log10 ? high - low > 1.5 ? ticks(Math.ceil(low), high, high - low).map(power => 10 ** power)
      : ticks(10 ** low, 10 ** high) : ticks(low, high);
    // Clip places far beyond the axis, as browsers draw no line to a place that is very far away.
    return [value => start + Math.max(-999, Math.min(999, (to(value) - low) / (high - low))) * (end - start), at];
  };
  const [px, across] = axis(0, box.left, box.right), [py, up] = axis(1, box.bottom, box.top);
  const font = "font: 12px var(--font, sans-serif); fill: var(--muted, #68707c)";
  const last = lines.filter(line => line.y.length).map(line => `${line.label ?? ""} ${plain(line.y.at(-1))}`.trim());
  const about = `${name} by ${of}; last values: ${last.slice(0, 40).join(", ")}`;
  const svg = svgElement("svg", {viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": about});
  for (const at of up)
    svg.append(svgElement("path", {d: `M${box.left} ${py(at)}H${box.right}`, style: "stroke: var(--grid, #e2e5ea)"}),
      svgElement("text", {x: box.left - 7, y: py(at) + 4, "text-anchor": "end", style: font}, plain(at)));
  for (const at of across)
    svg.append(svgElement("text", {x: px(at), y: box.bottom + 18, "text-anchor": "middle", style: font}, plain(at)));
  svg.append(svgElement("path", {d: `M${box.left} ${box.bottom}H${box.right}`, style: "stroke: var(--muted, #68707c)"}),
    svgElement("text", {x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle", style: font}, of));
  // The inner svg clips the lines at the edges of the frame.
  const inner = {y: box.top, width, height: box.bottom - box.top};
  const frame = svgElement("svg", {...inner, viewBox: `0 ${inner.y} ${width} ${inner.height}`});
  svg.append(frame);
  const merged = new Map();
  for (const {points, ink, dash, run} of shown) {
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    if (shown.length > MANY) {
      const alike = `${ink}/${dash}`;
      merged.set(alike, {ink, dash, d: (merged.get(alike)?.d ?? "") + d});
      continue;
    }
    const group = svgElement("g", run ? {"data-run": run} : {});
    group.append(stroke(d, ink, dash));
    if (!run && points.length < 40)
      for (const [x, y] of points) {
        const dot = svgElement("circle", {cx: px(x).toFixed(1), cy: py(y).toFixed(1), r: 2.6, style: `fill: ${ink}`});
        dot.append(svgElement("title", {}, `${plain(x)}: ${plain(y)}`));
        group.append(dot);
      }
    frame.append(group);
  }
  for (const {ink, dash, d} of merged.values()) frame.append(stroke(d, ink, dash));
  let y = box.top;
  for (const {ink, arrow, values} of endsBeyond(shown, value => py(value) < box.top ? "↑" : py(value) > box.bottom ? "↓" : "")) {
    y += 14;
    const range = [...new Set([Math.min(...values), Math.max(...values)].map(plain))].join(" to ");
    svg.append(svgElement("text", {x: box.right, y, "text-anchor": "end", style: `${font}; fill: ${ink}`}, `${range} ${arrow}`));
  }
  return svg;
}

// Return the last values of lines that end beyond an edge, grouped by colour and edge.
function endsBeyond(lines, arrowOf) {
  const ends = new Map();
  for (const {ink, points} of lines) {
    const value = points.at(-1)?.[1], arrow = value === undefined ? "" : arrowOf(value);
    if (!arrow) continue;
    const key = `${ink} ${arrow}`;
    if (!ends.has(key)) ends.set(key, {ink, arrow, values: []});
    ends.get(key).values.push(value);
  }
  return ends.values();
}
