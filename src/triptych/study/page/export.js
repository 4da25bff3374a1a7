// Tables as CSV and figures as SVG: what is shown is what is saved, under the report's name.

function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], {type}));
  element("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const fileName = text => `${document.querySelector("h1").textContent} ${text}`.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 80) || "report";
const button = (text, title, onclick) => element("button", {type: "button", title, onclick}, text);

const exportsOf = table => element("span", {class: "exports"}, button("CSV", "Save as CSV, in full precision",
  () => save(`${fileName(table.dataset.title ?? table.dataset.name ?? "table")}.csv`, asCsv(table), "text/csv")));

// What a cell says, without the links that are beside it.
const words = cell => [...cell.childNodes].filter(part => part.nodeName !== "SMALL").map(part => part.textContent)
  .join("").replace(/\s+/g, " ").trim();

// What a spreadsheet would take for a formula has an apostrophe in front, as in results.csv.
function csvCell(text) {
  const safe = /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text) && !numeric(text) ? "'" + text : text;
  return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// A figure as it was computed, not as it is rounded; its standard error in a column of its own.
function asCsv(table) {
  const head = [...table.tHead.rows[0].cells].filter(cell => !cell.hidden);
  const rows = [...table.tBodies[0].rows];
  const places = head.map(cell => [...table.tHead.rows[0].cells].indexOf(cell));
  const more = places.map(i => ["e", "low", "high"].filter(what => rows.some(row => row.cells[i]?.dataset[what])));
  const titles = {e: "standard error", low: "95% low", high: "95% high"};
  const lines = [head.flatMap((cell, k) => [words(cell), ...more[k].map(what => `${words(cell)}, ${titles[what]}`)])];
  for (const row of rows)
    lines.push(places.flatMap((i, k) => [row.cells[i]?.dataset.v ?? words(row.cells[i]),
      ...more[k].map(what => row.cells[i]?.dataset[what] ?? "")]));
  return lines.map(line => line.map(csvCell).join(",")).join("\n") + "\n";
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
  return text;
}

// Beside each figure of a part of the page.
function addExports(part) {
  for (const place of part.querySelectorAll("[data-figure]")) {
    const svg = place.querySelector("svg"), name = fileName(place.dataset.figure);
    if (!svg?.getAttribute("viewBox")) continue;
    place.append(element("div", {class: "exports figure"},
      button("SVG", "Save this figure as SVG", () => save(`${name}.svg`, standalone(svg), "image/svg+xml"))));
  }
}
