// Draws the charts of a report as series.js has them, and keeps what the reader chose across reloads.
const COLORS = 7; // --c0 to --c6 of style.css; the same numbers and orders as in html.py
const DASHES = ["solid", "dash", "dot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star"];
const root = document.documentElement;
const all = (selector) => [...document.querySelectorAll(selector)];
const NOWHERE = 1e-99; // stands for 0 on a logarithmic axis, which it is far below
let colors = {}; // of the theme, by custom property

// ---- traces and layout ----

function color(name) { // custom properties hold light-dark(), which only an element resolves
  const probe = document.getElementById("theme");
  probe.style.color = `var(${name})`;
  colors[name] ??= getComputedStyle(probe).color;
  probe.style.color = "";
  return colors[name];
}

const faint = (rgb, share) => rgb.replace("rgb(", "rgba(").replace(")", `, ${share})`);
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;"); // Plotly reads tags
const short = (text) => escaped(text.length > 36 ? `${text.slice(0, 35)}…` : text);
const narrow = () => innerWidth < 700;
const hoverMode = (chart) => (chart.kind === "points" || narrow() || entries().length > 8 ? "closest" : "x unified");

function look({ index, ofFloor }) {
  if (ofFloor) return { ink: color("--floor"), dash: "dashdot", symbol: "circle" };
  const turn = Math.floor(index / COLORS);
  const symbol = SYMBOLS[index % SYMBOLS.length] + (turn % 2 ? "-open" : "");
  return { ink: color(`--c${index % COLORS}`), dash: DASHES[turn % DASHES.length], symbol };
}

function lineTrace(series, chart) {
  const { ink, dash, symbol } = look(series);
  const points = chart.kind === "points";
  const few = !series.ofFloor && series.x.length <= 40;
  return {
    name: short(series.name), x: series.x, y: series.y, mode: points ? "markers" : few ? "lines+markers" : "lines",
    line: { color: ink, dash, width: series.ofFloor ? 1.5 : 2 },
    marker: { color: ink, symbol, size: points ? 11 : 5, line: { color: ink, width: 1.5 } },
    hovertext: series.y.map((_, i) => hoverText(series, chart, i)), hoverinfo: "text",
    ...(points && { error_x: bars(series.xSpread, ink), error_y: bars(series.spread, ink) }),
  };
}

const bars = (array, ink) => ({ type: "data", array, color: faint(ink, 0.6), thickness: 1.5, width: 3, visible: array.some(finite) });

function hoverText(series, chart, i) {
  const value = withSpread(series.y[i], series.spread?.[i]) + atMost(series, i, ", ");
  const place = `<br>${short(chart.x.split(":")[0])}: ${withSpread(series.x[i], series.xSpread?.[i])}`;
  return `<b>${short(series.name)}</b>  ${value}${hoverMode(chart) === "closest" ? place : ""}`;
}

function floorTraces(series, chart, { bottom, top }) { // the line as it is, and what answers the pointer where it has left the axis
  const line = lineTrace(series, chart);
  const within = series.y.map((v) => (finite(v) ? Math.min(Math.max(v, (bottom ?? -Infinity) * 1.02), (top ?? Infinity) * 0.98) : null));
  const y = finite(bottom) ? series.y.map(logarithmic) : series.y;
  return [{ ...line, y, hoverinfo: "skip" }, { ...line, y: within, mode: "markers", opacity: 0 }];
}

const logarithmic = (value) => (finite(value) && value <= 0 ? NOWHERE : value); // a logarithm has no place for 0

function bandTrace(series, log) { // ± around a line, or from the floor to what it may be at most
  const { x, y, spread, upper } = series;
  const high = y.map((v, i) => upper?.[i] ?? v + spread?.[i]);
  const low = y.map((v, i) => (upper ? (log ? logarithmic(v) : v) : log && v <= spread?.[i] ? v / 10 : v - spread?.[i]));
  const known = x.map((_, i) => finite(y[i]) && finite((upper ?? spread)?.[i]) && (!log || (upper ? high[i] : y[i]) > 0));
  const outline = { x: [], y: [] };
  for (const run of runs(known)) {
    const back = run.toReversed();
    outline.x.push(...run.map((i) => x[i]), ...back.map((i) => x[i]), null);
    outline.y.push(...run.map((i) => high[i]), ...back.map((i) => low[i]), null);
  }
  const fillcolor = faint(look(series).ink, series.ofFloor ? 0.22 : 0.13);
  return { ...outline, mode: "lines", fill: "toself", fillcolor, line: { width: 0 }, hoverinfo: "skip" };
}

