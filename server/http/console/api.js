/** Calls of the server: JSON there and back, and every refusal an error that says why. */

const KEY = "reidserve-key";

/** The key that calls are made with; none where it is empty. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (text) => sessionStorage.setItem(KEY, text.trim()),
};

/** The server has refused a call, or was not there to answer it. */
export class Refused extends Error {
  constructor({ reason, message, requestId = "", retryAfter = 0 }) {
    super(message);
    this.reason = reason;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
  }
}

/** The answer to a call, as an object. */
export async function ask(verb, path, body, { signal } = {}) {
  const response = await send(verb, path, body, signal);
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Refused({
      reason: answer.reason ?? `HTTP ${response.status}`,
      message: answer.message ?? "the server, or what stands before it, gave no reason",
      requestId: answer.requestId ?? response.headers.get("x-request-id") ?? "",
      retryAfter: Number(response.headers.get("retry-after") ?? 0),
    });
  }
  return answer;
}

/** The stored thumbnail of an entry; null where there is none. */
export async function thumbnail(gallery, id) {
  const response = await send("GET", `${entryPath(gallery, id)}/thumbnail`);
  return response.ok ? response.blob() : null;
}

/** Where a gallery's entries are asked for. */
export const entriesPath = (gallery) => `v1/galleries/${encodeURIComponent(gallery)}/entries`;

/** Where one entry is. */
export const entryPath = (gallery, id) => `${entriesPath(gallery)}/${encodeURIComponent(id)}`;

/** A file's bytes in base64. */
export function base64(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(new Refused({ reason: "FILE", message: `${file.name} cannot be read` }));
    reader.readAsDataURL(file);
  });
}

async function send(verb, path, body, signal) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key.get()) {
    if (!/^[\x21-\x7e]+$/.test(key.get())) {
      throw new Refused({ reason: "UNAUTHENTICATED", message: "a key has letters, digits and _ only" });
    }
    headers.authorization = `Bearer ${key.get()}`;
  }
  try {
    return await fetch(path, { method: verb, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ reason: "NO_SERVER", message: "no answer came from this address" });
  }
}
