// Tables one can work in: sort, filter, hide columns, show settings as columns.

const OWN = "own:"; // before the key of a column that shows a setting

class Worktable {
  constructor(table) {
    this.table = table;
    this.name = table.dataset.name;
    this.head = table.tHead.rows[0];
    this.rows = [...table.tBodies[0].rows];
    const [kind, section] = (table.dataset.of ?? "").split(":");
    this.section = kind === "cells" ? data.sections[section] : null;
    this.items = kind === "cells" ? this.section.cells : kind === "runs" ? data.runs : null;
    this.keys = this.items ? data.keys.filter(key => new Set(this.items.map(item => item.own[key])).size > 1) : [];
    for (const cell of this.head.cells) this.sortable(cell);
    this.tools();
  }

  get(what) { return state.get(`${this.name}.${what}`); }
  set(what, value) { state.set(`${this.name}.${what}`, value); this.show(); }
  list(what) { return this.get(what).split(",").filter(Boolean); }

  // what a row is of, by the number that the page gave it
  item(row) { return this.items?.[row.dataset.item]; }
  place(key) { return [...this.head.cells].findIndex(cell => cell.dataset.key === key); }

  sortable(cell) {
    const key = cell.dataset.key;
    if (!key) return;
    const button = element("button", {type: "button", title: "Sort by this column", onclick: () => {
      this.set("sort", this.get("sort") === key ? "-" + key : key);
    }});
    button.append(...cell.childNodes);
    cell.append(button);
  }

  tools() {
    const bar = element("div", {class: "tools", role: "group", "aria-label": "Work with this table"});
    const labelled = (text, control) => element("label", {}, text + " ", control);
    if (this.items) {
      this.filter = element("input", {type: "search", size: 22, placeholder: "text, or key=value",
        title: "Rows that have every word; key=value, key!=value, key<value and key>value ask for a setting"});
      this.filter.addEventListener("input", () => this.set("filter", this.filter.value));
      bar.append(labelled("Filter", this.filter));
      const pairs = this.keys.flatMap(key => [...new Set(this.items.map(item => item.own[key] ?? "none"))].slice(0, 60)
        .map(value => `${key}=${/[\s"]/.test(value) ? JSON.stringify(value) : value}`));
      const list = element("datalist", {id: `${this.name}-settings`}, ...pairs.map(value => element("option", {value})));
      this.filter.setAttribute("list", list.id);
      bar.append(list);
    }
    this.boxes = new Map();
    const columns = [...this.head.cells].slice(1).filter(cell => cell.dataset.key)
      .map(cell => [cell.dataset.key, cell.textContent]);
    const settings = this.keys.filter(key => this.place(OWN + key) < 0).map(key => [OWN + key, key]);
    const menu = element("div", {class: "menu"});
    for (const [key, text] of [...columns, ...settings]) {
      const box = element("input", {type: "checkbox", value: key, onchange: () => {
        const what = key.startsWith(OWN) ? "show" : "hide", named = key.replace(OWN, "");
        const rest = this.list(what).filter(other => other !== named);
        this.set(what, (box.checked === (what === "show") ? [...rest, named] : rest).join(","));
      }});
      this.boxes.set(key, box);
      menu.append(element("label", {}, box, " " + text));
    }
    if (this.boxes.size) bar.append(element("details", {class: "drop"}, element("summary", {}, "Columns"), menu));
    bar.append(exportsOf(this.table));
    this.count = element("output", {class: "count"});
    bar.append(this.count);
    this.table.closest(".table").before(bar);
  }

  // Everything that was chosen, shown; other tables' figures follow by `dim`.
  show() {
    this.columns();
    const [test, unknown] = wanted(this.get("filter"), this);
    this.kept = this.rows.filter(test);
    this.table.tBodies[0].replaceChildren(...this.sorted(this.kept));
    if (this.filter && this.filter.value !== this.get("filter")) this.filter.value = this.get("filter");
    this.count.value = unknown.length ? `no column or setting is named ${unknown.join(", ")}`
      : this.kept.length < this.rows.length ? `${this.kept.length} of ${this.rows.length} rows` : "";
    dim();
  }

