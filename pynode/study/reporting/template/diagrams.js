// ---- work-precision diagrams ----
const WORK_TITLES = { seconds: "time of one call", cpu: "CPU time of one call", nfe: "evaluations of the field" };
const WORK_NAMES = { seconds: "Time", cpu: "CPU time", nfe: "Evaluations" };
const ERROR_NAMES = { error_trajectory: "Over the trajectory", error_end: "At the end" };
const LEAST = 1e-17; // an error of zero is drawn here: a logarithmic axis has none

const workOf = (points, name, kind) => {
  const prefix = name === "gradient" ? "gradient_" : "";
  if (kind !== "nfe") return points[prefix + (kind === "seconds" ? "seconds" : "cpu_seconds")];
  return name === "gradient"
    ? points.nfe.map((n, i) => (known(n) && known(points.nfe_backward[i]) ? n + points.nfe_backward[i] : null))
    : points.nfe;
};
const hover = (problem, i, name, errors, works, kind) => {
  const p = problem.points, prefix = name === "gradient" ? "gradient_" : "";
  const lines = [
    `<b>${plain(problem.contenders[p.contender[i]].label)}</b>`,
    plain(p.setting[i]),
    `error ${scientific(errors[i])}`,
    `${seconds(p[prefix + "seconds"][i])} (quartiles ${seconds(p[prefix + "seconds_q1"][i])} – ${seconds(p[prefix + "seconds_q3"][i])})`,
  ];
  if (kind === "cpu") lines.push(`CPU ${seconds(works[i])}`);
  if (known(p.nfe[i])) lines.push(`${count(p.nfe[i])} evaluations${name === "gradient" && known(p.nfe_backward[i]) ? ` + ${count(p.nfe_backward[i])} backward` : ""}`);
  if (p.note[i]) lines.push(plain(p.note[i].replace("†", "machine disturbed").replace("‡", "beside other cells")));
  return lines.join("<br>");
};

const diagram = (figure, problem, state) => {
  const name = figure.dataset.measure, measure = problem.measures[name], p = problem.points;
  const error = measure.errors[state.error] ? state.error : Object.keys(measure.errors)[0];
  const told = measure.errors[error];
  const kind = measure.works.includes(state.work) ? state.work : measure.works[0];
  const works = workOf(p, name, kind);
  const errors = p[error].map((x, i) => (measure.status[i] && known(x) && known(works[i]) ? Math.max(x, LEAST) : null));
  const select = figure.querySelector("[data-asked]");
  const key = `${error}`;
  if (select.dataset.of !== key) {
    const before = Number(select.value);
    select.replaceChildren(...told.asked.map((x) => make("option", { value: String(x) }, scientific(x))));
    const start = select.dataset.of && told.asked.includes(before) ? before : told.usual;
    select.value = String(start);
    select.dataset.of = key;
    select.disabled = false;
  }
  const place = Math.max(0, select.selectedIndex), asked = told.asked[place];
  const advice = told.advice[kind][place];
  figure.querySelector("[data-advice]").textContent = unbroken(advice.sentence);
  const traces = [];
  const along = told.front[kind];
  if (along.length)
    traces.push({
      x: along.map((i) => Math.max(p[error][i], LEAST)), y: along.map((i) => works[i]), mode: "lines", hoverinfo: "skip",
      line: { color: "#d5dae2", width: 11, shape: "linear" }, name: "Pareto front",
    });
  problem.contenders.forEach((look, c) => {
    if (state.hidden.has(c)) return;
    const own = errors.map((x, i) => i).filter((i) => p.contender[i] === c && errors[i] !== null).sort((a, b) => p.size[a] - p.size[b]);
    if (!own.length) return;
    const prefix = name === "gradient" ? "gradient_" : "";
    const bars = kind === "seconds" && {
      type: "data", symmetric: false, thickness: 1.2, width: 3, color: look.colour,
      array: own.map((i) => Math.max(0, (p[`${prefix}seconds_q3`][i] ?? works[i]) - works[i])),
      arrayminus: own.map((i) => Math.max(0, works[i] - (p[`${prefix}seconds_q1`][i] ?? works[i]))),
    };
    traces.push({
      x: own.map((i) => errors[i]), y: own.map((i) => works[i]), mode: "lines+markers", name: plain(look.label), meta: look.label,
      line: { color: look.colour, width: 1.6, dash: look.dash },
      marker: { symbol: look.symbol, size: look.symbol === "star" ? 11 : 8.5, color: look.colour, line: { color: "#fff", width: 0.7 } },
      ...(bars ? { error_y: bars } : {}),
      text: own.map((i) => hover(problem, i, name, errors, works, kind)), hoverinfo: "text",
    });
  });
  if (advice.winner !== null && !state.hidden.has(p.contender[advice.winner]))
    traces.push({
      x: [Math.max(p[error][advice.winner], LEAST)], y: [works[advice.winner]], mode: "markers", hoverinfo: "skip", name: "recommended",
      marker: { symbol: "circle-open", size: 21, color: INK, line: { width: 2.2 } },
    });
  const bounds = kind === "seconds" ? ["_q1", "_q3"].map((end) => p[(name === "gradient" ? "gradient_seconds" : "seconds") + end]) : [];
  const used = [works, ...bounds].flatMap((values) => values.filter((_, i) => errors[i] !== null));
  const xaxis = logarithmic(told.title, [...errors, asked], scientific);
  const unit = kind === "nfe" ? (x) => count(x) : seconds;
  const title = kind === "nfe" && name === "gradient" ? "evaluations, forward and backward" : WORK_TITLES[kind];
  return Plotly.react(figure.querySelector("[data-plot]"), traces, layout({
    xaxis, yaxis: logarithmic(title, used, unit),
    shapes: [{ type: "line", x0: asked, x1: asked, yref: "paper", y0: 0, y1: 1, line: { color: SOFT, width: 1, dash: "dot" } }],
  }), config(`${problem.id}-${name}`));
};

