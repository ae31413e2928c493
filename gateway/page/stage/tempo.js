// The beat that changes wait for: tapped, written, or counted by a MIDI clock that the browser hears.

import { api } from "../api.js";
import { button, el, field, part } from "./dom.js";

const MODES = { none: "nothing: at once", beat: "the beat", bar: "the bar", "2_bars": "2 bars", "4_bars": "4 bars" };
const LOOKAHEAD_MS = 1_000; // the most that the server takes
const LAMP_MS = 50;

/** The pace and the place in the bar, as the server counts them; goes on by itself between its messages. */
export class Beat {
  #status = { enabled: false, bpm: 120, beats_per_bar: 4, bar_phase: 0, source: "manual" };
  #at = performance.now();

  set(status) {
    this.#status = status;
    this.#at = performance.now();
  }

  get status() {
    return this.#status;
  }

  /** From 1, with fractions. */
  get place() {
    const { bpm, beats_per_bar: bar, bar_phase: phase } = this.#status;
    const beats = phase * bar + ((performance.now() - this.#at) / 60_000) * bpm;
    return (beats % bar) + 1;
  }
}

export class Tempo {
  #stream;
  #beat = new Beat();
  #part = part("tempo", "Tempo");
  #on = button("On", () => this.toggle(), { id: "tempo-on", "aria-pressed": "false" });
  #bpm = el("input", { type: "number", id: "tempo-bpm", min: 20, max: 300, step: 0.1, value: "120", inputMode: "decimal" });
  #bar = el("input", { type: "number", id: "tempo-bar", min: 1, max: 16, step: 1, value: "4" });
  #mode = el("select", { id: "tempo-mode" });
  #compensate = el("input", { type: "checkbox", id: "tempo-compensate" });
  #lamps = el("span", { className: "lamps", "aria-hidden": "true" });
  #delay = el("p", { className: "hint", id: "cue-delay" });
  #error = el("p", { className: "error-text", role: "alert" });
  #measured = null; // {median, spread} in milliseconds
  #lookahead = 0;

  constructor(stream) {
    this.#stream = stream;
    for (const [value, text] of Object.entries(MODES)) this.#mode.append(new Option(text, value));
    this.#part.body.append(
      el(
        "div",
        { className: "part-head" },
        this.#on,
        field("BPM", this.#bpm),
        button("Tap", () => this.tap(), { id: "tempo-tap", "aria-keyshortcuts": "t" }),
        field("Beats in a bar", this.#bar),
        this.#lamps,
      ),
      el(
        "div",
        { className: "part-head" },
        field("Changes and cues wait for", this.#mode),
        el("label", { className: "inline" }, this.#compensate, el("span", {}, "Begin earlier by the delay to the picture")),
      ),
      this.#delay,
      this.#error,
    );
    this.#bpm.addEventListener("change", () => this.#enable());
    this.#bar.addEventListener("change", () => this.#enable());
    this.#mode.addEventListener("change", () => this.#send());
    this.#compensate.addEventListener("change", () => this.#send());
    stream.addEventListener("show", ({ detail }) => detail.type === "tempo_update" && this.#take(detail));
    stream.addEventListener("changed", ({ detail }) => this.#adopt(detail));
    stream.addEventListener("state", () => stream.state === "streaming" && this.#mode.value !== "none" && this.#send());
    this.measured(null);
    setInterval(() => this.#blink(), LAMP_MS);
  }

  get element() {
    return this.#part;
  }

  async refresh() {
    await this.#try(() => api.tempo());
  }

  async tap() {
    await this.#try(() => api.tapTempo());
  }

  async toggle() {
    if (this.#beat.status.enabled) return this.#try(() => api.disableTempo());
    return this.#enable();
  }

  /** A pace that a MIDI clock counts. beat: where in the bar we are now. */
  async follow(bpm, beat) {
    if (!this.#beat.status.enabled || this.#beat.status.source !== "midi_clock") {
      await this.#try(() => api.enableTempo({ source: "midi_clock", bpm }));
    }
    await this.#try(() => api.setTempo({ bpm, beat }));
  }

  get beatsPerBar() {
    return this.#beat.status.beats_per_bar;
  }

  /** delay: {median, spread, count} from a change to its picture, measured on the server; null: nothing yet. */
  measured(delay) {
    this.#measured = delay;
    const text = delay
      ? `From a change to its picture: ${Math.round(delay.median)} ms, varying by ${Math.round(delay.spread)} ms (of the last ${delay.count}, measured on the server).`
      : "The delay from a change to its picture is measured while the stream runs.";
    if (this.#delay.textContent !== text) this.#delay.textContent = text;
    if (this.#compensate.checked && Math.abs(this.#wanted() - this.#lookahead) > 20) this.#send();
  }

  #enable() {
    const [bpm, bar] = [this.#bpm.valueAsNumber, this.#bar.valueAsNumber];
    return this.#try(() => api.enableTempo({ source: "manual", bpm, beats_per_bar: bar }));
  }

  /** Beats come again: of a delay longer than the server's most, what is left after whole beats does as well. */
  #wanted() {
    if (!this.#compensate.checked || !this.#measured) return 0;
    const { median } = this.#measured;
    return Math.round(median <= LOOKAHEAD_MS ? median : median % (60_000 / this.#beat.status.bpm));
  }

  #send() {
    this.#lookahead = this.#wanted();
    this.#stream.send({ quantize_mode: this.#mode.value, lookahead_ms: Math.min(LOOKAHEAD_MS, this.#lookahead) }, { now: true });
  }

  #adopt({ quantize_mode: mode }) {
    if (mode) this.#mode.value = mode;
  }

  async #try(run) {
    this.#error.textContent = "";
    try {
      this.#take(await run());
    } catch (error) {
      this.#error.textContent = error.message;
    }
  }

  #take(status) {
    this.#beat.set(status);
    const { enabled, bpm, beats_per_bar: bar, source } = status;
    this.#on.setAttribute("aria-pressed", String(enabled));
    this.#on.textContent = enabled ? "Off" : "On";
    if (document.activeElement !== this.#bpm) this.#bpm.value = String(Math.round(bpm * 10) / 10);
    if (document.activeElement !== this.#bar) this.#bar.value = String(bar);
    this.#part.count.textContent = enabled ? `(${Math.round(bpm * 10) / 10} BPM${source === "midi_clock" ? ", MIDI clock" : ""})` : "";
    if (this.#lamps.childElementCount !== bar) {
      this.#lamps.replaceChildren(...Array.from({ length: bar }, () => el("i")));
    }
  }

  #blink() {
    if (!this.#part.open) return;
    const now = this.#beat.status.enabled ? Math.floor(this.#beat.place) : 0;
    for (const [index, lamp] of [...this.#lamps.children].entries()) lamp.classList.toggle("on", index + 1 === now);
  }
}