  // the runs of rows that a filter leaves out
  out() {
    const left = this.items ? this.rows.filter(row => !this.kept.includes(row)).map(row => this.item(row)) : [];
    return this.section ? left.flatMap(cell => cell.runs.map(i => data.runs[i])) : left;
  }

  value(row, i) {
    const cell = row.cells[i], text = cell ? words(cell) : "", value = cell?.dataset.v ?? text.replace(/,/g, "");
    return numeric(value) ? Number(value) : ["", "–"].includes(text) ? null : text;
  }

  sorted(rows) {
    const sort = this.get("sort"), key = sort.replace(/^-/, ""), up = !sort.startsWith("-"), i = this.place(key);
    for (const cell of this.head.cells) cell.removeAttribute("aria-sort");
    if (i < 0) return rows;
    this.head.cells[i].setAttribute("aria-sort", up ? "ascending" : "descending");
    // numbers before words, and what is not known last, either way up
    const rank = value => value === null ? 2 : typeof value === "number" ? 0 : 1;
    return rows.map(row => [this.value(row, i), row]).sort(([a], [b]) =>
      rank(a) - rank(b) || (a === null ? 0 : (up ? 1 : -1) * inOrder(a, b))).map(([, row]) => row);
  }

  columns() {
    for (const key of this.list("show").filter(key => this.keys.includes(key) && this.place(OWN + key) < 0)) {
      const cell = element("th", {class: "text", "data-key": OWN + key}, key);
      this.head.append(cell);
      this.sortable(cell);
      for (const row of this.rows) row.append(element("td", {class: "text"}, this.item(row)?.own[key] ?? "none"));
    }
    const hidden = this.list("hide"), shown = this.list("show");
    [...this.head.cells].forEach((head, i) => {
      const key = head.dataset.key ?? "";
      const hide = key.startsWith(OWN) ? !shown.includes(key.replace(OWN, "")) : i > 0 && hidden.includes(key);
      head.hidden = hide;
      for (const row of this.rows) if (row.cells[i]) row.cells[i].hidden = hide;
    });
    for (const [key, box] of this.boxes)
      box.checked = key.startsWith(OWN) ? shown.includes(key.replace(OWN, "")) : !hidden.includes(key);
  }
}

// Whether a row is asked for, and the keys that nothing has: by each word of a text that it shows, and by each
// key=value of its settings, or of its columns.
function wanted(text, table) {
  const unknown = [];
  const asked = [...text.matchAll(/([\w./@-]+)(!=|=|<|>)("(?:[^"\\]|\\.)*"|\S*)|\S+/g)].map(([word, key, sign, value]) => {
    const shown = row => row.textContent.toLowerCase().includes(word.toLowerCase());
    if (key === undefined) return shown;
    const plain = value.startsWith('"') ? unquoted(value) : value;
    const known = data.keys.includes(key) ? [key] : data.keys.filter(other => other.endsWith("." + key));
    if (known.length) return row => known.some(one => holds(table.item(row)?.own[one] ?? "none", sign, plain));
    if (table.place(key) >= 0) return row => holds(String(table.value(row, table.place(key)) ?? ""), sign, plain);
    if (!table.rows.some(shown)) unknown.push(key);
    return shown;
  });
  return [row => asked.every(test => test(row)), unknown];
}

function unquoted(text) {
  try { return JSON.parse(text); } catch { return text.replaceAll('"', ""); }
}

function holds(own, sign, value) {
  if (sign === "=") return own === value;
  if (sign === "!=") return own !== value;
  if (!numeric(own) || !numeric(value)) return false;
  return sign === "<" ? Number(own) < Number(value) : Number(own) > Number(value);
}
