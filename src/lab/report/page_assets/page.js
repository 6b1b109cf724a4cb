"use strict";
// Text reaches the page through textContent alone: what a model or a data set wrote is never markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function node(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))));
  return made;
}
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(1) : value.toFixed(size >= 100 ? 1 : digits);
  return text.replace("-", "−");
}

function tick(value) {
  if (Math.abs(value) < 1e-9) return "0";
  return (Math.abs(value) < 0.1 ? value.toPrecision(2) : value.toFixed(2)).replace("-", "−");
}
function ratio(value) {
  return Number.isInteger(value) ? value.toFixed(1) : String(value);
}
function exact(value) {
  if (typeof value !== "number") return value === null ? "–" : String(value);
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential().replace("-", "−") : String(value);
}

// ---- table of runs ------------------------------------------------------------------------------
const COLUMNS = [
  ["run", (r) => `${r.experiment}/${r.name}`, "left"],
  ["status", (r) => r.status, "left"],
  ["method", (r) => r.title, "left"],
  ["model", (r) => r.model, "left wide"],
  ["r1, r2", (r) => (r.ratio ? r.ratio.map(ratio).join(", ") : null), ""],
  ["seed", (r) => r.seed, ""],
  ["lr", (r) => r.lr, "wide"],
  ["rewards", null, "wide"],
  ["chosen", (r) => r.final["rewards/chosen"], "", "held-out pairs, nats"],
  ["rejected", (r) => r.final["rewards/rejected"], "", "held-out pairs, nats"],
  ["accuracy", (r) => r.final["rewards/accuracies"], "wide", "held-out pairs"],
  ["win %", (r) => r.win, "", "the win rate of the first evaluation that has one"],
  ["seconds", (r) => r.seconds, "wide"],
  ["started", (r) => r.started, "left wide"],
];
const WHOLE = new Set(["seed", "seconds"]);
let order = { column: COLUMNS.length - 1, down: true }; // the newest first
const FILTERS = ["experiment", "method", "model", "status"];

function fillSelect(select, values, all) {
  select.replaceChildren(...(all ? [node("option", { value: "" }, all)] : []), ...values.map((v) => node("option", { value: v }, v)));
}
for (const key of FILTERS) {
  fillSelect($(`f-${key}`), [...new Set(DATA.runs.map((r) => r[key]).filter(Boolean))].sort(), "all");
  $(`f-${key}`).addEventListener("change", drawTable);
}
$("f-text").addEventListener("input", drawTable);
$("table").tHead.append(node("tr", {}, ...COLUMNS.map(([name, read, classes, title], index) =>
  node("th", { scope: "col", class: classes, title }, read ? node("button", { type: "button", onclick: () => sortBy(index) }, name) : name))));