// ---- first calls and memory: a row for each contender ----
const median = (values) => {
  const sorted = values.filter(known).sort((a, b) => a - b), n = sorted.length;
  return n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : null;
};
const dots = (place, problem, state) => {
  const p = problem.points;
  const panels = [];
  for (const [name, prefix] of [["state", ""], ["gradient", "gradient_"]])
    if (problem.measures[name]) panels.push({ title: `${name}: time`, first: `${prefix}seconds_first`, later: `${prefix}seconds`, unit: seconds });
  const memory = [["state", "peak_mb"], ["gradient", "gradient_peak_mb"]].filter(([, key]) => p[key].some(known));
  if (memory.length) panels.push({ title: `memory: ${memory.map(([n], k) => `${n} (${k || memory.length === 1 ? "filled" : "hollow"})`).join(", ")}`, memory, unit: (x) => `${digits(x)} MB` });
  const rows = problem.contenders.map((_, c) => c).filter((c) => !state.hidden.has(c) && p.contender.some((own, i) => own === c && (known(p.seconds[i]) || known(p.gradient_seconds[i]))));
  if (!rows.length || !panels.length) {
    place.style.height = "40px";
    return Plotly.react(place, [], layout({ xaxis: { visible: false }, yaxis: { visible: false } }), config(problem.id));
  }
  const at = (c, key, how) => how(p[key].filter((_, i) => p.contender[i] === c));
  const most = (values) => (values.some(known) ? Math.max(...values.filter(known)) : null);
  const traces = [], changes = { shapes: [], annotations: [] };
  const gap = 0.035, width = (1 - gap * (panels.length - 1)) / panels.length;
  panels.forEach((panel, k) => {
    const axisName = k ? `x${k + 1}` : "x", all = [];
    rows.forEach((c, r) => {
      const look = problem.contenders[c];
      const pair = panel.memory
        ? (panel.memory.length > 1 ? panel.memory : [null, panel.memory[0]]).map((m) => (m ? at(c, m[1], most) : null))
        : [at(c, panel.first, median), at(c, panel.later, median)];
      const drawn = (x) => known(x) && (x > 0 || panel.memory);
      pair.forEach((x) => drawn(x) && all.push(x));
      const label = panel.memory ? ["state", "gradient"] : ["first call", "later call"];
      if (pair.every(drawn))
        traces.push({ x: pair, y: [r, r], xaxis: axisName, mode: "lines", hoverinfo: "skip", line: { color: look.colour, width: 1.2 } });
      pair.forEach((x, side) => drawn(x) && traces.push({
        x: [x], y: [r], xaxis: axisName, mode: "markers", hoverinfo: "text", name: plain(look.label),
        text: [`<b>${plain(look.label)}</b><br>${label[side]}: ${panel.unit(x)}`],
        marker: { symbol: look.symbol + (side ? "" : "-open"), size: 9, color: look.colour, line: { width: side ? 0 : 1.6 } },
      }));
    });
    const place = { domain: [k * (width + gap), k * (width + gap) + width], anchor: "y", tickangle: 0 };
    const narrow = panel.memory && (!all.length || Math.min(...all) <= 0 || Math.max(...all) < 30 * Math.min(...all));
    changes[`xaxis${k ? k + 1 : ""}`] = narrow
      ? axis(panel.title, { range: [-0.05, 1.08].map((f) => f * Math.max(1, ...all)), ...named(even(0, Math.max(1, ...all), 4), panel.unit), ...place })
      : logarithmic(panel.title, all, panel.unit, place);
  });
  const wide = 40; // letters of a name beside the axis
  place.style.height = `${98 + 21 * rows.length}px`;
  return Plotly.react(place, traces, layout({
    ...changes, margin: { l: 20, r: 20, t: 30, b: 50 },
    yaxis: axis("", {
      tickvals: rows.map((_, r) => r), range: [rows.length - 0.4, -0.6], ticks: "", automargin: true,
      ticktext: rows.map((c) => { const t = problem.contenders[c].label; return plain(t.length > wide ? `${t.slice(0, wide - 1)}…` : t) + " "; }),
    }),
  }), config(`${problem.id}-calls`));
};

