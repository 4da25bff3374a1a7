// Tables as CSV: what is shown is what is saved, under the report's name. Figures: triptych-report --figures.

function save(table) {
  const url = URL.createObjectURL(new Blob([asCsv(table)], {type: "text/csv"}));
  const name = fileName(table.dataset.title ?? table.dataset.name);
  element("a", {href: url, download: `${name}.csv`}).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const fileName = text => `${document.querySelector("h1").textContent} ${text}`.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 80) || "report";
const button = (text, title, onclick) => element("button", {type: "button", title, onclick}, text);

const exportsOf = table => element("span", {class: "exports"}, button("CSV", "Save as CSV, in full precision", () => save(table)));

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
  const head = [...table.tHead.rows[0].cells], rows = table.kept ?? [...table.tBodies[0].rows];
  const more = head.map((_, i) => ["e", "low", "high"].filter(what => rows.some(row => row.cells[i]?.dataset[what])));
  const titles = {e: "standard error", low: "low", high: "high"};
  const lines = [head.flatMap((cell, k) => [words(cell), ...more[k].map(what => `${words(cell)}, ${titles[what]}`)])];
  for (const row of rows)
    lines.push(head.flatMap((_, i) => [row.cells[i].dataset.v ?? words(row.cells[i]), ...more[i].map(what => row.cells[i].dataset[what] ?? "")]));
  return lines.map(line => line.map(csvCell).join(",")).join("\n") + "\n";
}
