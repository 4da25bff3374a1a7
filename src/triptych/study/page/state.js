// Keep the reader's choices in the address, so that a link or a reload shows the same view.
// #runs.sort=-bound&runs.filter=objective%3Dv&t0.ref=v&run=objective%3Dv%2Cseed%3D1

const data = JSON.parse(document.getElementById("data").textContent);

const MANY = 400; // maximum number of rows shown at first, and of lines drawn as separate elements

const state = {
  all: () => new URLSearchParams(location.hash.slice(1)),
  get: name => state.all().get(name) ?? "",
  set(name, value) {
    const all = state.all();
    if (value) all.set(name, value); else all.delete(name);
    const hash = all.toString();
    // Each choice is an entry of the browser's history; all letters typed into one field are one entry.
    history[state.last === name ? "replaceState" : "pushState"](null, "", hash ? "#" + hash : location.pathname + location.search);
    state.last = name;
  },
  // A link to a run's page keeps the tables' state, to which the browser's back button returns.
  link(run) {
    const all = state.all();
    if (run) all.set("run", run); else all.delete("run");
    return "#" + all.toString();
  },
};

// Create an element. Strings among its children are inserted as text, never as HTML.
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
const compareValues = (a, b) => numeric(a) && numeric(b) ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});

const button = (text, title, onclick) => element("button", {type: "button", title, onclick}, text);

// Return a cell's text without its links to runs.
const words = cell => [...cell.childNodes].filter(part => part.nodeName !== "SMALL").map(part => part.textContent)
  .join("").replace(/\s+/g, " ").trim();
