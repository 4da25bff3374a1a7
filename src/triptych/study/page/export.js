// Tables as CSV, Markdown and LaTeX, figures as SVG and PNG: what is shown is what is saved.

function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], {type}));
  element("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const fileName = text => text.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "report";
const button = (text, title, onclick) => element("button", {type: "button", title, onclick}, text);

function exportsOf(table) {
  const named = ending => `${fileName(table.dataset.title ?? table.dataset.name ?? "table")}.${ending}`;
  return element("span", {class: "exports"},
    button("CSV", "Save as CSV, in full precision", () => save(named("csv"), asCsv(table), "text/csv")),
    button("Markdown", "Save as Markdown", () => save(named("md"), asMarkdown(table), "text/markdown")),
    button("LaTeX", "Save as LaTeX (booktabs)", () => save(named("tex"), asLatex(table), "application/x-tex")));
}

// Rows of the cells that are shown; a group's heading is one cell.
function shownCells(table) {
  return [...table.rows].map(row => [...row.cells].filter(cell => !cell.hidden));
}

const words = cell => cell.textContent.replace(/\s+/g, " ").trim();

// What a spreadsheet would take for a formula has an apostrophe in front, as in results.csv.
function csvCell(text) {
  const safe = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) && !numeric(text) ? "'" + text : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// A figure as it was computed, not as it is rounded; its standard error in a column of its own.
function asCsv(table) {
  const head = [...table.tHead.rows[0].cells].filter(cell => !cell.hidden);
  const rows = [...table.tBodies[0].rows].filter(row => !row.classList.contains("group"));
  const places = head.map(cell => [...table.tHead.rows[0].cells].indexOf(cell));
  const more = places.map(i => ["e", "low", "high"].filter(what => rows.some(row => row.cells[i]?.dataset[what])));
  const titles = {e: "standard error", low: "95% low", high: "95% high"};
  const lines = [head.flatMap((cell, k) => [words(cell), ...more[k].map(what => `${words(cell)}, ${titles[what]}`)])];
  for (const row of rows)
    lines.push(places.flatMap((i, k) => [row.cells[i]?.dataset.v ?? words(row.cells[i]),
      ...more[k].map(what => row.cells[i]?.dataset[what] ?? "")]));
  return lines.map(line => line.map(csvCell).join(",")).join("\n") + "\n";
}

function asMarkdown(table) {
  const [head, ...rows] = shownCells(table);
  const safe = text => text.replace(/[\\`*_|<>[\]#]/g, found => ({"<": "&lt;", ">": "&gt;"})[found] ?? "\\" + found);
  const line = texts => `| ${texts.join(" | ")} |`;
  const rule = head.map(cell => cell.classList.contains("text") || cell === head[0] ? "---" : "---:");
  const body = rows.map(cells => cells.length < head.length && cells[0]?.colSpan > 1
    ? line([`**${safe(words(cells[0]))}**`, ...Array(head.length - 1).fill("")]) : line(cells.map(cell => safe(words(cell)))));
  return [line(head.map(cell => safe(words(cell)))), line(rule), ...body].join("\n") + "\n";
}

const TEX = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "±": "$\\pm$", "−": "$-$",
  "∞": "$\\infty$", "–": "--", "×": "$\\times$", "·": "$\\cdot$", "<": "$<$", ">": "$>$", "|": "$|$", "ε": "$\\varepsilon$",
  "γ": "$\\gamma$", "→": "$\\to$", "…": "\\dots{}"};

function asLatex(table) {
  const [head, ...rows] = shownCells(table);
  const safe = text => text.replace(/[\\~^±−∞–×·<>|εγ→…&%$#_{}]/g, found => TEX[found] ?? "\\" + found);
  const columns = head.map(cell => cell.classList.contains("text") || cell === head[0] ? "l" : "r").join("");
  const line = cells => cells.map(cell => safe(words(cell))).map(text => text.startsWith("[") ? `{}${text}` : text).join(" & ") + " \\\\";
  const body = rows.map(cells => cells.length < head.length && cells[0]?.colSpan > 1
    ? `\\multicolumn{${head.length}}{l}{\\emph{${safe(words(cells[0]))}}} \\\\` : line(cells));
  return ["% \\usepackage{booktabs}", `\\begin{tabular}{${columns}}`, "\\toprule", line(head), "\\midrule", ...body,
    "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
}

// A figure by itself: colours of the light page in place of the page's variables, and a size of its own.
function standalone(svg) {
  const [, , width, height] = svg.getAttribute("viewBox").split(/[\s,]+/).map(Number);
  const copy = svg.cloneNode(true);
  copy.querySelectorAll(".reach").forEach(part => part.remove());
  for (const name of ["style", "class", "aria-label"]) copy.removeAttribute(name);
  copy.setAttribute("width", width); copy.setAttribute("height", height);
  const text = new XMLSerializer().serializeToString(copy)
    .replace(/var\(--font, ?sans-serif\)/g, "DejaVu Sans, Arial, sans-serif").replace(/var\(--[\w-]+, ?([^()]+)\)/g, "$1");
  return {text, width, height};
}

function savePng(svg, name) {
  const {text, width, height} = standalone(svg), scale = Math.max(2, Math.ceil(1600 / width)), picture = new Image();
  picture.onload = () => {
    const canvas = element("canvas", {width: Math.round(width * scale), height: Math.round(height * scale)});
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
    canvas.toBlob(blob => save(name, blob), "image/png");
  };
  picture.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

// Beside each figure of a part of the page.
function addExports(part) {
  for (const place of part.querySelectorAll("[data-figure]")) {
    const svg = place.querySelector("svg"), name = fileName(place.dataset.figure);
    if (!svg?.getAttribute("viewBox")) continue;
    place.append(element("div", {class: "exports figure"},
      button("SVG", "Save this figure as SVG", () => save(`${name}.svg`, standalone(svg).text, "image/svg+xml")),
      button("PNG", "Save this figure as PNG", () => savePng(svg, `${name}.png`))));
  }
}
