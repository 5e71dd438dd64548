/** Refusals in words, where people see them. */

import { Refused } from "./api.js";
import { at, fill, make } from "./dom.js";

const WORDS = {
  NO_SERVER: "The server does not answer. Is it still running?",
  NOT_SERVING: "The server is loading or about to stop. Try again soon.",
  UNAUTHENTICATED: "This server wants an API key. Give it one under “Key”.",
  PERMISSION_DENIED: "This key does not allow that.",
  IMAGE_INVALID: "This is no picture that the server can read.",
  IMAGE_TOO_LARGE: "This picture is too large.",
  MESSAGE_TOO_LARGE: "These pictures are too large together.",
  OVERLOADED: "The server has more to do than it can.",
  RATE_LIMITED: "This key has asked for more than its rate.",
  ENTRY_NOT_FOUND: "This entry is not in the gallery any more.",
  GENERATION_GONE: "The gallery has changed since this page was listed.",
};

/** Say what went wrong; `again` is offered to be tried again. */
export function refuse(error, again) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Refused)) throw error;
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const box = at("refusal");
  fill(
    box,
    make("strong", {}, (WORDS[error.reason] ?? "The server refuses this.") + wait),
    make("p", {}, error.message),
    make("p", { class: "small" }, error.reason, error.requestId && ` · request ${error.requestId}`),
    make(
      "div",
      { class: "buttons" },
      again && make("button", { type: "button", click: () => { hush(); again(); } }, "Try again"),
      make("button", { type: "button", click: hush }, "Close"),
    ),
  );
  box.hidden = false;
  if (error.reason === "UNAUTHENTICATED") {
    at("key-box").open = true;
    at("key").focus();
  }
}

/** Nothing is wrong any more. */
export function hush() {
  at("refusal").hidden = true;
  fill(at("refusal"));
}
