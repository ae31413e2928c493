// MIDI controllers in the browser: what a knob, fader or key moves, learned by touching both. Kept with the looks.

import { api } from "../api.js";
import { MidiClock } from "./midi_clock.js";
import { button, el, part } from "./dom.js";

const [NOTE_OFF, NOTE_ON, CONTROL] = [0x80, 0x90, 0xb0];
const CLOCK_BYTES = 0xf8; // and above: messages of one byte, in real time
const PRESSED = 64; // a button that sends a controller
const TARGETS = "input[type=range][id], input[type=checkbox][id], .look, #cue-play, #pause, #freeze, #blackout, #record, #tempo-tap, #reset_cache";

/** {kind, number, channel, value} of a message of a knob or key; null for others. */
export function readMessage([status, number, value]) {
  const [kind, channel] = [status & 0xf0, status & 0x0f];
  if (kind === CONTROL) return { kind: "midi_cc", number, channel, value };
  if (kind === NOTE_ON || kind === NOTE_OFF) return { kind: "midi_note", number, channel, value: kind === NOTE_ON ? value : 0 };
  return null;
}

export class Midi {
  #looks;
  #cues;
  #part = part("midi", "MIDI");
  #connect = button("Use MIDI", () => this.connect(), { id: "midi-connect" });
  #learn = button("Learn", () => this.#setLearning(!this.#learning), { id: "midi-learn", "aria-pressed": "false", hidden: true });
  #hint = el("p", { className: "hint", role: "status", id: "midi-hint" });
  #list = el("ul", { className: "mappings", "aria-label": "MIDI mappings" });
  #error = el("p", { className: "error-text", role: "alert" });
  #learning = false;
  #target = null; // what the next message is bound to
  #mappings = [];
  #values = new Map(); // mapping -> newest value, until they are applied together
  #clock;

  constructor(looks, cues, tempo) {
    this.#looks = looks;
    this.#cues = cues;
    this.#clock = new MidiClock(tempo);
    this.#part.body.append(el("div", { className: "part-head" }, this.#connect, this.#learn), this.#hint, this.#list, this.#error);
    document.addEventListener("focusin", ({ target }) => this.#point(target));
    document.addEventListener("click", (event) => this.#catch(event), { capture: true });
    looks.addEventListener("change", () => this.refresh()); // an import brings mappings, too
  }

  get element() {
    return this.#part;
  }

  async refresh() {
    try {
      this.#mappings = (await api.midi()).midi;
    } catch (error) {
      this.#error.textContent = error.message;
    }
    this.#render();
  }

  async connect() {
    this.#error.textContent = "";
    if (!navigator.requestMIDIAccess) {
      const secure = isSecureContext ? "This browser has no Web MIDI: use Chromium, Chrome, Edge or Firefox." : "MIDI works on https addresses and on localhost only.";
      this.#error.textContent = secure;
      return;
    }
    try {
      const access = await navigator.requestMIDIAccess();
      const listen = () => {
        const ports = [...access.inputs.values()];
        for (const port of ports) port.onmidimessage = ({ data, timeStamp }) => this.#receive(data, timeStamp);
        this.#part.count.textContent = `(${ports.map(({ name }) => name).join(", ") || "no device"})`;
      };
      access.onstatechange = listen;
      listen();
      this.#connect.hidden = true;
      this.#learn.hidden = false;
    } catch (error) {
      this.#error.textContent = `MIDI is not allowed for this page (${error.message}). Allow it beside the address, then try again.`;
    }
  }

  #setLearning(learning) {
    this.#learning = learning;
    this.#target = null;
    this.#learn.setAttribute("aria-pressed", String(learning));
    this.#learn.textContent = learning ? "Done" : "Learn";
    document.body.classList.toggle("midi-learning", learning);
    this.#say(learning ? "Choose a slider, switch, look or button, then move a knob or press a key of the controller." : "");
  }

  #say(text) {
    this.#hint.textContent = text;
  }