function sortBy(index) {
  order = { column: index, down: order.column === index && !order.down };
  drawTable();
}
function shownRuns() {
  const words = $("f-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = FILTERS.map((key) => [key, $(`f-${key}`).value]).filter(([, value]) => value);
  const read = COLUMNS[order.column][1];
  return DATA.runs
    .filter((r) => chosen.every(([key, value]) => r[key] === value) && words.every((w) => r.text.includes(w)))
    .sort((a, b) => {
      const [x, y] = [read(a), read(b)];
      if (x === y) return 0;
      if (x === null || x === undefined) return 1;
      if (y === null || y === undefined) return -1;
      return (x < y ? -1 : 1) * (order.down ? -1 : 1);
    });
}
function drawTable() {
  const runs = shownRuns();
  $("f-count").textContent = `${runs.length} of ${DATA.runs.length} runs`;
  $("table").tBodies[0].replaceChildren(...runs.map(row));
  [...$("table").tHead.rows[0].cells].forEach((cell, index) =>
    cell.setAttribute("aria-sort", index !== order.column ? "none" : order.down ? "descending" : "ascending"));
}
function row(run) {
  return node("tr", {}, ...COLUMNS.map(([name, read, classes]) => {
    if (name === "run") return node("td", { class: classes }, node("a", { href: linkTo(run) }, run.name), node("div", { class: "quiet" }, run.experiment));
    if (name === "status") return node("td", { class: classes }, node("span", { class: `status t-${run.status}`, title: run.error }, run.status));
    if (name === "rewards") return node("td", { class: classes }, sparkline(run));
    const value = read(run);
    const text = typeof value !== "number" ? value ?? "–" : name === "lr" ? exact(value) : number(value, WHOLE.has(name) ? 0 : name === "win %" ? 1 : 3);
    return node("td", { class: classes }, text);
  }));
}
function sparkline(run) {
  const curves = ["rewards/chosen", "rewards/rejected"].map((key) => run.curves[key]).filter(Boolean);
  const svg = node("svg:svg", { width: 84, height: 22, viewBox: "0 0 84 22", "aria-hidden": "true" });
  const values = curves.flatMap((c) => c.y).filter((v) => v !== null);
  if (!values.length) return svg;
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  curves.forEach((c, k) => {
    const points = c.y.map((v, i) => (v === null ? null : `${(84 * i) / Math.max(1, c.y.length - 1)},${21 - (20 * (v - low)) / (high - low || 1)}`));
    svg.append(node("svg:polyline", { points: points.filter(Boolean).join(" "), fill: "none", stroke: `var(--${k ? "rejected" : "chosen"})`, "stroke-width": 1.6 }));
  });
  return svg;
}
document.querySelectorAll("[data-experiment]").forEach((button) => button.addEventListener("click", () => {
  $("f-experiment").value = button.dataset.experiment;
  drawTable();
  $("runs").scrollIntoView();
}));

// ---- one run ------------------------------------------------------------------------------------
const CHARTS = [
  ["Implicit rewards, nats", [["rewards/chosen", "chosen", "chosen"], ["rewards/rejected", "rejected", "rejected"]]],
  ["Margin, nats", [["rewards/margins", "margin", "third"]]],
  ["Accuracy", [["rewards/accuracies", "accuracy", "third"]]],
  ["Loss", [["loss", "loss", "chosen"]]],
  ["log f (Theorem 3)", [["pilot/log_balance", "log f", "third"]]],
  ["Pull over push, log(dw/dl)", [["incentive/log_ratio", "0: DPO", "third"]]],
  ["Displaced pairs", [["displaced", "share", "third"]]],
  ["Log-ratio a token, nats", [["log_ratio/chosen", "chosen", "chosen"], ["log_ratio/rejected", "rejected", "rejected"]]],
  ["Entropy a token, nats", [["entropy/chosen", "chosen", "chosen"]]],
];
function linkTo(run) {
  return `#run=${encodeURIComponent(`${run.experiment}/${run.name}`)}`;
}
function openRun(run) {
  $("run-title").textContent = `${run.experiment} / ${run.name}`;
  const parts = [node("p", {}, node("span", { class: `status t-${run.status}` }, run.status), run.error ? ` — ${run.error}` : "")];
  parts.push(node("div", { class: "charts" }, ...CHARTS.map((c) => chart(run, ...c)).filter(Boolean)));
  if (Object.keys(run.eval).length) parts.push(node("h3", {}, "Judged"), ...Object.entries(run.eval).map(([key, values]) => node("div", {}, node("b", {}, key), facts(values, (v) => (typeof v === "number" && !Number.isInteger(v) ? number(v) : exact(v))))));
  if (run.pairs.length) parts.push(node("h3", {}, "Rewards per token"), legend(), ...run.pairs.map(tokens));
  if (run.samples.length) parts.push(node("h3", {}, "Samples"), ...run.samples.map(sample));
  parts.push(node("h3", {}, "Settings and cost"), facts({ ...run.settings, ...run.cost }, exact));
  parts.push(node("h3", {}, "Files"), node("p", {}, ...run.files.flatMap((f) => [node("a", { href: f.href }, f.name), "  "])));
  if (run.left_out) parts.push(node("p", { class: "note" }, run.left_out));
  $("run-body").replaceChildren(...parts);
  history.replaceState(null, "", linkTo(run));
  if (!$("run").open) $("run").showModal();
  $("run").scrollTop = 0;
  $("run-title").focus();
}
$("close").addEventListener("click", () => $("run").close());
$("run").addEventListener("close", () => history.replaceState(null, "", "#runs"));
$("run").addEventListener("click", (event) => { if (event.target === $("run")) $("run").close(); });

function facts(values, show) {
  return node("dl", { class: "facts" }, ...Object.entries(values).map(([key, value]) => node("div", {}, node("dt", {}, key), node("dd", {}, show(value)))));
}
function chart(run, title, keys) {
  const found = keys.filter(([key]) => run.curves[key]);
  if (!found.length) return null;
  const all = found.flatMap(([key]) => [run.curves[key], run.held[key]].filter(Boolean));
  const ys = all.flatMap((c) => c.y).filter((v) => v !== null);
  if (!ys.length) return null;
  const last = Math.max(...all.flatMap((c) => c.x), 1);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (title.includes("nats")) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (low === high) [low, high] = [low - 1, high + 1];
  const [W, H, L, B, R] = [330, 168, 40, 18, 56];
  const px = (x) => L + ((W - L - R) * x) / last;
  const py = (y) => 6 + ((H - B - 10) * (high - y)) / (high - low);
  const svg = node("svg:svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title} against steps` });
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(node("svg:line", { class: "axis", x1: L, x2: W - R, y1: py(value), y2: py(value) }), node("svg:text", { x: L - 4, y: py(value) + 3, "text-anchor": "end" }, tick(value)));
  }
  if (low < 0 && high > 0) svg.append(node("svg:line", { class: "zero", x1: L, x2: W - R, y1: py(0), y2: py(0) }));
  svg.append(node("svg:text", { x: L, y: H - 4 }, "0"), node("svg:text", { x: W - R, y: H - 4, "text-anchor": "end" }, `step ${last}`));
  let above = -99;
  const ends = found.map(([key, label, colour]) => {
    const c = run.curves[key];
    const points = c.x.map((x, i) => (c.y[i] === null ? null : `${px(x).toFixed(1)},${py(c.y[i]).toFixed(1)}`)).filter(Boolean);
    svg.append(node("svg:polyline", { points: points.join(" "), fill: "none", stroke: `var(--${colour})`, "stroke-width": 1.8 }));
    const held = run.held[key];
    if (held) held.x.forEach((x, i) => held.y[i] === null || svg.append(node("svg:circle", { cx: px(x), cy: py(held.y[i]), r: 2.8, fill: "var(--panel)", stroke: `var(--${colour})`, "stroke-width": 1.5 })));
    return [py(c.y.filter((v) => v !== null).at(-1) ?? low), label, colour];
  });
  for (const [y, label, colour] of ends.sort((a, b) => a[0] - b[0])) {
    above = Math.max(y, above + 12);
    svg.append(node("svg:text", { x: W - R + 5, y: above + 3, style: `fill:var(--${colour});font-weight:600` }, label));
  }
  return node("div", { class: "chart" }, node("h4", {}, title), svg);
}
function legend() {
  return node("p", { class: "note legend" }, node("i", { style: "background:var(--chosen)" }), "raises the reward", node("i", { style: "background:var(--rejected)" }), "lowers it (stronger is more);  underlined: taken by the pilot");
}
function tokens(pair) {
  const most = Math.max(1e-9, ...[...pair.chosen, ...pair.rejected].map((t) => Math.abs(t.reward)));
  const side = (name, list) => [
    node("p", {}, node("b", {}, name), `  reward ${number(list.reduce((sum, t) => sum + t.reward, 0))}, ${list.length} tokens, pilot ${list.filter((t) => t.pilot).length}`),
    node("div", { class: "text" }, ...list.map((t) => node("span", {
      class: t.pilot ? "tok pilot" : "tok", title: `${number(t.reward, 4)}${t.pilot ? ", pilot" : ""}`,
      style: `background:color-mix(in srgb, var(--${t.reward >= 0 ? "chosen" : "rejected"}) ${Math.round((60 * Math.abs(t.reward)) / most)}%, transparent)`,
    }, t.token))),
  ];
  return node("div", { class: "sample" }, node("div", { class: "text quiet" }, pair.prompt), ...side("chosen", pair.chosen), ...side("rejected", pair.rejected));
}
function sample(item) {
  return node("div", { class: "sample" }, node("p", { class: "quiet" }, item.head), node("div", { class: "text quiet" }, item.prompt), node("div", { class: "text" }, item.response));
}

// ---- ratio grid ---------------------------------------------------------------------------------
const CIVIDIS = [[0, 34, 78], [53, 69, 109], [102, 105, 112], [148, 142, 119], [202, 186, 106], [254, 232, 56]];
function shade(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const [low, part] = [Math.min(Math.floor(at), CIVIDIS.length - 2), at - Math.min(Math.floor(at), CIVIDIS.length - 2)];
  return `rgb(${CIVIDIS[low].map((v, k) => Math.round(v + part * (CIVIDIS[low + 1][k] - v))).join(",")})`;
}
const grids = new Map();
for (const run of DATA.runs) if (run.ratio && run.status === "finished") grids.set(`${run.experiment} · ${run.model}`, [run.experiment, run.model]);
const metrics = [...new Set(DATA.runs.flatMap((r) => Object.keys(r.grid)))].sort();
fillSelect($("g-where"), [...grids.keys()].sort());
fillSelect($("g-metric"), metrics);
const most = (name) => new Set(DATA.runs.filter((r) => r.ratio && `${r.experiment} · ${r.model}` === name).map((r) => String(r.ratio))).size;
if (grids.size) $("g-where").value = [...grids.keys()].sort((a, b) => most(b) - most(a))[0];
const has = (metric) => DATA.runs.some((r) => r.ratio && `${r.experiment} · ${r.model}` === $("g-where").value && typeof r.grid[metric] === "number");
const shown = [...metrics.filter((name) => name.endsWith(":win_rate")), "eval/rewards/margins"].find(has);
if (shown) $("g-metric").value = shown;
$("g-where").addEventListener("change", drawGrid);
$("g-metric").addEventListener("change", drawGrid);

const mean = (list) => (list.length ? list.reduce((a, b) => a + b, 0) / list.length : null);
function drawGrid() {
  const [experiment, model] = grids.get($("g-where").value) ?? [];
  const metric = $("g-metric").value;
  if (!experiment) return $("g-view").replaceChildren(node("p", { class: "quiet" }, "No finished run with ratios yet. Make them: make table1"));
  const own = DATA.runs.filter((r) => r.experiment === experiment && r.model === model && r.status === "finished" && typeof r.grid[metric] === "number");
  const places = own.map((r) => [r.method, r.ratio, r.seed].join());
  if (new Set(places).size < places.length) return $("g-view").replaceChildren(node("p", { class: "quiet" }, `${experiment} has runs of one seed and ratio that differ in another setting. Told apart: python scripts/results.py ${experiment}`));
  const at = (c, r) => own.filter((run) => run.ratio && run.ratio[0] === c && run.ratio[1] === r);
  const axis = (k) => [...new Set(own.filter((r) => r.ratio).map((r) => r.ratio[k]))].sort((a, b) => a - b);
  const base = own.filter((r) => r.method === DATA.baseline);
  const beside = mean(base.map((r) => r.grid[metric]));
  const [rows, columns] = [axis(0).reverse(), axis(1)];
  const values = rows.flatMap((c) => columns.map((r) => mean(at(c, r).map((run) => run.grid[metric])))).concat(beside).filter((v) => v !== null);
  if (!values.length) return $("g-view").replaceChildren(node("p", { class: "quiet" }, `No run here has ${metric} yet.`));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const share = (v) => (high > low ? (v - low) / (high - low) : 0.5);
  const cell = (c, r) => {
    const runs = at(c, r);
    const value = mean(runs.map((run) => run.grid[metric]));
    if (value === null) return node("td", {}, "–");
    const label = `r1 ${ratio(c)}, r2 ${ratio(r)}: ${number(value)}, ${runs.length} seeds`;
    return node("td", {}, node("button", { type: "button", title: label, "aria-label": label, style: `background:${shade(share(value))};color:${share(value) > 0.45 ? "#000" : "#fff"}`, onclick: () => openRun(runs[0]) }, number(value, 2)));
  };
  const table = node("table", { class: "heat" },
    node("tbody", {}, ...rows.map((c) => node("tr", {}, node("th", { scope: "row" }, `r1 ${ratio(c)}`), ...columns.map((r) => cell(c, r))))),
    node("tfoot", {}, node("tr", {}, node("th", {}), ...columns.map((r) => node("th", { scope: "col" }, `r2 ${ratio(r)}`)))));
  const scale = node("div", { class: "scale", style: `background:linear-gradient(90deg,${[0, 0.2, 0.4, 0.6, 0.8, 1].map(shade).join(",")})` },
    node("span", { style: "left:0" }, number(low)), node("span", { style: "right:0" }, number(high)));
  if (beside !== null) scale.append(node("b", { style: `left:${100 * share(beside)}%` }, `${base[0].title} ${number(beside)}`));
  $("g-view").replaceChildren(table, scale);
}

// ---- the rest -----------------------------------------------------------------------------------
$("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
});
function followHash() {
  const found = decodeURIComponent(location.hash).match(/^#run=(.+)$/);
  const run = found && DATA.runs.find((r) => `${r.experiment}/${r.name}` === found[1]);
  if (run) openRun(run);
}
addEventListener("hashchange", followHash);
drawTable();
drawGrid();
followHash();
