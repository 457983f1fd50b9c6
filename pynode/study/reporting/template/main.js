// ---- the page ----
// The library and the data are packed, and unpacked here: nothing is loaded.
const unpack = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};
const trouble = (text) => {
  const banner = document.getElementById("trouble");
  banner.textContent = text;
  banner.hidden = false;
};
const drawProblem = async (problem) => {
  const section = document.getElementById(problem.id);
  const names = Object.keys(problem.measures);
  if (!names.length) return;
  const works = [...new Set(names.flatMap((name) => problem.measures[name].works))];
  const errors = Object.keys(problem.measures.state?.errors || {});
  const state = { work: works[0], error: errors[0], hidden: new Set() };
  const figures = [...section.querySelectorAll("[data-measure]")];
  const diagrams = () => Promise.all(figures.map((figure) => diagram(figure, problem, state)));
  const calls = section.querySelector("[data-dots]");
  choice(section.querySelector('[data-choice="work"]'), works.map((w) => [w, WORK_NAMES[w]]), state.work, (w) => { state.work = w; diagrams(); });
  choice(section.querySelector('[data-choice="error"]'), errors.map((e) => [e, ERROR_NAMES[e]]), state.error, (e) => { state.error = e; diagrams(); });
  section.querySelector("[data-controls]").hidden = false;
  figures.forEach((figure) => figure.querySelector("[data-asked]").addEventListener("change", () => diagram(figure, problem, state)));
  legend(section.querySelector("[data-legend]"), problem.contenders, state.hidden, () => { diagrams(); dots(calls, problem, state); });
  table(section.querySelector("[data-table]"), problem);
  await diagrams();
  await dots(calls, problem, state);
};
const start = async () => {
  if (typeof DecompressionStream === "undefined") {
    trouble("The diagrams need a newer browser (DecompressionStream: Chrome 80, Firefox 113, Safari 16.4 or later).");
    return;
  }
  const data = JSON.parse(await unpack("packed-data"));
  const library = document.createElement("script");
  library.nonce = document.querySelector("script[nonce]").nonce;
  library.textContent = await unpack("packed-plotly");
  document.head.append(library);
  const breathe = () => new Promise((done) => setTimeout(done));
  for (const problem of data.problems || []) {
    await drawProblem(problem);
    await breathe();
  }
  for (const told of data.training || []) {
    await training(document.getElementById(told.id), told);
    await breathe();
  }
  if (data.comparison) await comparison(data.comparison);
  document.documentElement.dataset.ready = "yes";
};
start().catch((error) => {
  trouble(`The diagrams could not be drawn: ${error.message}`);
  throw error;
});
