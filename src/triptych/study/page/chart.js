// A curve of one run: recorded values on straight axes, or a logarithmic one; nothing is smoothed.

const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, properties, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high, most = 5) {
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(times => times * power).find(width => width >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

const plain = value => {
  const size = Math.abs(value);
  return size && (size >= 1e5 || size < 1e-3) ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(4)));
};

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
  return low < high ? [low, high] : [low - (Math.abs(low) || 1) / 20, high + (Math.abs(high) || 1) / 20];
}

function chart(curve, ink, behind = []) {
  const width = 460, height = 250, box = {left: 62, right: 446, top: 12, bottom: 208};
  const to = curve.log ? Math.log10 : value => value;
  const lines = [...behind.map(other => [other, true]), [curve, false]];
  const [left, right] = extent(lines.flatMap(([line]) => line.x));
  let [low, high] = extent(lines.flatMap(([line]) => line.y.filter(y => !curve.log || y > 0).map(to)));
  [low, high] = [low - 0.04 * (high - low), high + 0.04 * (high - low)];
  const px = x => box.left + (x - left) / (right - left) * (box.right - box.left);
  const py = y => box.bottom - (to(y) - low) / (high - low) * (box.bottom - box.top);
  const font = "font: 12px var(--font, sans-serif); fill: var(--muted, #68707c)";
  const svg = drawn("svg", {viewBox: `0 0 ${width} ${height}`, class: "plot", role: "img", "aria-label": curve.name});
  for (const at of ticks(low, high)) {
    const y = box.bottom - (at - low) / (high - low) * (box.bottom - box.top), value = curve.log ? 10 ** at : at;
    svg.append(drawn("path", {d: `M${box.left} ${y}H${box.right}`, style: "stroke: var(--grid, #e2e5ea)"}),
      drawn("text", {x: box.left - 7, y: y + 4, "text-anchor": "end", style: font}, plain(value)));
  }
  for (const at of ticks(left, right))
    svg.append(drawn("text", {x: px(at), y: box.bottom + 18, "text-anchor": "middle", style: font}, plain(at)));
  svg.append(drawn("path", {d: `M${box.left} ${box.bottom}H${box.right}`, style: "stroke: var(--muted, #68707c)"}),
    drawn("text", {x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle", style: font}, curve.of));
  for (const [line, faint] of lines) {
    const points = line.x.map((x, i) => [x, line.y[i]]).filter(([, y]) => !curve.log || y > 0);
    const d = points.map(([x, y], i) => `${i ? "L" : "M"}${px(x).toFixed(1)} ${py(y).toFixed(1)}`).join("");
    svg.append(drawn("path", {d, style: `fill: none; stroke-width: ${faint ? 1 : 1.8}; stroke: ${faint ? "var(--muted, #68707c)" : ink}; opacity: ${faint ? 0.4 : 1}`}));
    if (!faint && points.length < 40)
      for (const [x, y] of points) {
        const dot = drawn("circle", {cx: px(x).toFixed(1), cy: py(y).toFixed(1), r: 2.6, style: `fill: ${ink}`});
        dot.append(drawn("title", {}, `${plain(x)}: ${plain(y)}`));
        svg.append(dot);
      }
  }
  return svg;
}
