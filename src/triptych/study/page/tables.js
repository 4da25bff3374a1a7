// Tables one can work in: sort, filter, group, hide columns, choose what differences are taken to.
// A figure that is shown was computed before the page was written; here it is only chosen.

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
    this.caption = [...this.head.cells].find(cell => cell.dataset.key === "difference")?.textContent;
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
      if (this.keys.length) {
        this.where = element("select", {"aria-label": "Filter by a setting"}, element("option", {value: ""}, "where …"));
        for (const key of this.keys) {
          const values = [...new Set(this.items.map(item => item.own[key] ?? "none"))].sort(inOrder).slice(0, 60);
          const quoted = value => /[\s"]/.test(value) ? JSON.stringify(value) : value;
          this.where.append(element("optgroup", {label: key},
            ...values.map(value => element("option", {value: `${key}=${quoted(value)}`}, `${key} = ${value}`))));
        }
        this.where.addEventListener("change", () => {
          this.set("filter", [this.get("filter"), this.where.value].filter(Boolean).join(" "));
          this.where.value = "";
        });
        this.group = element("select", {}, element("option", {value: ""}, "nothing"),
          ...this.keys.map(key => element("option", {value: key}, key)));
        this.group.addEventListener("change", () => this.set("group", this.group.value));
        bar.append(this.where, labelled("Group by", this.group));
      }
    }
    if (this.section?.against.length) {
      const best = this.section.cells[0].label;
      this.reference = element("select", {}, ...this.section.against.map((_, i) =>
        element("option", {value: i ? this.section.cells[i].label : ""}, i ? this.section.cells[i].label : `best (${best})`)));
      this.reference.addEventListener("change", () => this.set("ref", this.reference.value));
      bar.append(labelled("Differences to", this.reference));
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

  // Everything that was chosen, shown.
  show() {
    this.refer();
    this.columns();
    const kept = this.rows.filter(wanted(this.get("filter"), row => this.item(row)));
    this.arrange(this.sorted(kept));
    if (this.filter && this.filter.value !== this.get("filter")) this.filter.value = this.get("filter");
    if (this.group) this.group.value = this.keys.includes(this.get("group")) ? this.get("group") : "";
    this.count.value = kept.length < this.rows.length ? `${kept.length} of ${this.rows.length} rows` : "";
  }

  sorted(rows) {
    const sort = this.get("sort"), key = sort.replace(/^-/, ""), up = !sort.startsWith("-"), i = this.place(key);
    for (const cell of this.head.cells) cell.removeAttribute("aria-sort");
    if (i < 0) return rows;
    this.head.cells[i].setAttribute("aria-sort", up ? "ascending" : "descending");
    const of = row => {
      const cell = row.cells[i], text = cell?.textContent.trim() ?? "", value = cell?.dataset.v ?? text.replace(/,/g, "");
      return numeric(value) ? Number(value) : ["", "–"].includes(text) ? null : text;
    };
    // numbers before words, and what is not known last, either way up
    const rank = value => value === null ? 2 : typeof value === "number" ? 0 : 1;
    return rows.map(row => [of(row), row]).sort(([a], [b]) =>
      rank(a) - rank(b) || (a === null ? 0 : (up ? 1 : -1) * inOrder(a, b))).map(([, row]) => row);
  }

  arrange(rows) {
    const body = this.table.tBodies[0], key = this.get("group");
    if (!this.items || !this.keys.includes(key)) return body.replaceChildren(...rows);
    const groups = new Map();
    for (const row of rows) {
      const value = this.item(row)?.own[key] ?? "none";
      groups.set(value, [...(groups.get(value) ?? []), row]);
    }
    const parts = [...groups].sort(([a], [b]) => inOrder(a, b));
    body.replaceChildren(...parts.flatMap(([value, members]) => [this.heading(key, value, members), ...members]));
  }

  // A group's mean was computed over all of its runs: it is not said of a part of them.
  heading(key, value, members) {
    const [size, mean] = data.groups[key]?.[value] ?? [0, ""];
    const runs = this.section ? members.flatMap(row => this.item(row)?.runs ?? []).length : members.length;
    const said = [`${runs} ${runs === 1 ? "run" : "runs"}`, runs === size && mean ? `mean ${mean}` : ""];
    return element("tr", {class: "group"}, element("th", {colspan: this.head.cells.length, scope: "rowgroup"},
      `${key} = ${value}`, element("span", {}, said.filter(Boolean).join(" · "))));
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

  refer() {
    if (!this.reference) return;
    const wanted = this.get("ref"), cells = this.section.cells, found = cells.findIndex(cell => cell.label === wanted);
    const reference = this.section.against[found] ? found : 0;
    this.reference.value = reference ? wanted : "";
    const at = Object.fromEntries(["difference", "p", "verdict"].map(key => [key, this.place(key)]));
    const head = this.head.cells[at.difference];
    (head.querySelector("button") ?? head).textContent =
      reference ? this.caption.replace("best", cells[reference].label) : this.caption;
    for (const row of this.rows) {
      const said = this.section.against[reference][row.dataset.item];
      if (!said) continue;
      const [difference, v, low, high, p, order, verdict] = said;
      put(row.cells[at.difference], difference, {v, low, high});
      put(row.cells[at.p], p, {v: order});
      put(row.cells[at.verdict], this.section.verdicts[verdict], {});
      row.cells[at.verdict].classList.toggle("unclear", !/^(worse|better)/.test(this.section.verdicts[verdict]));
      row.classList.toggle("reference", reference > 0 && Number(row.dataset.item) === reference);
    }
  }
}

function put(cell, text, numbers) {
  cell.textContent = text;
  for (const [name, value] of Object.entries(numbers)) {
    if (value === null) delete cell.dataset[name]; else cell.dataset[name] = value;
  }
}

// Whether a row is asked for: by each word of a text that it shows, and by each key=value of its settings.
function wanted(text, itemOf) {
  const asked = [...text.matchAll(/([\w./@-]+)(!=|=|<|>)("(?:[^"\\]|\\.)*"|\S*)|\S+/g)].map(([word, key, sign, value]) => {
    if (key === undefined || !data.keys.some(known => known === key || known.endsWith("." + key)))
      return row => row.textContent.toLowerCase().includes(word.toLowerCase());
    const plain = value.startsWith('"') ? unquoted(value) : value;
    const known = data.keys.includes(key) ? [key] : data.keys.filter(other => other.endsWith("." + key));
    return row => known.some(one => holds(itemOf(row)?.own[one] ?? "none", sign, plain));
  });
  return row => asked.every(test => test(row));
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
