"use strict";
// ---- text ----
const INK = "#1c2430", SOFT = "#5b6675", GRID = "#e6e9ee";
const FONT = { family: 'system-ui, -apple-system, "Segoe UI", Roboto, Arial, "DejaVu Sans", sans-serif', size: 12.5, color: INK };
const SUPER = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const known = (x) => x !== null && x !== undefined && Number.isFinite(x);
// plotly reads text as a subset of HTML
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
// no line ends within a number such as 1e-6
const unbroken = (text) => text.replace(/(\de-)(?=\d)/g, "$1\u2060");
const power = (exponent) => "10" + [...String(exponent)].map((c) => SUPER[c]).join("");
const scientific = (x, whole = false) => {
  if (!known(x)) return "";
  if (x === 0) return "0";
  const [factor, exponent] = x.toExponential(1).split("e");
  return factor === "1.0" && !whole ? power(Number(exponent)) : `${factor}×${power(Number(exponent))}`;
};
const digits = (x) => (Math.abs(x) >= 1000 ? x.toFixed(0) : String(Number(x.toPrecision(3))));
const seconds = (x) => {
  if (!known(x)) return "";
  const [scale, unit] = [[1, "s"], [1e-3, "ms"], [1e-6, "µs"], [1e-9, "ns"]].find(([s]) => x >= s * (1 - 1e-9)) || [1e-9, "ns"];
  return `${digits(x / scale)} ${unit}`;
};
const count = (x) => (known(x) ? Math.round(x).toLocaleString("en-US").replace(/,/g, "\u202f") : "");
const megabytes = (x) => (known(x) ? `${digits(x)} MB` : "");
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const swatch = (look) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const dashes = { solid: "none", dash: "5 3", dot: "2 2.5", dashdot: "6 2 2 2", longdash: "9 3" };
  for (const [key, value] of Object.entries({ class: "swatch", viewBox: "0 0 30 16", width: 28, height: 15, "aria-hidden": "true" }))
    svg.setAttribute(key, value);
  const line = document.createElementNS(svg.namespaceURI, "path");
  line.setAttribute("d", "M0 8h30");
  line.setAttribute("stroke", look.colour);
  line.setAttribute("stroke-width", 2);
  line.setAttribute("stroke-dasharray", dashes[look.dash]);
  const mark = document.createElementNS(svg.namespaceURI, "path");
  mark.setAttribute("d", look.path);
  mark.setAttribute("fill", look.colour);
  mark.setAttribute("transform", "translate(7 0)");
  svg.append(line, mark);
  return svg;
};

// ---- axes ----
const axis = (title, extra = {}) => ({
  title: { text: title, standoff: 8, font: { size: 13 } }, gridcolor: GRID, zeroline: false, linecolor: "#9aa4b2", ticks: "outside",
  ticklen: 4, tickcolor: "#9aa4b2", automargin: true, ...extra,
});
const named = (ticks, label) => ({ tickvals: ticks, ticktext: ticks.map((x) => label(x)) });
// Some `n` round numbers between two.
const even = (low, high, n = 7) => {
  const rough = (high - low) / n, decade = 10 ** Math.floor(Math.log10(rough));
  const step = decade * ([1, 2, 5].find((f) => f * decade >= rough) || 10);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push(k * step);
  return found;
};
// A logarithmic axis with labels at 1, at 1 and 3, or at 1, 2 and 5 of a decade, as many as there is room for.
const logarithmic = (title, values, label, extra = {}) => {
  const logs = values.filter((x) => known(x) && x > 0).map(Math.log10);
  if (!logs.length) return axis(title, { type: "log", ...extra });
  let low = Math.min(...logs), high = Math.max(...logs);
  const room = Math.max(0.06 * (high - low), 0.12);
  [low, high] = [low - room, high + room];
  const span = high - low;
  if (span < 0.75) return axis(title, { type: "log", range: [low, high], ...named(even(10 ** low, 10 ** high), label), ...extra });
  const factors = span < 1.3 ? [1, 2, 5] : span < 2.5 ? [1, 3] : [1];
  const every = span > 8 ? 2 : 1;
  const ticks = [];
  for (let k = Math.floor(low); k <= Math.ceil(high); k += 1)
    if (k % every === 0) for (const f of factors) {
      const at = Math.log10(f) + k;
      if (at >= low && at <= high) ticks.push(f * 10 ** k);
    }
  return axis(title, { type: "log", range: [low, high], ...named(ticks, label), ...extra });
};
const layout = (changes) => ({
  font: FONT, paper_bgcolor: "#fff", plot_bgcolor: "#fff", showlegend: false, hovermode: "closest",
  margin: { l: 62, r: 14, t: 30, b: 48 }, hoverlabel: { align: "left", bgcolor: "#fff", font: { color: INK, size: 12.5 } },
  ...changes,
});
const config = (name) => ({
  responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  toImageButtonOptions: { format: "svg", filename: name },
});

