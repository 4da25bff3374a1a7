// Make the HTML page interactive. Without this script the whole page can still be read.

for (const cell of document.querySelectorAll("td[data-seeds]")) {
  const [section, item] = cell.dataset.seeds.split(":"), runs = data.sections[section].cells[item].runs.map(i => data.runs[i]);
  runs.sort((a, b) => a.own.seed - b.own.seed);
  const link = run => { const made = linkTo(run); made.textContent = run.own.seed ?? "run"; made.title = ""; return made; };
  if (runs.length <= 12) cell.append(element("small", {}, ...runs.flatMap((run, i) => [i ? " " : "", link(run)])));
}
// Thin lines are hard to point at, so lay a broad transparent line over each.
for (const line of document.querySelectorAll("svg g[data-run] > path")) {
  const broad = line.cloneNode();
  broad.setAttribute("class", "reach");
  broad.setAttribute("style", "fill: none; stroke: transparent; stroke-width: 9");
  line.after(broad);
}
function addCopies(part) {
  for (const code of part.querySelectorAll("code.copy")) {
    const copy = button("Copy", "Copy this command", async () => {
      try { await navigator.clipboard.writeText(code.textContent); copy.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(code); copy.textContent = "Selected"; }
    });
    code.after(" ", element("span", {class: "exports"}, copy));
  }
}
// In every figure, fade the runs that a table's filter leaves out.
const left = new Set();
function dim() {
  left.clear();
  for (const table of tables) if (table.kept) for (const run of table.excludedRuns()) left.add(run);
  for (const part of document.querySelectorAll("main svg [data-run]")) part.classList.toggle("out", left.has(byMark.get(part.dataset.run)));
  overlay.show();
}
const overlay = new Overlay();
const tables = [...document.querySelectorAll("main table.sortable")].map(table => new Worktable(table));
addCopies(document);
document.body.append(hover.box);
for (const name of ["pointerover", "focusin"]) document.addEventListener(name, hover.over);
document.addEventListener("keydown", event => { if (event.key === "Escape") hover.hide(); });
document.addEventListener("click", event => {
  const run = byMark.get(event.target.closest?.("svg [data-run]")?.dataset.run);
  if (run) location.hash = state.link(run.name).slice(1);
});
function restore() {
  for (const table of tables) table.show();
  dim();
  for (const link of document.querySelectorAll("main a[data-run]")) link.href = state.link(byMark.get(link.dataset.run).name);
  route();
}
addEventListener("hashchange", restore);
restore();
// While runs go on, reload the page to show the newest report, but not while the reader uses a control.
if (data.running) setInterval(() => {
  if (!document.activeElement?.matches("input, select")) location.reload();
}, 30_000);
