// ---- training ----
const CURVE_TITLES = { seconds: "seconds of training", nfe: "evaluations of the field, in all", epoch_nfe: "epoch" };
const training = (section, told) => {
  const labels = Object.keys(told.looks), looks = labels.map((label) => ({ label, family: label, ...told.looks[label] })), hidden = new Set();
  const draw = () => Promise.all([...section.querySelectorAll("[data-curve]")].map((place) => {
    const kind = place.dataset.curve;
    if (kind === "test") return tests(place);
    const traces = [], xs = [], ys = [];
    const line = (run, look, wide) => {
      const y = kind === "epoch_nfe" ? run.epoch_nfe : run.loss;
      const x = kind === "epoch_nfe" ? y.map((_, k) => k + 1) : run[kind];
      if (!y.length) return;
      xs.push(...x); ys.push(...y);
      traces.push({ x, y, mode: "lines", name: plain(look.label), hoverinfo: wide ? "x+y+name" : "skip", opacity: wide ? 1 : 0.22, line: { color: look.colour, width: wide ? 2.4 : 1, dash: wide ? look.dash : "solid" } });
    };
    const shown = told.curves.filter((curve) => !hidden.has(labels.indexOf(curve.contender)));
    for (const wide of [false, true]) for (const curve of shown) {
      const look = looks[labels.indexOf(curve.contender)];
      if (wide) line(curve.median, look, true); else curve.seeds.forEach((run) => line(run, look, false));
    }
    const y = kind === "epoch_nfe" ? axis("evaluations of a solve", { rangemode: "tozero" }) : logarithmic("loss", ys, (v) => String(Number(v.toPrecision(2))));
    return Plotly.react(place, traces, layout({ xaxis: axis(CURVE_TITLES[kind], { rangemode: "tozero", ...(kind === "epoch_nfe" ? { tickformat: "d", ...(Math.max(0, ...xs) < 12 ? { dtick: 1 } : {}) } : {}) }), yaxis: y, hoverlabel: { align: "left", namelength: -1 } }), config(`${told.id}-${kind}`));
  }));
  const tests = (place) => {
    const traces = [];
    const shown = told.tests.filter((t) => !hidden.has(labels.indexOf(t.contender)));
    shown.forEach((t, r) => {
      const look = looks[labels.indexOf(t.contender)];
      traces.push({ x: t.values, y: t.values.map((_, k) => r + 0.22 + (k - (t.values.length - 1) / 2) * 0.04), mode: "markers", hoverinfo: "x", marker: { symbol: look.symbol, size: 6, color: look.colour, opacity: 0.45 } });
      traces.push({
        x: [t.mean], y: [r - 0.12], mode: "markers", hoverinfo: "text", text: [`<b>${plain(t.contender)}</b><br>${Number(t.mean.toPrecision(3))}${known(t.std) ? ` ± ${Number(t.std.toPrecision(2))}` : ""}, ${t.n} seed${t.n > 1 ? "s" : ""}`],
        error_x: { type: "data", array: [t.std ?? 0], color: look.colour, thickness: 2, width: 5 }, marker: { symbol: look.symbol, size: 11, color: look.colour },
      });
    });
    return Plotly.react(place, traces, layout({
      xaxis: axis(told.metric, { rangemode: "tozero" }),
      yaxis: axis("", { tickvals: shown.map((_, r) => r), ticktext: shown.map((t) => plain(t.contender.length > 34 ? `${t.contender.slice(0, 33)}…` : t.contender) + " "), range: [shown.length - 0.4, -0.6], ticks: "" }),
      margin: { l: 20, r: 20, t: 30, b: 48 },
    }), config(`${told.id}-test`));
  };
  legend(section.querySelector("[data-legend]"), looks, hidden, draw);
  return draw();
};

