/** The page: its parts, which of them is shown, and what is dropped and pasted onto it. */

import * as adding from "./adding.js";
import { key } from "./api.js";
import * as browse from "./browse.js";
import { at } from "./dom.js";
import * as galleries from "./galleries.js";
import * as live from "./live.js";
import { byEntry } from "./query.js";
import { hush, refuse } from "./refusals.js";
import * as search from "./search.js";

const PAGES = ["search", "gallery", "live"];

const queries = []; // that were asked, for the browser's way back

function begin() {
  search.start(remember);
  browse.start((entry) => remember(byEntry(galleries.chosen().name, entry)));
  adding.start(browse.begin);
  history.replaceState({ query: null }, "");
  addEventListener("popstate", (event) => {
    // A link to another part of the page has no state, and leaves the query as it is.
    if (event.state) search.show(queries[event.state.query] ?? null);
    showPage();
  });
  at("gallery-name").addEventListener("change", () => {
    galleries.keep();
    search.changedGallery();
    if (page() === "gallery") browse.begin();
  });
  startKey();
  startTaking();
  load();
}

const page = () => (PAGES.includes(location.hash.slice(1)) ? location.hash.slice(1) : "search");

function showPage() {
  hush();
  for (const section of document.querySelectorAll("section[data-of]")) section.hidden = section.dataset.of !== page();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.page === page()) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  live.look(page() === "live");
  if (page() === "gallery") browse.begin();
}

/** Search by a query, which the browser's way back leads to. */
function remember(query) {
  queries.push(query);
  history.pushState({ query: queries.length - 1 }, "", "#search");
  showPage();
  search.show(query);
}

async function load() {
  showPage();
  try {
    await galleries.refresh();
  } catch (error) {
    refuse(error, load);
    return;
  }
  showPage();
}

function startKey() {
  at("key").value = key.get();
  const use = () => {
    key.set(at("key").value);
    at("key-box").open = false;
    load();
  };
  at("key-use").addEventListener("click", use);
  at("key").addEventListener("keydown", (event) => event.key === "Enter" && use());
}

/** Pictures are taken wherever they are dropped or pasted. */
function startTaking() {
  const take = (files) => {
    if (page() === "gallery") adding.take(files);
    else search.take(files, remember);
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  for (const name of ["dragleave", "dragend"]) addEventListener(name, () => document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) take([...event.clipboardData.files]);
  });
}

begin();
