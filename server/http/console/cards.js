/** Cards: one entry each, with its thumbnail, what is known of it, and whether it is selected. */

import { thumbnail } from "./api.js";
import { fill, make } from "./dom.js";

/** A card of an entry or a hit; `open` is called when it is chosen, `select` when its selection changes. */
export function card(gallery, entry, { open, select, marks = [], facts = [], hint }) {
  const name = `${entry.entryId}${entry.pid === undefined ? "" : `, pid ${entry.pid}`}`;
  return make(
    "li",
    { class: "card", "data-id": entry.entryId },
    make(
      "button",
      { type: "button", class: "open", title: hint, "aria-label": [...marks.map(([, says]) => says), `${hint}: ${name}`].join(", "), click: open },
      picture(gallery, entry.entryId),
    ),
    make("div", { class: "marks" }, ...marks.map(([kind, says]) => make("span", { class: `mark ${kind}` }, says))),
    ...facts,
    make("dl", {}, ...known(entry).flatMap(([term, says, title]) => [make("dt", {}, term), make("dd", { title }, says)])),
    make(
      "label",
      { class: "select" },
      make("input", { type: "checkbox", "aria-label": `Select ${name}`, change: (event) => select(event.target.checked) }),
      "Select",
    ),
  );
}

/** An entry's thumbnail, loaded when it comes into view; its id stands for it where the gallery keeps none. */
export function picture(gallery, id) {
  const box = make("span", { class: "picture" }, make("span", { class: "none" }, id));
  waiting.set(box, { gallery, id });
  seen.observe(box);
  return box;
}

/** A local time, and the moment as the server says it. */
export function local(timestamp) {
  const when = new Date(timestamp);
  const two = (number) => String(number).padStart(2, "0");
  const date = [when.getFullYear(), two(when.getMonth() + 1), two(when.getDate())].join("-");
  return `${date} ${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
}

/** An attribute's value as people write it. */
export const written = (value) => String(Object.values(value)[0] ?? "");

/** Move between the cards of a list with the arrow keys. */
export function arrows(list) {
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches(".open")) return;
    const all = [...list.querySelectorAll(".open")];
    all[all.indexOf(event.target) + step]?.focus();
    event.preventDefault();
  });
}

const waiting = new WeakMap();
const seen = new IntersectionObserver(
  (changes) => {
    for (const change of changes) {
      if (change.isIntersecting) {
        seen.unobserve(change.target);
        load(change.target);
      }
    }
  },
  { rootMargin: "200px" },
);

async function load(box) {
  const { gallery, id } = waiting.get(box);
  // Where it cannot be had, the id says enough.
  const stored = await thumbnail(gallery, id).catch(() => null);
  if (!stored) return;
  const url = URL.createObjectURL(stored);
  const image = make("img", { src: url, alt: "", load: () => URL.revokeObjectURL(url) });
  fill(box, image);
}

function known(entry) {
  const facts = [["id", entry.entryId, entry.entryId]];
  if (entry.pid !== undefined) facts.push(["pid", entry.pid, entry.pid]);
  if (entry.camid !== undefined) facts.push(["camera", entry.camid, entry.camid]);
  if (entry.timestamp) facts.push(["time", local(entry.timestamp), entry.timestamp]);
  for (const [name, value] of Object.entries(entry.attributes ?? {}).sort()) {
    facts.push([name, written(value), `${name} = ${written(value)}`]);
  }
  return facts;
}
