// A page that is loaded again finds the stream that it had: the server lets it go on for a while.

import { api } from "../api.js";

const KEY = "wanstream.stream";
const LOOK_MS = 250;
const LOOKS = 12; // until whoever was connected before has gone

/** Keep which stream this tab has; null: none any more. */
export function remember(stream) {
  try {
    if (stream) sessionStorage.setItem(KEY, JSON.stringify({ stream: stream.streamId, session: stream.sessionId }));
    else sessionStorage.removeItem(KEY);
  } catch {
    // Storage is blocked: the page works without.
  }
}

/** Id of the stream that this tab had before it was loaded again, if it goes on; else null. */
export async function findAgain() {
  const before = read();
  if (!before) return null;
  for (let look = 0; look < LOOKS; look += 1) {
    const stream = await api.stream(before.stream).catch(() => null);
    if (!stream || stream.state === "ended") return null;
    if (!stream.people.some(({ sessionId }) => sessionId === before.session)) return before.stream;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  return null; // another tab has it: a copy of this one
}

function read() {
  try {
    const value = JSON.parse(sessionStorage.getItem(KEY));
    return typeof value?.stream === "string" ? value : null;
  } catch {
    return null;
  }
}