function runs(known) { // [no, yes, yes, no] -> [[1, 2]]
  const found = [];
  known.forEach((yes, i) => yes && (known[i - 1] ? found.at(-1).push(i) : found.push([i])));
  return found.filter((run) => run.length > 1);
}

function layout(chart, log, marked, { bottom, top }) {
  const [ink, line] = [color("--muted"), color("--axis")];
  const zoom = Boolean(state.flags.zoom);
  const axis = { linecolor: line, tickcolor: line, gridcolor: color("--grid"), ticks: "outside", ticklen: 4, zeroline: false, automargin: true, fixedrange: !zoom };
  const decades = { type: "log", tickformat: "~g", nticks: 5 }; // few: decades alone where there are four of them
  const linear = { type: "linear", exponentformat: "SI" };
  const meaning = chart.x.split(":")[0]; // without which side is which
  const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink };
  const title = { text: escaped(narrow() ? meaning : chart.x), standoff: 10 };
  return {
    xaxis: { ...axis, ...(chart.log_x ? { ...decades, nticks: narrow() ? 3 : 5 } : linear), showgrid: false, title, hoverformat: ".4~g", unifiedhovertitle: { text: `${short(meaning)} %{x}` } },
    yaxis: { ...axis, ...(log ? decades : { ...linear, nticks: 7, rangemode: chart.kind === "points" ? "normal" : "tozero" }), autorangeoptions: { clipmin: bottom, clipmax: top } },
    font, margin: { l: 48, r: 14, t: 10, b: 46 }, showlegend: false, hovermode: hoverMode(chart), dragmode: zoom && "zoom",
    hoverlabel: { bgcolor: color("--panel"), bordercolor: line, font: { ...font, color: color("--text") }, align: "left" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    uirevision: `${log}${chart.kind === "error" ? state.space + state.flags.excess : ""}`, // a zoom lasts while its axes mean the same
    ...(marked && realLine(chart.real, ink)),
  };
}

const realLine = (x, ink) => ({
  shapes: [{ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 1.5, dash: "dash" } }],
  annotations: [{ x, y: 1, yref: "paper", text: "real images", showarrow: false, xanchor: "left", yanchor: "top", xshift: 4, font: { size: 12 } }],
});

const invisible = (x, y) => ({ x: [x], y: [y], mode: "markers", opacity: 0, hoverinfo: "skip" }); // an axis ignores shapes

function draw(chart) {
  const figure = document.getElementById(`chart-${chart.id}`);
  const log = Boolean(state.flags[chart.log]);
  const series = seriesOf(chart);
  const marked = finite(chart.real) && series.length > 0;
  if (chart.kind === "error") label(chart, figure);
  const bands = chart.kind === "points" ? [] : series.map((s) => bandTrace(s, log));
  const span = chart.kind === "error" ? limits(series, log) : {};
  const lines = series.flatMap((s) => (s.ofFloor ? floorTraces(s, chart, span) : lineTrace(s, chart)));
  const traces = [...bands, ...lines, ...(marked ? [invisible(chart.real, series[0].y[0])] : [])];
  figure.querySelector(".note").textContent = note(chart, series, log, span);
  table(chart, figure, series);
  return Plotly.react(figure.querySelector(".plot"), traces, layout(chart, log, marked, span), { displayModeBar: false, responsive: true, showTips: false });
}

function label(chart, figure) {
  chart.title = (state.flags.excess ? "excess over the floor: " : "") + SPACES[state.space].title;
  figure.querySelector("figcaption").textContent = chart.title;
  figure.querySelector(".plot").setAttribute("aria-label", `Chart of ${chart.title} by ${chart.x}`);
}

// ---- the same figures as a table ----

function table(chart, figure, series) {
  const details = figure.querySelector("details");
  details.querySelector("div")?.remove();
  if (!details.open) return; // nobody reads it
  const box = document.createElement("div");
  Object.assign(box, { className: "scroll tall", tabIndex: 0, role: "region", ariaLabel: `figures: ${chart.title}` });
  box.append(filled(chart.kind === "points" ? pointRows(chart, series) : lineRows(chart, series)));
  details.append(box);
}

