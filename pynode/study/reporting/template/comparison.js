// ---- a comparison of two studies ----
const SPEEDS = { faster: "#1459a8", slower: "#c8461b", "": "#7d8794" };
const times = (x) => (known(x) ? `${x < 10 ? x.toFixed(3) : digits(x)}×` : "");
const brief = (x) => `${Number(x.toPrecision(3))}×`;
const ratios = (place, told) => {
  const names = [...new Set(told.rows.map((row) => row.contender))];
  const measures = [...new Set(told.rows.map((row) => row.measure))];
  const gap = 0.03, width = (1 - gap * (measures.length - 1)) / measures.length;
  const traces = [], changes = { shapes: [] };
  measures.forEach((measure, k) => {
    const axisName = k ? `x${k + 1}` : "x", all = [1];
    for (const [r, name] of names.entries()) {
      const own = told.rows.filter((row) => row.measure === measure && row.contender === name && known(row.time[0]));
      own.forEach((row, i) => {
        const [value, low, high] = row.time, colour = SPEEDS[row.speed];
        all.push(value, low, high);
        traces.push({
          x: [value], y: [r + (own.length > 1 ? (i / (own.length - 1) - 0.5) * 0.62 : 0)], xaxis: axisName, mode: "markers", hoverinfo: "text",
          text: [`<b>${plain(name)}</b><br>${plain(row.setting)}<br>${times(value)} as long (${times(low)} – ${times(high)})${row.note ? `<br>${plain(row.note)}` : ""}`],
          marker: { size: 7.5, color: colour, line: row.worse ? { color: "#a3261c", width: 2.5 } : { color: "#fff", width: 0.6 } },
          error_x: known(low) && known(high) ? { type: "data", symmetric: false, array: [high - value], arrayminus: [value - low], color: colour, thickness: 1.4, width: 0 } : undefined,
        });
      });
    }
    changes[`xaxis${k ? k + 1 : ""}`] = logarithmic(`${measure}: time of b to a`, all, brief, { domain: [k * (width + gap), k * (width + gap) + width], anchor: "y" });
    changes.shapes.push({ type: "line", x0: 1, x1: 1, xref: axisName, yref: "paper", y0: 0, y1: 1, line: { color: INK, width: 1 }, layer: "below" });
  });
  const wide = 40;
  place.style.height = `${100 + Math.max(26, 9 * Math.max(...names.map((name) => told.rows.filter((row) => row.contender === name).length / measures.length))) * names.length}px`;
  return Plotly.react(place, traces, layout({
    ...changes, margin: { l: 20, r: 20, t: 30, b: 50 },
    yaxis: axis("", {
      tickvals: names.map((_, r) => r), range: [names.length - 0.4, -0.6], ticks: "",
      ticktext: names.map((name) => plain(name.length > wide ? `${name.slice(0, wide - 1)}…` : name) + " "),
    }),
  }), config(told.id));
};
const comparison = async (sections) => {
  for (const told of sections) {
    const section = document.getElementById(told.id);
    sortable(section.querySelector("[data-table]"), [
      ["contender", (row) => row.contender, (x) => x], ["setting", (row) => row.setting, (x) => x], ["of", (row) => row.measure, (x) => x],
      ["time, b to a", (row) => row.time[0], times], ["from", (row) => row.time[1], times], ["to", (row) => row.time[2], times],
      ["error, b to a", (row) => row.error, times], ["evaluations, b to a", (row) => row.nfe, times], ["verdict", (row) => [row.speed, row.note].filter(Boolean).join("; "), (x) => x, null, "words"],
    ], told.rows);
    await ratios(section.querySelector("[data-ratios]"), told);
  }
};
