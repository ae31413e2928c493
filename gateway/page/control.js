// The control video: what VACE is shown of the input, and a line that says what VACE does now.

import { at } from "./api.js";

const $ = (id) => document.getElementById(id);
const READING_MS = 500;
const NAMES = { none: "input", gray: "grey", scribble: "edges", "optical-flow": "motion", "video-depth-anything": "depth" };

export class ControlView {
  #wanted = null; // id of the stream
  #number = 0;

  constructor() {
    const picture = $("control-picture");
    picture.addEventListener("load", () => {
      $("control-tile").hidden = this.#wanted === null;
      this.#readSoon();
    });
    picture.addEventListener("error", () => {
      $("control-tile").hidden = true; // VACE takes no input now
      this.#readSoon();
    });
  }

  /**
   * streamId: of the stream whose input VACE takes, or null. values: settings in force.
   * image: words for the image that was sent last. isLoaded: whether VACE is there.
   */
  show({ streamId, values, image, isLoaded }) {
    const before = this.#wanted;
    this.#wanted = streamId;
    if (streamId === null) $("control-tile").hidden = true;
    else if (before === null) this.#read();
    const name = NAMES[values.vace_preprocessor] ?? NAMES.none;
    $("control-name").textContent = name === NAMES.none ? "as it is" : name;
    const parts = [image, streamId !== null && `control by the ${name === NAMES.none ? name : `input's ${name}`}`];
    const shown = parts.filter(Boolean).join(", ");
    $("vace-now").hidden = !isLoaded;
    $("vace-now").textContent = shown
      ? `In force: ${shown}; strength ${(values.vace_context_scale ?? 1).toFixed(2)}.`
      : "VACE is loaded, and nothing guides the pictures.";
  }

  #readSoon() {
    if (this.#wanted !== null) setTimeout(() => this.#read(), READING_MS);
  }

  #read() {
    if (this.#wanted === null) return;
    this.#number += 1;
    $("control-picture").src = at(`/api/v1/streams/${encodeURIComponent(this.#wanted)}/control?quality=80&n=${this.#number}`);
  }
}