function filled(rows) {
  const made = document.createElement("table");
  rows.forEach((row, r) => {
    const line = (r ? made.tBodies[0] ?? made.createTBody() : made.createTHead()).insertRow();
    row.forEach((text, c) => {
      const cell = document.createElement(r && c ? "td" : "th");
      if (!r || !c) cell.scope = r ? "row" : "col";
      cell.textContent = text; // never markup: names come from runs
      line.append(cell);
    });
  });
  return made;
}

// ---- controls ----

function showState() {
  const press = (button, yes) => button.setAttribute("aria-pressed", String(Boolean(yes)));
  all("[data-flag]").forEach((button) => press(button, state.flags[button.dataset.flag]));
  all("[data-series]").forEach((button) => press(button, shown(button.dataset.series)));
  all("[data-select]").forEach((select) => { select.value = state.space; });
}

function redraw(concerned = () => true) {
  colors = {};
  store();
  data.charts.filter(concerned).forEach(draw);
}

function on(selector, event, change) { // a change of state may return which charts it concerns
  all(selector).forEach((element) => element.addEventListener(event, () => {
    const concerned = change(element);
    showState();
    redraw(concerned);
  }));
}

function connect() {
  const scrolls = matchMedia("(pointer: coarse)").matches; // a finger on a chart is to scroll the page
  all("[data-flag]").forEach((button) => { state.flags[button.dataset.flag] ??= button.getAttribute("aria-pressed") === "true" && !(scrolls && button.dataset.flag === "zoom"); });
  on("[data-flag]", "click", ({ dataset: { flag } }) => {
    state.flags[flag] = !state.flags[flag];
    return (chart) => flag === chart.log || flag === "zoom" || (flag === "excess" && chart.kind === "error");
  });
  on("[data-series]", "click", ({ dataset: { series } }) => {
    state.hidden = shown(series) ? [...state.hidden, series] : state.hidden.filter((key) => key !== series);
  });
  on("[data-all]", "click", ({ dataset }) => { state.hidden = dataset.all === "show" ? [] : all("[data-series]").map((b) => b.dataset.series); });
  on("[data-select]", "change", ({ value }) => {
    state.space = value;
    return (chart) => chart.kind === "error";
  });
  all("[data-reset]").forEach((button) => button.addEventListener("click", () => {
    Plotly.relayout(button.closest("figure").querySelector(".plot"), { "xaxis.autorange": true, "yaxis.autorange": true });
  }));
  all("details").forEach((details) => {
    details.open = state.open.includes(details.id);
    details.addEventListener("toggle", () => opened(details));
  });
}

function opened(details) {
  state.open = all("details[open]").map((d) => d.id);
  store();
  const chart = data.charts.find((c) => `figures-${c.id}` === details.id);
  if (chart) table(chart, details.closest("figure"), seriesOf(chart));
}

function themes() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme === "auto" ? system.matches : root.dataset.theme === "dark");
  const turn = (theme) => {
    root.dataset.theme = theme;
    button.setAttribute("aria-pressed", String(dark()));
    redraw();
  };
  button.setAttribute("aria-pressed", String(dark()));
  system.addEventListener("change", () => turn(root.dataset.theme));
  button.addEventListener("click", () => {
    turn(dark() ? "light" : "dark");
    try { localStorage.setItem("xhat-theme", root.dataset.theme); } catch { /* it lasts until the page is left */ }
  });
  let before = root.dataset.theme;
  addEventListener("beforeprint", () => { before = root.dataset.theme; turn("light"); }); // paper is white
  addEventListener("afterprint", () => turn(before));
}

function refresh() {
  if (data.refresh) setTimeout(state.flags.paused ? refresh : reload, data.refresh * 1000);
}

function reload() {
  if (state.flags.paused) return refresh();
  state.scroll = scrollY;
  store();
  history.scrollRestoration = "manual"; // the browser would scroll before the page has its height
  location.reload();
}

function scrollBack() {
  if (state.scroll !== null) scrollTo({ top: state.scroll, behavior: "instant" });
  state.scroll = null;
  history.scrollRestoration = "auto";
}

async function drawAll() { // those in sight first; the page answers between two charts
  const distance = (chart) => Math.abs(document.getElementById(`chart-${chart.id}`).getBoundingClientRect().top);
  for (const chart of [...data.charts].sort((a, b) => distance(a) - distance(b))) {
    await draw(chart);
    await new Promise((resume) => setTimeout(resume));
  }
  performance.mark("xhat-ready");
  root.dataset.ready = "true";
}

connect();
showState();
themes();
scrollBack();
refresh();
drawAll();
