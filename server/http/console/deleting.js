/** Deleting: entries go for good, so it is asked first. */

import { at, fill, make } from "./dom.js";
import { chosen } from "./galleries.js";
import { refuse } from "./refusals.js";

/** The bar in which selected entries are deleted; `remove` does it. */
export function deletingBar(bar, ids, remove) {
  bar.hidden = ids.length === 0;
  if (bar.hidden) return;
  const { writable, name } = chosen();
  const go = async () => {
    const what = ids.length === 1 ? `entry ${ids[0]}` : `${ids.length} entries`;
    if (!(await sure(`Delete ${what} from ${name}? This cannot be undone.`))) return;
    await remove(ids).catch((error) => refuse(error));
  };
  fill(
    bar,
    make("strong", {}, `${ids.length} selected`),
    make("button", { type: "button", class: "danger", click: go, disabled: !writable }, "Delete"),
    !writable && make("span", {}, "This server only reads the gallery."),
  );
}

/** Whether people are sure; Escape says no. */
function sure(text) {
  const dialog = at("sure");
  at("sure-text").textContent = text;
  dialog.returnValue = "no";
  return new Promise((said) => {
    at("sure-yes").onclick = () => dialog.close("yes");
    at("sure-no").onclick = () => dialog.close("no");
    dialog.onclose = () => said(dialog.returnValue === "yes");
    dialog.showModal();
    at("sure-no").focus();
  });
}
