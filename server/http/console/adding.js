/** Adding: pictures that become entries. */

import { ask, base64, entriesPath } from "./api.js";
import { at, fill, make } from "./dom.js";
import { chosen, refresh } from "./galleries.js";
import { hush, refuse } from "./refusals.js";

let files = [];
let added = async () => {};

/** Put life into the form; `done` is called after something was added. */
export function start(done) {
  added = done;
  render();
}

/** Take files that people have chosen or dropped; each gets its name as its id. */
export function take(chosenFiles) {
  files = chosenFiles.map((file) => ({ file, id: file.name }));
  at("adding").open = true;
  render();
  at("add-form").querySelector("ul input")?.focus();
}

function render() {
  const said = { pid: text("pid"), camid: text("camera"), timestamp: make("input", { type: "datetime-local", step: 1 }) };
  const picker = make("input", { id: "add-files", type: "file", accept: "image/*", multiple: true, change: () => take([...picker.files]) });
  fill(
    at("add-form"),
    make("label", {}, "Pictures", picker),
    files.length > 0 && make("ul", {}, ...files.map(row)),
    files.length > 0 && make(
      "div",
      { class: "filter" },
      make("label", {}, "Identity (pid)", said.pid),
      make("label", {}, "Camera", said.camid),
      make("label", {}, "Taken at", said.timestamp),
    ),
    files.length > 0 && make("button", { id: "add-now", type: "button", click: () => add(said) }, files.length === 1 ? "Add it" : `Add ${files.length} entries`),
  );
}

function row(one) {
  const url = URL.createObjectURL(one.file);
  const free = () => URL.revokeObjectURL(url);
  const id = make("input", { type: "text", value: one.id, maxlength: 1024, autocomplete: "off", input: () => { one.id = id.value; } });
  return make("li", {}, make("img", { src: url, alt: "", load: free, error: free }), make("label", {}, "Id", id));
}

async function add({ pid, camid, timestamp }) {
  hush();
  try {
    const entries = await Promise.all(files.map(async ({ file, id }) => ({
      entryId: id,
      image: await base64(file),
      ...(pid.value.trim() && { pid: pid.value.trim() }),
      ...(camid.value.trim() && { camid: camid.value.trim() }),
      ...(timestamp.value && { timestamp: new Date(timestamp.value).toISOString() }),
    })));
    await ask("POST", entriesPath(chosen().name), { entries });
  } catch (error) {
    refuse(error);
    return;
  }
  files = [];
  render();
  await refresh();
  await added();
}

const text = (name) => make("input", { type: "text", placeholder: `${name}, if known`, autocomplete: "off" });
