// Make tables sortable and filterable. Of a long table only the first rows are shown, and all on request.

class Worktable {
  constructor(table) {
    this.table = table;
    this.name = table.dataset.name;
    this.head = table.tHead.rows[0];
    this.rows = [...table.tBodies[0].rows, ...table.querySelector("template")?.content.querySelectorAll("tr") ?? []];
    const [kind, section] = (table.dataset.of ?? "").split(":");
    this.section = kind === "cells" ? data.sections[section] : null;
    this.items = kind === "cells" ? this.section.cells : kind === "runs" ? data.runs : null;
    for (const cell of this.head.cells) this.sortable(cell);
    this.tools();
  }

  get(what) { return state.get(`${this.name}.${what}`); }
  set(what, value) { state.set(`${this.name}.${what}`, value); this.show(); dim(); }

  // Return the run or cell of a row, by the number that the page gave the row.
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
    if (this.items) {
      this.filter = element("input", {type: "search", size: 22, placeholder: "text, or key=value",
        title: "Rows that have every word; key=value, key!=value, key<value, key>=value ... ask for a setting"});
      this.filter.addEventListener("input", () => this.set("filter", this.filter.value));
      bar.append(element("label", {}, "Filter ", this.filter));
      const pairs = data.keys.flatMap(key => [...new Set(this.items.map(item => item.own[key] ?? "none"))].slice(0, 60)
        .map(value => `${key}=${/[\s"]/.test(value) ? JSON.stringify(value) : value}`));
      const list = element("datalist", {id: `${this.name}-settings`}, ...pairs.map(value => element("option", {value})));
      this.filter.setAttribute("list", list.id);
      bar.append(list);
    }
    this.count = element("output", {class: "count"});
    this.more = button("", "", () => { this.all = true; this.show(); });
    bar.append(this.count, element("span", {class: "exports"}, this.more));
    if (this.items || this.rows.length > MANY) this.table.closest(".table").before(bar);
  }

  // Show the rows by the chosen filter and order; `dim` updates the figures.
  show() {
    const [test, unknown] = parseFilter(this.get("filter"), this);
    this.kept = this.sorted(this.rows.filter(test));
    const shown = this.all ? this.kept : this.kept.slice(0, MANY);
    for (const row of shown) {
      const head = row.querySelector("[data-item-run]:not(:has(a))");
      if (head) head.replaceChildren(linkTo(data.runs[head.dataset.itemRun]));
    }
    this.table.tBodies[0].replaceChildren(...shown);
    this.more.hidden = shown.length === this.kept.length;
    this.more.textContent = `Show all ${this.kept.length} rows, not ${MANY}`;
    if (this.filter && this.filter.value !== this.get("filter")) this.filter.value = this.get("filter");
    this.count.value = unknown.length ? `no column or setting is named ${unknown.join(", ")}`
      : this.kept.length < this.rows.length ? `${this.kept.length} of ${this.rows.length} rows` : "";
  }

  // Return the runs of all rows that the filter leaves out.
  excludedRuns() {
    const kept = new Set(this.kept), left = this.items ? this.rows.filter(row => !kept.has(row)).map(row => this.item(row)) : [];
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
    // In both directions, numbers come before texts, and unknown values last.
    const rank = value => value === null ? 2 : typeof value === "number" ? 0 : 1;
    return rows.map(row => [this.value(row, i), row]).sort(([a], [b]) =>
      rank(a) - rank(b) || (a === null ? 0 : (up ? 1 : -1) * compareValues(a, b))).map(([, row]) => row);
  }
}

// Parse a filter's text into a test of a row, and a list of keys that no column or setting has.
// A row passes if it shows every word, and if its settings or columns satisfy every key=value.
function parseFilter(text, table) {
  const unknown = [];
  const terms = [...text.matchAll(/([\w./@-]+)(!=|<=|>=|=|<|>)("(?:[^"\\]|\\.)*"|\S*)|\S+/g)].map(([word, key, sign, value]) => {
    const shown = row => row.textContent.toLowerCase().includes(word.toLowerCase());
    if (key === undefined) return shown;
    const plain = value.startsWith('"') ? unquoted(value) : value;
    const known = data.keys.includes(key) ? [key] : data.keys.filter(other => other.endsWith("." + key));
    if (known.length) return row => known.some(one => satisfies(table.item(row)?.own[one] ?? "none", sign, plain));
    if (table.place(key) >= 0) return row => satisfies(String(table.value(row, table.place(key)) ?? ""), sign, plain);
    if (!table.rows.some(shown)) unknown.push(key);
    return shown;
  });
  return [row => terms.every(test => test(row)), unknown];
}

function unquoted(text) {
  try { return JSON.parse(text); } catch { return text.replaceAll('"', ""); }
}

const COMPARED = {"<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b};

// Return whether a value satisfies the comparison; for a row of several runs, whether any of its values does.
function satisfies(own, sign, value) {
  if (sign === "!=") return !satisfies(own, "=", value);
  return [own, ...own.split(", ")].some(one => numeric(one) && numeric(value)
    ? (COMPARED[sign] ?? ((a, b) => a === b))(Number(one), Number(value)) : sign === "=" && one === value);
}
