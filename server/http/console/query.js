/** Queries: files that show one target, or an entry, and how they are shown. */

import { ask, base64 } from "./api.js";
import { picture } from "./cards.js";
import { at, fill, make } from "./dom.js";

const PREVIEWED = 8; // each costs the server a decoder's time

/** A query by files. */
export const byFiles = (files) => ({
  files,
  name: files.map((file) => file.name).join(", "),
  stamp: files.map((file) => `${file.size} ${file.lastModified}`).join(", "), // tells pasted ones apart: all have one name
  pid: "",
});

/** A query by an entry of a gallery. */
export const byEntry = (gallery, entry) => ({ entry, gallery, name: entry.entryId, stamp: "", pid: entry.pid ?? "" });

let shown = new AbortController();

/** Show a query, as it was given and as the network sees it; `known` is called when people say who it is. */
export function showQuery(query, known) {
  shown.abort();
  shown = new AbortController();
  at("drop").classList.toggle("compact", query !== null);
  if (!query) {
    fill(at("query"));
    return;
  }
  const pid = make("input", {
    id: "query-pid", type: "text", value: query.pid, autocomplete: "off", placeholder: "pid, if you know it",
    input: () => { query.pid = pid.value; known(); },
  });
  const seen = make("div", { class: "seen" });
  const about = query.entry ? "An entry of the gallery" : query.files.length > 1 ? `${query.files.length} pictures of one target` : "Your picture";
  fill(at("query"), make("p", { class: "about" }, make("strong", {}, about), make("span", {}, query.name)), seen, make("label", {}, "Who it is", pid));
  if (query.entry) fill(seen, make("figure", {}, picture(query.gallery, query.entry.entryId)));
  else preview(query.files.slice(0, PREVIEWED), seen, shown.signal);
}

async function preview(files, place, signal) {
  for (const file of files) {
    const given = make("figure", {}, image(file, "Your picture"), make("figcaption", {}, "as given"));
    const asSeen = make("figure", {}, make("span", { class: "picture" }), make("figcaption", {}, "as the network sees it"));
    place.append(make("div", { class: "pair" }, given, asSeen));
    try {
      const { png } = await ask("POST", "v1/preview", { image: await base64(file) }, { signal });
      asSeen.firstChild.replaceWith(make("img", { src: `data:image/png;base64,${png}`, alt: "The picture, resized" }));
    } catch {
      // The search by the same picture says what is wrong with it.
      asSeen.remove();
      if (signal.aborted) return;
    }
  }
}

function image(file, alt) {
  const url = URL.createObjectURL(file);
  const free = () => URL.revokeObjectURL(url);
  const shownImage = make("img", { src: url, alt, load: free, error: () => { free(); shownImage.parentElement.remove(); } });
  return shownImage;
}