  #point(element) {
    if (!this.#learning) return;
    const control = element.closest?.(TARGETS);
    if (!control) return;
    document.querySelector(".midi-target")?.classList.remove("midi-target");
    control.classList.add("midi-target");
    this.#target = control;
    this.#say(`${nameOf(control)}: now move a knob or press a key of the controller.`);
  }

  /** While it learns, a click only chooses. */
  #catch(event) {
    if (!this.#learning) return;
    const control = event.target.closest?.(TARGETS);
    if (!control) return;
    event.preventDefault();
    event.stopPropagation();
    this.#point(control);
  }

  #receive(data, timeStamp) {
    if (data[0] >= CLOCK_BYTES) return this.#clock.receive(data[0], timeStamp);
    const message = readMessage(data);
    if (!message) return;
    if (this.#learning && this.#target) return message.value > 0 && this.#bind(this.#target, message);
    for (const mapping of this.#mappings.filter(({ source }) => comesFrom(source, message))) {
      if (mapping.type === "continuous") this.#gather(mapping, message.value);
      else this.#press(mapping, message);
    }
  }

  async #bind(control, { kind, number, channel }) {
    const source = { [kind]: number, channel };
    const target = targetOf(control);
    const type = control.type === "range" ? "continuous" : control.type === "checkbox" ? "toggle" : "trigger";
    const same = (mapping) => comesFrom(mapping.source, { kind, number, channel }) || equal(mapping.target, target);
    await this.#keep([...this.#mappings.filter((mapping) => !same(mapping)), { type, source, target }]);
    this.#say(`${nameOf(control)} is moved by ${describe(source)}.`);
    control.classList.remove("midi-target");
    this.#target = null;
  }

  async #keep(mappings) {
    this.#error.textContent = "";
    try {
      this.#mappings = (await api.putMidi(mappings)).midi;
    } catch (error) {
      this.#error.textContent = error.message;
    }
    this.#render();
  }

  /** A fader sends hundreds of values in a second: the newest one counts, once in a picture. */
  #gather(mapping, value) {
    if (!this.#values.size) setTimeout(() => this.#apply(), 16);
    this.#values.set(mapping, value);
  }

  #apply() {
    for (const [{ target, range }, value] of this.#values) {
      const slider = document.getElementById(target.parameter);
      if (!slider) continue;
      const { min, max } = range ?? { min: Number(slider.min || 0), max: Number(slider.max || 100) };
      slider.value = String(min + ((max - min) * value) / 127);
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    }
    this.#values.clear();
  }

  #press({ target, source }, { value }) {
    if (source.midi_cc !== undefined && source.midi_cc !== null ? value < PRESSED : value === 0) return;
    if (target.look) this.#looks.recallByName(target.look);
    else if (target.cue) this.#cues.play(target.cue);
    else document.getElementById(target.action ?? target.parameter)?.click();
  }

  #render() {
    const items = this.#mappings.map((mapping) => {
      const [what, from] = [Object.values(mapping.target).find((value) => value !== null), describe(mapping.source)];
      const remove = button("Remove", () => this.#keep(this.#mappings.filter((each) => each !== mapping)), { className: "plain", "aria-label": `Remove ${from} to ${what}` });
      return el("li", {}, `${from} → ${what}`, remove);
    });
    this.#list.replaceChildren(...items);
  }
}

function targetOf(control) {
  const item = control.closest("[data-look]");
  if (item) return { look: item.dataset.look };
  if (control.id === "cue-play") return { cue: document.getElementById("cue-choice").value };
  return control.matches("input") ? { parameter: control.id } : { action: control.id };
}

const nameOf = (control) => control.labels?.[0]?.textContent || control.getAttribute("aria-label") || control.textContent || control.id;

const comesFrom = (source, { kind, number, channel }) => source[kind] === number && (source.channel ?? channel) === channel;

const equal = (a, b) => ["parameter", "action", "look", "cue"].every((key) => (a[key] ?? null) === (b[key] ?? null));

function describe({ midi_cc: cc, midi_note: note, channel }) {
  const what = cc !== null && cc !== undefined ? `controller ${cc}` : `note ${note}`;
  return channel === null || channel === undefined ? what : `${what}, channel ${channel + 1}`;
}
