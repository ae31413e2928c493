// What the audience sees: the clean-feed window, and the keys that act on it at once. Freeze and blackout are done
// where the picture is shown, here and in every clean-feed window of this browser; the stream goes on below.

import { button, el } from "./dom.js";

const CHANNEL = "wanstream.output";

/** Keeps the last picture of a video on a canvas above it, while there is no newer one, or it is frozen. */
export class HeldPicture {
  #video;
  #canvas = el("canvas", { className: "held", hidden: true, "aria-hidden": "true" });
  #reasons = new Set();

  constructor(video) {
    this.#video = video;
    video.after(this.#canvas);
  }

  get isHeld() {
    return !this.#canvas.hidden;
  }

  hold(reason) {
    const { videoWidth: width, videoHeight: height } = this.#video;
    if (!this.isHeld && width) {
      Object.assign(this.#canvas, { width, height });
      this.#canvas.getContext("2d").drawImage(this.#video, 0, 0);
      this.#canvas.hidden = false;
    }
    this.#reasons.add(reason);
  }

  release(reason) {
    this.#reasons.delete(reason);
    if (!this.#reasons.size) this.#canvas.hidden = true;
  }

  clear() {
    this.#reasons.clear();
    this.#canvas.hidden = true;
  }
}

/** The state of all outputs of this browser. Events: "change". */
export class OutputState extends EventTarget {
  #channel = new BroadcastChannel(CHANNEL);
  frozen = false;
  black = false;

  constructor({ leads }) {
    super();
    this.#channel.onmessage = ({ data }) => {
      if (data === "hello") return leads && this.#tell();
      Object.assign(this, { frozen: Boolean(data.frozen), black: Boolean(data.black) });
      this.dispatchEvent(new Event("change"));
    };
    if (!leads) this.#channel.postMessage("hello");
  }

  set(changes) {
    Object.assign(this, changes);
    this.#tell();
    this.dispatchEvent(new Event("change"));
  }

  #tell() {
    this.#channel.postMessage({ frozen: this.frozen, black: this.black });
  }
}

/** Where a window has to open to be on another display than this one; null: there is none, or nobody may know. */
async function otherDisplay() {
  if (!window.screen.isExtended || !window.getScreenDetails) return null;
  try {
    const { screens, currentScreen } = await window.getScreenDetails();
    const other = screens.find((each) => each !== currentScreen);
    return other ? `left=${other.availLeft},top=${other.availTop},width=${other.availWidth},height=${other.availHeight}` : null;
  } catch {
    return null; // not allowed: the window opens here and can be moved there
  }
}

/** Buttons for the outputs, and their effect on this page's own picture. */
export class Output {
  #stream;
  #held;
  #state = new OutputState({ leads: true });
  #freeze = button("Freeze", () => this.freeze(), { "aria-pressed": "false", "aria-keyshortcuts": "f", id: "freeze" });
  #black = button("Blackout", () => this.blackout(), { "aria-pressed": "false", "aria-keyshortcuts": "b", id: "blackout" });
  #curtain = el("div", { className: "curtain", hidden: true });

  constructor(stream, video, held) {
    this.#stream = stream;
    this.#held = held;
    video.after(this.#curtain);
    this.element = el(
      "div",
      { className: "row output-keys", role: "group", "aria-label": "Output" },
      this.#freeze,
      this.#black,
      el(
        "label",
        { className: "inline", title: "From there on a replay shows the same pictures" },
        el("input", { type: "checkbox", id: "record-afresh" }),
        el("span", {}, "Begin afresh when recording"),
      ),
      button("Clean feed", () => this.open(), { id: "open-view", title: "A window with nothing but the picture, for the projector" }),
    );
    this.#state.addEventListener("change", () => this.#show());
  }

  /** What to say on the picture about it, if anything. */
  get mark() {
    return this.#state.black ? "Blackout" : this.#state.frozen ? "Frozen" : "";
  }

  freeze() {
    this.#state.set({ frozen: !this.#state.frozen });
  }

  blackout() {
    this.#state.set({ black: !this.#state.black });
  }

  /** On another display where there is one; there one click makes it fill that. */
  async open() {
    const address = new URL("view", document.baseURI);
    if (this.#stream.streamId) address.searchParams.set("stream", this.#stream.streamId);
    window.open(address, "wanstream-view", `popup,${(await otherDisplay()) ?? "width=960,height=540"}`);
  }

  #show() {
    const { frozen, black } = this.#state;
    this.#freeze.setAttribute("aria-pressed", String(frozen));
    this.#black.setAttribute("aria-pressed", String(black));
    this.#curtain.hidden = !black;
    if (frozen) this.#held.hold("frozen");
    else this.#held.release("frozen");
    document.dispatchEvent(new Event("wanstream-mark"));
  }
}
