// What a reader has chosen, kept in the address: a link or a reload shows the same again.
// #runs.sort=-bound&runs.filter=objective%3Dv&t0.ref=v&run=objective%3Dv%2Cseed%3D1

const data = JSON.parse(document.getElementById("data").textContent);

const MANY = 400; // rows that stand in a table at once, lines that are each an element

const state = {
  all: () => new URLSearchParams(location.hash.slice(1)),
  get: name => state.all().get(name) ?? "",
  set(name, value) {
    const all = state.all();
    if (value) all.set(name, value); else all.delete(name);
    const hash = all.toString();
    // each choice is a step on the way back; letters that are typed into one field are one step
    history[state.last === name ? "replaceState" : "pushState"](null, "", hash ? "#" + hash : location.pathname + location.search);
    state.last = name;
  },
  // A link to a run's page keeps the tables as they are, and the browser's way back leads to them.
  link(run) {
    const all = state.all();
    if (run) all.set("run", run); else all.delete("run");
    return "#" + all.toString();
  },
};

// An element; every text goes in as text, whatever it holds.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

const numeric = text => text !== "" && !isNaN(text);
const inOrder = (a, b) => numeric(a) && numeric(b) ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});

const button = (text, title, onclick) => element("button", {type: "button", title, onclick}, text);

// What a cell says, without the links that are beside it.
const words = cell => [...cell.childNodes].filter(part => part.nodeName !== "SMALL").map(part => part.textContent)
  .join("").replace(/\s+/g, " ").trim();
