/** Searching: what is looked for, what was found, and which of it people select. */

import { ask, base64 } from "./api.js";
import { arrows, card } from "./cards.js";
import { at, fill, make } from "./dom.js";
import { filterFields } from "./filters.js";
import { chosen } from "./galleries.js";
import { attributeOf, judgingBar } from "./judging.js";
import { byEntry, byFiles, showQuery } from "./query.js";
import { hush, refuse } from "./refusals.js";

let query = null;
let answer = null;
let where = () => undefined;
let running = new AbortController();
const selected = new Set();

/** Put life into the page; `remember` keeps a query, so that the browser's way back leads to it. */
export function start(remember) {
  // Where there is room beside the hits.
  at("options").open = matchMedia("(min-width: 52rem)").matches;
  where = filterFields(at("search-filter"), ["camids", "notCamids", "since", "until"], search);
  for (const name of ["top-k", "least"]) at(name).addEventListener("change", search);
  at("files").addEventListener("change", () => {
    take([...at("files").files], remember);
    at("files").value = "";
  });
  arrows(at("hits"));
  opened = (entry) => {
    remember(byEntry(chosen().name, entry));
    scrollTo({ top: 0 });
  };
}

/** Search by files, which are of one target. */
export function take(files, remember) {
  if (files.length) remember(byFiles(files));
}

/** Search by a query, or show that there is none. */
export function show(next) {
  query = next;
  answer = null;
  selected.clear();
  renderHits();
  search(); // before the preview, where a key's rate lets only one of them through
  showQuery(query, renderHits);
}

/** Another gallery is chosen: an entry of the one before cannot be looked for in it. */
export function changedGallery() {
  if (query?.entry) show(null);
  else search();
}

let opened = () => {};

async function search() {
  running.abort();
  if (!query || !chosen()) return;
  running = new AbortController();
  const { signal } = running;
  const first = !answer;
  hush();
  at("hits").setAttribute("aria-busy", "true");
  at("found-summary").textContent = "Searching …";
  try {
    const found = await ask("POST", "v1/search", { ...(await sought(query)), ...asked() }, { signal });
    if (signal.aborted) return;
    answer = found;
    selected.clear();
  } catch (error) {
    if (signal.aborted) return;
    answer = null;
    refuse(error, search);
  }
  at("hits").removeAttribute("aria-busy");
  renderHits();
  // On a phone the hits come below what was asked.
  if (first && at("found-summary").getBoundingClientRect().top > innerHeight / 2) at("found-summary").scrollIntoView();
}

async function sought({ entry, files }) {
  if (entry) return { entryId: entry.entryId };
  const images = await Promise.all(files.map(base64));
  return images.length === 1 ? { image: images[0] } : { track: { images } };
}

function asked() {
  const question = { gallery: chosen().name, topK: at("top-k").valueAsNumber || 10 };
  const least = at("least").valueAsNumber;
  if (!Number.isNaN(least)) question.minScore = least;
  const filter = where();
  return filter ? { ...question, filter } : question;
}

function renderHits() {
  const hits = answer?.hits ?? [];
  at("found-summary").textContent = answer ? summary(hits) : "";
  fill(at("hits"), ...hits.map(hitCard));
  judgingBar(at("judging"), { query, selected: hits.filter((hit) => selected.has(hit.entryId)), done: judged });
}

function hitCard(hit) {
  const made = card(chosen().name, hit, {
    hint: "Search by this",
    open: () => opened(hit),
    select: (yes) => {
      if (yes) selected.add(hit.entryId);
      else selected.delete(hit.entryId);
      judgingBar(at("judging"), { query, selected: answer.hits.filter((each) => selected.has(each.entryId)), done: judged });
    },
    marks: marksOf(hit),
    facts: [
      make(
        "p",
        { class: "score" },
        make("span", { class: "rank" }, `${hit.rank}.`),
        make("meter", { min: 0, max: 1, value: Math.max(0, hit.score), "aria-hidden": "true" }),
        make("strong", {}, hit.score.toFixed(3)),
      ),
    ],
  });
  made.querySelector(".select input").checked = selected.has(hit.entryId);
  return made;
}

function marksOf(hit) {
  const marks = [];
  const pid = at("query-pid")?.value.trim();
  if (pid && hit.pid !== undefined) marks.push(hit.pid === pid ? ["right", "right"] : ["wrong", "wrong"]);
  if (answer.threshold !== undefined) {
    marks.push(hit.score >= answer.threshold ? ["likely", "likely the same"] : ["unlikely", "below the threshold"]);
  }
  const said = hit.attributes?.[attributeOf(query)]?.text;
  if (said) marks.push([said, `said: ${said}`]);
  return marks;
}

function summary(hits) {
  const { name, entries } = chosen();
  if (!hits.length) return `Nothing in ${name} may be found with these options.`;
  const seconds = Number.parseFloat(answer.timings.total);
  const pid = at("query-pid")?.value.trim();
  const right = hits.filter((hit) => hit.pid === pid);
  const labelled = !pid ? "" : right.length ? ` ${right.length} right, the first at rank ${right[0].rank}.` : " None of them is right.";
  return `The ${hits.length} most similar of ${Number(entries).toLocaleString("en")} entries in ${name}, best first, in ${(seconds * 1000).toFixed(0)} ms.${labelled}`;
}

/** What was said of entries is shown at once. */
function judged(updated) {
  for (const entry of updated) {
    const hit = answer.hits.find((each) => each.entryId === entry.entryId);
    if (hit) hit.attributes = entry.attributes;
  }
  selected.clear();
  renderHits();
}
