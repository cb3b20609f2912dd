// What the charts of a report show: its numbers, in the space the reader chose, of the series not hidden. Before script.js.
const SPACES = { // factor on the squared error of x0, by SNR
  x0: { title: "mean squared error of x0", factor: () => 1 },
  noise: { title: "mean squared error of the noise", factor: (snr) => snr },
  v: { title: "mean squared error of v", factor: (snr) => 1 + snr },
  flow: { title: "mean squared error of the flow velocity", factor: (snr) => (1 + Math.sqrt(snr)) ** 2 },
  bits: { title: "bits/dim per unit logsnr", factor: (snr) => snr / (2 * Math.LN2) },
};
const KEY = `xhat:${location.pathname}`;
const data = JSON.parse(document.getElementById("data").textContent);
const state = { flags: {}, hidden: [], open: [], space: "v", scroll: null, ...stored() };

function stored() {
  try { return JSON.parse(sessionStorage.getItem(KEY)) ?? {}; } catch { return {}; } // storage may be forbidden
}

function store() {
  try { sessionStorage.setItem(KEY, JSON.stringify(state)); } catch { /* the page works without */ }
}

// ---- numbers: null is not known ----

const finite = (value) => Number.isFinite(value);
const minus = (a, b) => (finite(a) && finite(b) ? a - b : null);

function format(value, digits = 4) {
  if (!finite(value)) return "–";
  const size = Math.abs(value);
  const extreme = size && (size < 1e-3 || size >= 1e7);
  return (extreme ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)))).replace("e+", "e");
}

const withSpread = (value, spread) => format(value) + (finite(spread) ? ` ± ${format(spread, 2)}` : "");

function at(line, x, values = line.y) { // linear between the points next to x; null outside of them and at gaps
  const nearest = (sign) => line.x.map((known, i) => ({ i, far: sign * (known - x) })).filter(({ far }) => far > -1e-6)
    .sort((a, b) => a.far - b.far)[0];
  const [left, right] = [nearest(-1), nearest(1)];
  if (!left || !right || !finite(values[left.i]) || !finite(values[right.i])) return null;
  const share = left.i === right.i ? 0 : left.far / (left.far + right.far);
  return (1 - share) * values[left.i] + share * values[right.i];
}

// ---- series: what a chart shows, before it is Plotly's ----

const shown = (key) => !state.hidden.includes(key);
const entries = () => data.entries.map((e, index) => ({ ...e, index })).filter((e) => shown(`entry:${e.name}`));
const floors = () => Object.entries(data.floors).map(([name, f]) => ({ ...f, name, ofFloor: true })).filter((f) => shown(`floor:${f.name}`));
const withoutFloor = () => (state.flags.excess ? entries().filter((e) => e.x0_error && !data.floors[e.floor]) : []);

function scaled(line) { // from the error of x0 to that of the chosen space
  const factors = line.x.map((x) => SPACES[state.space].factor(Math.exp(x)));
  const times = (values) => values?.map((v, i) => (finite(v) ? v * factors[i] : null));
  return { ...line, y: times(line.y), spread: times(line.spread), upper: times(line.upper) };
}

function excessOver({ lower }, line) {
  const y = line.y.map((v, i) => minus(v, at(lower, line.x[i])));
  const spread = line.spread.map((s, i) => (finite(s) ? Math.hypot(s, at(lower, line.x[i], lower.spread) ?? 0) : null));
  return { x: line.x, y, spread }; // independent images: the spreads add in squares
}

function floorLine({ name, lower, upper }) {
  const top = lower.x.map((x) => at(upper, x));
  if (!state.flags.excess) return { ...lower, upper: top };
  return { x: lower.x, y: top.map((v, i) => minus(v, lower.y[i])), spread: [], name: `${name}: how far it is known` };
}

function errorSeries() {
  const known = entries().filter((e) => e.x0_error && !withoutFloor().some((w) => w.name === e.name));
  const line = (e) => (state.flags.excess ? excessOver(data.floors[e.floor], e.x0_error) : e.x0_error);
  return [...known.map((e) => ({ ...e, ...scaled(line(e)) })), ...floors().map((f) => ({ ...f, ...scaled(floorLine(f)) }))];
}

