/** Filters: fields in which people say which entries may be found, and the Filter of reid.v1 that they mean. */

import { fill, make } from "./dom.js";

/** Fields in an element; `changed` is called when what they say has changed. Returns what reads them. */
export function filterFields(element, names, changed) {
  const fields = Object.fromEntries(names.map((name) => [name, make("input", { ...FIELDS[name].is, change: changed })]));
  fill(element, ...names.map((name) => make("label", {}, FIELDS[name].says, fields[name])));
  return () => {
    const filter = {};
    for (const [name, field] of Object.entries(fields)) {
      if (field.value.trim()) FIELDS[name].put(filter, field.value.trim());
    }
    return Object.keys(filter).length ? filter : undefined;
  };
}

const listed = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);
const moment = (text) => new Date(text).toISOString();

const FIELDS = {
  camids: {
    says: "Only from cameras",
    is: { type: "text", placeholder: "such as 1, 3", autocomplete: "off" },
    put: (filter, text) => { filter.camids = { anyOf: listed(text) }; },
  },
  notCamids: {
    says: "Not from cameras",
    is: { type: "text", placeholder: "such as 2", autocomplete: "off" },
    put: (filter, text) => { filter.excludeCamids = listed(text); },
  },
  pids: {
    says: "Only identities (pid)",
    is: { type: "text", placeholder: "such as 0007", autocomplete: "off" },
    put: (filter, text) => { filter.pids = { anyOf: listed(text) }; },
  },
  since: {
    says: "Taken from",
    is: { type: "datetime-local", step: 1 },
    put: (filter, text) => { filter.since = moment(text); },
  },
  until: {
    says: "Taken before",
    is: { type: "datetime-local", step: 1 },
    put: (filter, text) => { filter.until = moment(text); },
  },
  attribute: {
    says: "Attribute",
    is: { type: "text", placeholder: "such as colour=red", autocomplete: "off" },
    put: (filter, text) => {
      const [name, ...rest] = text.split("=");
      filter.attributes = [{ name: name.trim(), equal: value(rest.join("=").trim()) }];
    },
  },
};

/** A text as a Value: true and false, numbers, and else text, which quotes make of those too. */
function value(text) {
  if (text === "true" || text === "false") return { boolean: text === "true" };
  if (/^-?\d+(\.\d+)?$/.test(text)) return { number: Number(text) };
  return { text: text.replace(/^"(.*)"$/, "$1") };
}