// ---- the table of points ----
const exact = (x) => scientific(x, true);
const COLUMNS = [
  ["state", [["error_trajectory", "error, trajectory", exact], ["error_end", "error, end", exact], ["drift", "drift", exact],
    ["seconds", "time", seconds], ["", "quartiles", seconds, "seconds"], ["cpu_seconds", "CPU", seconds], ["prepare_seconds", "preparing", seconds], ["seconds_first", "first call", seconds], ["peak_mb", "memory", megabytes]]],
  ["gradient", [["gradient_error", "error", exact], ["gradient_seconds", "time", seconds], ["", "quartiles", seconds, "gradient_seconds"],
    ["gradient_cpu_seconds", "CPU", seconds], ["gradient_seconds_first", "first call", seconds], ["gradient_peak_mb", "memory", megabytes]]],
  ["counts", [["nfe", "evaluations", count], ["nfe_backward", "backward", count], ["n_accepted", "accepted", count], ["n_rejected", "rejected", count], ["jacobians", "Jacobians", count]]],
];
const table = (place, problem) => {
  const p = problem.points, onFront = new Set();
  for (const measure of Object.values(problem.measures)) for (const told of Object.values(measure.errors)) (told.front.seconds || []).forEach((i) => onFront.add(i));
  const groups = COLUMNS.map(([title, columns]) => [title, columns.filter(([key, , , of]) => p[key || of].some(known))]).filter(([, columns]) => columns.length);
  const above = make("tr", {}, make("th"), make("th"), make("th"));
  for (const [title, list] of groups) above.append(make("th", { class: "over", colspan: String(list.length) }, title));
  const span = (of, text) => (i) => [known(p[`${of}_q1`][i]) ? `${text(p[`${of}_q1`][i])} – ${text(p[`${of}_q3`][i])}` : ""];
  const look = (i) => problem.contenders[p.contender[i]];
  const columns = [
    ["contender", (i) => look(i).label.toLowerCase(), null, (i) => [swatch(look(i)), look(i).label]],
    ["setting", (i) => p.size[i], null, (i) => [p.setting[i]]],
    ["note", (i) => p.note[i], (x) => x, null, "words"],
    ...groups.flatMap(([, list]) => list.map(([key, title, text, of]) => [title, (i) => p[key || `${of}_q1`][i], text, of && span(of, text)])),
  ];
  const classOf = (i) => onFront.has(i) && { class: "front", title: "on a Pareto front" };
  sortable(place, columns, p.contender.map((_, i) => i), above, classOf);
};
