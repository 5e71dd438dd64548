/** The live page: what the server does, asked every second while somebody looks. */

import { ask } from "./api.js";
import { at, draw, fill, make } from "./dom.js";
import { all, refresh } from "./galleries.js";
import { hush, refuse } from "./refusals.js";

const KEPT = 60;
const WIDE = 120, HIGH = 32;

const FIGURES = [
  ["Calls a second", (live) => live.callsPerSecond, 1],
  ["Latency p50, ms", (live) => milliseconds(live.latencyP50), 1],
  ["Latency p99, ms", (live) => milliseconds(live.latencyP99), 1],
  ["Images a second", (live) => live.imagesPerSecond, 1],
  ["Images a batch", (live) => live.batchSize, 1],
  ["Waiting images", (live) => live.waiting, 0],
  ["Images under way", (live) => live.inFlight, 0],
  ["Turned away a second", (live) => live.rejectedPerSecond, 1],
];

let past = [];
let timer = 0;
let failing = false;

/** Look, or look no more. */
export function look(yes) {
  clearTimeout(timer);
  timer = 0;
  if (yes) timer = setTimeout(poll);
}

async function poll() {
  const mine = timer;
  try {
    if (!document.hidden) {
      const [live, model] = await Promise.all([ask("GET", "v1/live"), ask("GET", "v1/model"), refresh()]);
      past = [...past, live].slice(-KEPT);
      render(model);
      if (failing) hush();
      failing = false;
    }
  } catch (error) {
    if (!failing) refuse(error);
    failing = true;
  }
  if (mine === timer) timer = setTimeout(poll, 1000);
}

function render(model) {
  fill(at("figures"), ...FIGURES.map(([name, of, digits]) => {
    const values = past.map(of);
    const now = values.at(-1);
    const says = now === undefined ? "–" : now.toFixed(digits);
    return make("div", { class: "figure" }, make("span", {}, name), make("strong", {}, says), line(values));
  }));
  fill(
    at("served"),
    table(["Gallery", "Entries", "Generation", "Index", "Writable"], all().map((gallery) => [
      gallery.name, Number(gallery.entries).toLocaleString("en"), gallery.generation, gallery.index, gallery.writable ? "yes" : "no",
    ])),
    make("p", { class: "small" }, `Model ${model.model.identity.slice(0, 12)} on ${model.model.engine}, ${model.height} × ${model.width} in, ${model.dim} out; replaced ${model.reloads} times.`),
  );
}

/** What values were, the newest at the right. */
function line(values) {
  const most = Math.max(1e-9, ...values.filter((value) => value !== undefined));
  const points = values
    .map((value, place) => value === undefined ? "" : `${WIDE - (values.length - 1 - place) * (WIDE / (KEPT - 1))},${HIGH - 2 - (value / most) * (HIGH - 4)}`)
    .filter(Boolean);
  return draw("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true" }, draw("polyline", { points: points.join(" ") }));
}

function table(heads, rows) {
  return make(
    "div",
    { class: "wide" },
    make(
      "table",
      {},
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))))),
    ),
  );
}

const milliseconds = (duration) => duration === undefined ? undefined : Number.parseFloat(duration) * 1000;
