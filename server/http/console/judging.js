/** Judging: people say of hits that they show the query's target, or another; the entry keeps it as an attribute. */

import { ask, entryPath } from "./api.js";
import { fill, make } from "./dom.js";
import { chosen } from "./galleries.js";
import { refuse } from "./refusals.js";

const LONGEST = 48;

/** The attribute in which a hit keeps what was said of it and a query: match_ and the query's label. */
export const attributeOf = (query) => `match_${query.label ?? labelOf(query)}`;

/** The bar in which selected hits are judged; `done` gets the entries as they are then. */
export function judgingBar(bar, { query, selected, done }) {
  bar.hidden = selected.length === 0;
  if (bar.hidden) return;
  const say = (word) => async () => {
    const updated = [];
    try {
      for (const hit of selected) updated.push(await judge(hit, attributeOf(query), word));
    } catch (error) {
      refuse(error);
    }
    done(updated);
  };
  const writable = chosen().writable;
  const label = make("input", {
    type: "text", value: query.label ?? labelOf(query), maxlength: LONGEST, pattern: "[A-Za-z0-9_]+", autocomplete: "off",
    input: () => { query.label = word(label.value); },
  });
  fill(
    bar,
    make("strong", {}, `${selected.length} selected`),
    make("button", { type: "button", click: say("same"), disabled: !writable }, "Same"),
    make("button", { type: "button", click: say("different"), disabled: !writable }, "Different"),
    make("button", { type: "button", click: say(null), disabled: !writable, class: "plain" }, "Take back"),
    writable
      ? make("label", { class: "inline" }, "kept as attribute match_", label)
      : make("span", {}, "This server only reads the gallery."),
  );
}

async function judge(hit, attribute, said) {
  const entry = said === null ? {} : { attributes: { [attribute]: { text: said } } };
  const path = entryPath(chosen().name, hit.entryId);
  return (await ask("PATCH", path, { entry, updateMask: `attributes.${attribute}` })).entry;
}

/** A label is a word, as an attribute's name is; names that are much alike, and files of one name, get different ones. */
function labelOf({ name, stamp }) {
  const plain = word(name);
  return plain === name && !stamp ? plain : `${plain.slice(0, LONGEST - 9)}_${digest(`${name} ${stamp}`)}`;
}

const word = (text) => text.replace(/[^A-Za-z0-9_]/g, "_").slice(0, LONGEST);

/** FNV-1a of 32 bits, 8 hexadecimal digits. */
function digest(text) {
  let sum = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) sum = Math.imul(sum ^ byte, 0x01000193) >>> 0;
  return sum.toString(16).padStart(8, "0");
}