function pointSeries(chart) {
  const both = (e) => [e.numbers[chart.field], e.numbers[chart.against]];
  return entries().filter((e) => both(e).every((n) => finite(n?.value))).map((e) => {
    const [x, y] = both(e);
    return { ...e, x: [x.value], y: [y.value], xSpread: [x.spread], spread: [y.spread] };
  });
}

function seriesOf(chart) {
  if (chart.kind === "error") return errorSeries();
  if (chart.kind === "points") return pointSeries(chart);
  return entries().filter((e) => e[chart.field]).map((e) => ({ ...e, ...e[chart.field] }));
}

// ---- the axis of errors fits the entries: floors may leave it ----

function limits(series, log) {
  const drawable = (values) => values.filter((v) => finite(v) && (!log || v > 0));
  const ours = series.filter((s) => !s.ofFloor);
  const low = drawable(ours.flatMap((s) => s.y));
  const high = drawable(ours.flatMap((s) => s.y.map((v, i) => v + (s.spread?.[i] ?? 0)))).filter((v) => v > 0);
  const floors = drawable(series.flatMap((s) => s.upper ?? [])); // at most, where no entry is shown
  const bottom = low.length ? Math.min(...low) / 10 : floors.length ? Math.min(...floors) / 1000 : null;
  return { bottom: log ? bottom : null, top: high.length ? Math.max(...high) * (log ? 3 : 1.5) : null };
}

function offAxis({ name, x, y, upper }, { bottom, top }) { // what is said about a floor
  const where = (yes) => {
    const levels = x.filter((_, i) => yes(i)).toSorted((a, b) => a - b);
    if (!levels.length) return null;
    return `at logsnr ${format(levels[0])}${levels.length > 1 ? ` to ${format(levels.at(-1))}` : ""}`;
  };
  const under = where((i) => finite(bottom) && finite(y[i]) && y[i] < bottom);
  const over = where((i) => finite(top) && (upper ?? y)[i] > top);
  const line = [under && `under the axis ${under}`, !upper && over && `beyond the top ${over}`].filter(Boolean).join(", ");
  const band = upper && over ? `goes beyond the top ${over}.` : "";
  if (!line) return band && `The band of “${name}” ${band}`;
  return `The line of “${name}” lies ${line}${band ? `; its band ${band}` : "."}`;
}

// ---- in words and rows ----

const atMost = (series, i, before) => (finite(series.upper?.[i]) ? `${before}at most ${format(series.upper[i])}` : "");

function note(chart, series, log, span) {
  if (!series.length) return "Nothing to show: all its entries are hidden.";
  const below = log ? series.filter((s) => !s.ofFloor).flatMap((s) => s.y).filter((y) => finite(y) && y <= 0).length : 0;
  const without = chart.kind === "error" ? withoutFloor().map((e) => e.name) : [];
  return [
    without.length ? `No floor is known for ${without.join(", ")}.` : "",
    below ? `A logarithmic axis does not show ${below} value${below > 1 ? "s" : ""} of 0 or less.` : "",
    ...series.filter((s) => s.ofFloor).map((s) => offAxis(s, span)),
  ].filter(Boolean).join(" ");
}

const pointRows = (chart, series) => [
  ["entry", chart.x, chart.title],
  ...series.map((s) => [s.name, withSpread(s.x[0], s.xSpread[0]), withSpread(s.y[0], s.spread[0])]),
];

function lineRows(chart, series) {
  const xs = [...new Set(series.flatMap((s) => s.x))].sort((a, b) => a - b);
  const every = Math.ceil(xs.length / 200); // more rows than that are for a program, which has the runs
  const places = series.map((s) => new Map(s.x.map((x, i) => [x, i])));
  const cell = (s, i) => (i === undefined ? "" : withSpread(s.y[i], s.spread?.[i]) + atMost(s, i, ", "));
  const rows = xs.filter((_, i) => i % every === 0).map((x) => [format(x, 6), ...series.map((s, k) => cell(s, places[k].get(x)))]);
  return [[chart.x + (every > 1 ? ` (one in ${every})` : ""), ...series.map((s) => s.name)], ...rows];
}
