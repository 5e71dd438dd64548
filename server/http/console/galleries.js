/** Galleries: which there are, and which one the page is about. */

import { ask } from "./api.js";
import { at, fill, make } from "./dom.js";

const CHOSEN = "reidserve-gallery"; // kept for the tab

let known = [];

/** The gallery that is chosen; none before there is one. */
export const chosen = () => known.find((gallery) => gallery.name === at("gallery-name").value);

/** All of them, as the server said last. */
export const all = () => known;

/** Another one is chosen. */
export const keep = () => sessionStorage.setItem(CHOSEN, at("gallery-name").value);

/** Ask the server which there are; what was chosen stays so. */
export async function refresh() {
  known = (await ask("GET", "v1/galleries")).galleries;
  const select = at("gallery-name");
  const before = select.value || sessionStorage.getItem(CHOSEN);
  if ([...select.options].map((option) => option.value).join("\n") !== known.map((gallery) => gallery.name).join("\n")) {
    fill(select, ...known.map((gallery) => make("option", { value: gallery.name }, gallery.name)));
    if (known.some((gallery) => gallery.name === before)) select.value = before;
  }
}
