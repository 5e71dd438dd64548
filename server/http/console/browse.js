/** Browsing: a gallery's entries, page by page. */

import { ask, entriesPath } from "./api.js";
import { arrows, card } from "./cards.js";
import { at, fill } from "./dom.js";
import { deletingBar } from "./deleting.js";
import { filterFields } from "./filters.js";
import { chosen, refresh } from "./galleries.js";
import { hush, refuse } from "./refusals.js";

const PAGE = 48;

let where = () => undefined;
let opened = () => {};
let tokens = [""]; // of the pages up to the one that is shown
let after = ""; // of the one behind it
let running = new AbortController();
let listed = [];
const selected = new Set();

/** Put life into the page; `open` is called with an entry that is chosen. */
export function start(open) {
  opened = open;
  where = filterFields(at("browse-filter"), ["pids", "camids", "notCamids", "since", "until", "attribute"], begin);
  at("page-after").addEventListener("click", () => turn([...tokens, after]));
  at("page-before").addEventListener("click", () => turn(tokens.slice(0, -1)));
  arrows(at("entries"));
}

/** List from the first page on. */
export function begin() {
  return turn([""]);
}

/** Show the page that the last token asks for. */
async function turn(asked) {
  running.abort();
  if (!chosen()) return;
  running = new AbortController();
  const { signal } = running;
  hush();
  at("entries").setAttribute("aria-busy", "true");
  try {
    [listed, after] = await page(asked.at(-1), signal);
    tokens = asked;
    selected.clear();
    render();
  } catch (error) {
    if (!signal.aborted) refuse(error, begin);
  }
  if (!signal.aborted) at("entries").removeAttribute("aria-busy");
}

/** The entries of a page, and the token of the one behind it; a filter may need many of the server's. */
async function page(token, signal) {
  const entries = [];
  let next = token;
  do {
    const request = { gallery: chosen().name, pageSize: PAGE - entries.length, pageToken: next, filter: where() };
    const answer = await ask("POST", "reid.v1.GalleryService/ListEntries", request, { signal });
    entries.push(...answer.entries);
    next = answer.nextPageToken;
  } while (next && entries.length < PAGE);
  return [entries, next];
}

function render() {
  at("page-after").disabled = !after;
  at("page-before").disabled = tokens.length < 2;
  const { name, entries, writable } = chosen();
  const found = where() ? `${listed.length} that the filter lets through` : `${Number(entries).toLocaleString("en")} entries`;
  at("browse-summary").textContent = `${name}: ${found}; page ${tokens.length}${after ? "" : ", the last"}.`;
  at("adding").hidden = !writable;
  fill(at("entries"), ...listed.map(entryCard));
  bar();
}

function entryCard(entry) {
  const select = (yes) => {
    if (yes) selected.add(entry.entryId);
    else selected.delete(entry.entryId);
    bar();
  };
  return card(chosen().name, entry, { hint: "Search by this", open: () => opened(entry), select });
}

function bar() {
  deletingBar(at("deleting"), [...selected], async (ids) => {
    await ask("POST", `${entriesPath(chosen().name)}:delete`, { entryIds: ids });
    await refresh();
    await begin();
  });
}
