// What every page does: charts, the theme, sorting. `window.tdpo` is what a section's own script may use.
"use strict";

window.tdpo = (() => {
  const parse = (element) => (element ? JSON.parse(element.textContent) : {});
  const views = {};
  const waiting = [];

  // The data of a section, as it was given.
  const data = (id) => parse(document.querySelector(`script[data-section="${CSS.escape(id)}"]`));

  // Columns back to the rows that Vega-Lite takes; see packed() of core/report/embedding.py.
  function rows(columns) {
    const names = Object.keys(columns);
    const values = names.map((name) => {
      const column = columns[name];
      return Array.isArray(column) ? column : column.at.map((number) => column.of[number]);
    });
    return values[0].map((_, row) => Object.fromEntries(names.map((name, at) => [name, values[at][row]])));
  }

  function unpacked(part) {
    if (Array.isArray(part)) return part.map(unpacked);
    if (part === null || typeof part !== "object") return part;
    const found = {};
    for (const [name, value] of Object.entries(part)) {
      if (name === "data" && value?.columns) {
        const { columns, ...rest } = value;
        found[name] = { ...rest, values: rows(columns) };
      } else if (name === "datasets") {
        found[name] = Object.fromEntries(
          Object.entries(value).map(([key, one]) => [key, one.columns ? rows(one.columns) : one]),
        );
      } else {
        found[name] = unpacked(value);
      }
    }
    return found;
  }

  // Draw a spec into an element; its view is `tdpo.views[name]` from then on.
  async function draw(element, name, spec) {
    try {
      const result = await vegaEmbed(element, unpacked(spec), {
        actions: false,
        renderer: "svg",
        // Errors, not warnings: a layer that shows what is under the mouse is empty at first, which it minds.
        logLevel: 1,
        config: parse(document.getElementById("tdpo-config")),
      });
      views[name] = result.view;
      const picture = element.querySelector("svg");
      const caption = element.parentElement.querySelector("figcaption")?.textContent.trim();
      const label = element.dataset.label || [spec.title?.text ?? spec.title, caption].filter(Boolean).join(". ");
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", label || name);
    } catch (error) {
      element.textContent = "This chart could not be drawn.";
      console.error(name, error);
    }
  }

  function drawAll() {
    const specs = parse(document.getElementById("tdpo-charts"));
    for (const element of document.querySelectorAll("[data-chart]")) {
      const name = element.dataset.chart;
      if (name in specs) waiting.push(draw(element, name, specs[name]));
    }
    return Promise.all(waiting);
  }

  // The theme: the system's, or the one chosen, which is remembered where the browser allows it.
  function theme() {
    const button = document.getElementById("theme");
    const kinds = ["system", "light", "dark"];
    const remembered = () => {
      try {
        return localStorage.getItem("tdpo-theme");
      } catch {
        return null;
      }
    };
    const use = (kind) => {
      if (kind === "system") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = kind;
      button.textContent = `Theme: ${kind}`;
      button.setAttribute("aria-label", `Colour theme: ${kind === "system" ? "as the system" : kind}`);
      try {
        localStorage.setItem("tdpo-theme", kind);
      } catch {
        // A page from disk may be refused storage: the choice then lasts as long as the page.
      }
    };
    let now = kinds.includes(remembered()) ? remembered() : "system";
    use(now);
    button.addEventListener("click", () => {
      now = kinds[(kinds.indexOf(now) + 1) % kinds.length];
      use(now);
    });
  }

  // A heading's button sorts its column: numbers largest first, texts from A; pressed again, the other way.
  function sort(button) {
    const heading = button.closest("th");
    const body = heading.closest("table").tBodies[0];
    const column = heading.cellIndex;
    const numeric = heading.classList.contains("number");
    const before = heading.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : !numeric;
    const key = (row) => {
      const by = row.cells[column].dataset.by;
      return by === undefined ? null : numeric ? Number(by) : by;
    };
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const order = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return ascending ? order : -order;
    };
    for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    body.append(...[...body.rows].sort(compare));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.sort");
    if (button) sort(button);
  });
  theme();
  const ready = drawAll();
  return { data, views, draw, ready, rows };
})();
window.tdpoViews = window.tdpo.views;
