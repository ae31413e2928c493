// What the server is doing, always in sight: on what it runs, what waits, how long a change takes, what was lost,
// and who else is here.

import { api } from "../api.js";
import { el } from "./dom.js";

const PERIOD_MS = 2_000;
const NAMES = { tensorrt: "TensorRT", onnxruntime: "ONNX Runtime", pytorch: "PyTorch" };

export class Trust {
  #stream;
  #onDelay;
  element = el("p", { className: "trust", id: "trust", "aria-label": "What the server is doing" });

  /** onDelay(delay): called with the delay from a change to its picture, or null. */
  constructor(stream, onDelay) {
    this.#stream = stream;
    this.#onDelay = onDelay;
    stream.addEventListener("state", () => this.#refresh());
    setInterval(() => !document.hidden && this.#refresh(), PERIOD_MS);
  }

  async #refresh() {
    const id = this.#stream.streamId;
    if (!id || !this.#stream.isConnected) return this.#show(this.#stream.isBusy ? [] : null);
    try {
      const [{ sessions }, status, stream] = await Promise.all([api.metrics(), api.status(), api.stream(id)]);
      const numbers = sessions[id] ?? {};
      this.#onDelay(numbers.change_to_picture_ms ?? null);
      const mine = this.#stream.sessionId;
      this.#show([
        ["On", device(status), false],
        ["Waiting", `${numbers.queued_frames ?? 0} pictures`, false],
        ["Change to picture", delay(numbers.change_to_picture_ms), false],
        ["Dropped here", `${numbers.frames_dropped ?? 0}`, (numbers.frames_dropped ?? 0) > 0],
        ["Failed chunks", `${numbers.failed_chunks ?? 0}`, (numbers.failed_chunks ?? 0) > 0],
        ["Others", people(stream.people.filter(({ sessionId }) => sessionId !== mine), stream.viewers - (mine === id ? 0 : 1)), false],
      ]);
    } catch (error) {
      this.#show([["Server", error.message, true]]);
    }
  }

  /** facts: [name, text, whether it is bad]; null: nothing to tell. */
  #show(facts) {
    const items = (facts ?? []).map(([name, text, bad]) => el("span", {}, `${name} `, el("strong", { className: bad ? "bad" : "" }, text)));
    this.element.hidden = facts === null;
    this.element.replaceChildren(...items);
  }
}

function device({ load_plan: plan }) {
  const engine = plan?.engines?.[0];
  if (!engine) return "the server's CPU, without a model";
  return `${NAMES[engine.runtime] ?? engine.runtime}, ${engine.device === "cpu" ? "CPU" : `GPU ${engine.device}`}`;
}

const delay = (measured) => (measured ? `${Math.round(measured.median)} ± ${Math.round(measured.spread / 2)} ms` : "not yet measured");

/** viewers: without this page, which is one of them where it has come back to its stream. */
function people(others, viewers) {
  const drives = others.filter(({ role }) => role === "driver").map(({ label }) => `${label} drives`);
  const watching = viewers > 0 ? [`${viewers} watching`] : [];
  return [...drives, ...watching].join(", ") || "nobody";
}