// ---- controls ----
const choice = (place, options, chosen, act) => {
  if (options.length < 2) {
    place.closest(".group").hidden = true;
    place.closest(".group").style.display = "none";
    return;
  }
  for (const [value, text] of options) {
    const button = make("button", { type: "button", "aria-pressed": String(value === chosen) }, text);
    button.addEventListener("click", () => {
      for (const other of place.children) other.setAttribute("aria-pressed", String(other === button));
      act(value);
    });
    place.append(button);
  }
};
// While the pointer is on a name, the other contenders' lines are faint.
const highlight = (place, label) => {
  for (const plot of place.closest("section").querySelectorAll("[data-plot]")) {
    const drawn = plot.querySelectorAll(".scatterlayer .trace");
    (plot.data || []).forEach((trace, k) => {
      if (drawn[k]) drawn[k].style.opacity = label === null || trace.meta === undefined || trace.meta === label ? "" : 0.1;
    });
  }
};
// Names that are shown or hidden; the same for all diagrams of a section.
const legend = (place, looks, hidden, redraw) => {
  const families = new Map();
  looks.forEach((look, i) => families.set(look.family, [...(families.get(look.family) || []), i]));
  const buttons = [];
  const refresh = () => {
    buttons.forEach(([button, i]) => button.setAttribute("aria-pressed", String(!hidden.has(i))));
    redraw();
  };
  for (const members of families.values()) {
    const group = make("span", { class: "family" });
    for (const i of members) {
      const button = make("button", { type: "button", "aria-pressed": "true" }, swatch(looks[i]), looks[i].label);
      button.addEventListener("mouseenter", () => highlight(place, looks[i].label));
      button.addEventListener("mouseleave", () => highlight(place, null));
      let timer = null;
      button.addEventListener("click", () => {
        if (timer) return;
        timer = setTimeout(() => {
          timer = null;
          if (!hidden.delete(i)) hidden.add(i);
          refresh();
        }, 220);
      });
      button.addEventListener("dblclick", () => {
        clearTimeout(timer);
        timer = null;
        const alone = !hidden.has(i) && hidden.size === looks.length - 1;
        hidden.clear();
        if (!alone) looks.forEach((_, k) => k !== i && hidden.add(k));
        refresh();
      });
      buttons.push([button, i]);
      group.append(button);
    }
    place.append(group);
  }
};


// ---- tables that sort by a click on a heading ----
// Columns are [heading, value of a row, text of a value, cell (optional: nodes in place of the text), class (optional)].
const sortable = (place, columns, rows, above = null, classOf = null) => {
  const head = make("thead"), names = make("tr"), body = make("tbody");
  const lines = rows.map((row) => {
    const line = make("tr", (classOf && classOf(row)) || {});
    columns.forEach(([, value, text, cell, kind], k) => line.append(make(k ? "td" : "th", kind ? { class: kind } : {}, ...(cell ? cell(row) : [text(value(row)) ?? ""]))));
    return [line, row];
  });
  columns.forEach(([title, value], k) => {
    const button = make("button", { type: "button" }, title), heading = make("th", {}, button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of names.children) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const missing = (x) => x === null || x === undefined || x === "";
      lines.sort(([, a], [, b]) => {
        const [x, y] = [value(a), value(b)];
        if (missing(x) || missing(y)) return missing(x) - missing(y); // what is unknown comes last, either way
        return (up ? 1 : -1) * (x < y ? -1 : x > y ? 1 : 0);
      });
      body.append(...lines.map(([line]) => line));
    });
    names.append(heading);
  });
  if (above) head.append(above);
  head.append(names);
  body.append(...lines.map(([line]) => line));
  place.append(make("table", {}, head, body));
};
