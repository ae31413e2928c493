// MIDI controllers in the browser: what a knob, fader or key moves, learned by touching both. Kept with the looks.

import { api } from "../api.js";
import { MidiClock } from "./midi_clock.js";
import { comesFrom, ENCODINGS, isEndless, pairOf, Positions, readMessage, stepsOf } from "./midi_values.js";
import { button, el, part } from "./dom.js";

const CLOCK_BYTES = 0xf8; // and above: messages of one byte, in real time
const PRESSED = 64; // a button that sends a controller
const TARGETS = "input[type=range][id], input[type=checkbox][id], .look, .cue-go, #cue-play, #pause, #freeze, #blackout, #record, #tempo-tap, #reset_cache";

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
  #moves = new Map(); // mapping -> its newest position, or steps, until they are applied together
  #positions = new Positions();
  #bound = null; // the message that was bound last
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
    if (this.#learning && this.#hear({ ...message, time: timeStamp })) return;
    for (const mapping of this.#mappings.filter(({ source }) => comesFrom(source, message))) {
      if (mapping.type === "continuous") this.#gather(mapping, message);
      else this.#press(mapping, message);
    }
  }

  /** Whether a message was of use for learning. */
  #hear(message) {
    const low = this.#bound && !this.#target ? pairOf(this.#bound.message, message) : null;
    if (low !== null) {
      this.#bind(this.#bound.control, { ...message, number: low }, "14_bit");
      return true;
    }
    if (!this.#target) return false;
    if (message.value > 0) this.#bind(this.#target, message);
    return true;
  }

  #bind(control, message, encoding = null) {
    const { kind, number, channel } = message;
    const source = { [kind]: number, channel, ...(encoding ? { encoding } : {}) };
    const target = targetOf(control);
    const type = control.type === "range" ? "continuous" : control.type === "checkbox" ? "toggle" : "trigger";
    const same = (mapping) => comesFrom(mapping.source, message) || equal(mapping.target, target);
    this.#keep([...this.#mappings.filter((mapping) => !same(mapping)), { type, source, target }]);
    this.#say(`${nameOf(control)} is moved by ${describe(source)}.`);
    control.classList.remove("midi-target");
    this.#target = null;
    this.#bound = { control, message };
  }

  /**
   * In force at once, and kept by the server one after another: a knob of 14 bit is bound in two steps. What the
   * server refuses is taken back.
   */
  #keep(mappings) {
    const before = this.#mappings;
    this.#mappings = mappings;
    this.#kept = this.#kept.then(async () => {
      this.#error.textContent = "";
      try {
        this.#mappings = (await api.putMidi(mappings)).midi;
      } catch (error) {
        this.#mappings = before;
        this.#error.textContent = error.message;
      }
      this.#render();
    });
  }
  #kept = Promise.resolve();

  /** A fader sends hundreds of values in a second: the newest one counts, once in a picture; steps add up. */
  #gather(mapping, message) {
    if (!this.#moves.size) setTimeout(() => this.#apply(), 16);
    const { source } = mapping;
    if (isEndless(source)) this.#moves.set(mapping, (this.#moves.get(mapping) ?? 0) + stepsOf(source, message.value));
    else this.#moves.set(mapping, this.#positions.of(source, message));
  }

  #apply() {
    for (const [{ source, target, range }, moved] of this.#moves) {
      const slider = document.getElementById(target.parameter);
      if (!slider) continue;
      const { min, max } = range ?? { min: Number(slider.min || 0), max: Number(slider.max || 100) };
      const step = Math.max(Number(slider.step) || 0, Math.abs(max - min) / 127);
      const wanted = isEndless(source) ? slider.valueAsNumber + moved * step : min + (max - min) * moved;
      moveTo(slider, Math.min(Math.max(min, max), Math.max(Math.min(min, max), wanted)), source.encoding === "14_bit");
    }
    this.#moves.clear();
  }

  #press({ target, source }, { value }) {
    if (isSet(source.midi_cc) ? value < PRESSED : value === 0) return;
    if (target.look) this.#looks.recallByName(target.look);
    else if (target.cue) this.#cues.play(target.cue, target.begin ?? null);
    else document.getElementById(target.action ?? target.parameter)?.click();
  }

  #render() {
    this.#list.replaceChildren(...this.#mappings.map((mapping) => this.#item(mapping)));
  }

  #item(mapping) {
    const [what, from] = [nameOfTarget(mapping.target), describe(mapping.source)];
    const others = this.#mappings.filter((each) => each !== mapping);
    const remove = button("Remove", () => this.#keep(others), { className: "plain", "aria-label": `Remove ${from} to ${what}` });
    return el("li", {}, `${from} → ${what}`, this.#encoding(mapping, from), remove);
  }

  /** How a knob or fader sends its values; nothing to choose for keys. */
  #encoding(mapping, from) {
    if (mapping.type !== "continuous" || !isSet(mapping.source.midi_cc)) return null;
    const choice = el("select", { "aria-label": `Values of ${from}` });
    for (const [value, text] of Object.entries(ENCODINGS)) {
      if (value !== "14_bit" || mapping.source.midi_cc < 32) choice.append(new Option(text, value));
    }
    choice.value = mapping.source.encoding ?? "";
    choice.addEventListener("change", () => {
      const source = { ...mapping.source, encoding: choice.value || null };
      this.#keep(this.#mappings.map((each) => (each === mapping ? { ...each, source } : each)));
    });
    return choice;
  }
}

/** fine: to a place between the slider's own steps, too. */
function moveTo(slider, value, fine) {
  const { step } = slider;
  if (fine && Number(step) < 1) slider.step = "any";
  slider.value = String(Math.round(value * 1e5) / 1e5);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  slider.step = step;
}

function targetOf(control) {
  const item = control.closest("[data-look]");
  if (item) return { look: item.dataset.look };
  const line = control.closest("[data-cue]");
  if (line) return { cue: line.dataset.cue, begin: Number(line.dataset.line) };
  if (control.id === "cue-play") return { cue: document.getElementById("cue-choice").value };
  return control.matches("input") ? { parameter: control.id } : { action: control.id };
}

const nameOf = (control) => control.labels?.[0]?.textContent || control.getAttribute("aria-label") || control.textContent || control.id;

const isSet = (value) => value !== null && value !== undefined;

const equal = (a, b) => ["parameter", "action", "look", "cue", "begin"].every((key) => (a[key] ?? null) === (b[key] ?? null));

const nameOfTarget = ({ cue, begin, ...others }) =>
  isSet(cue) ? [cue, isSet(begin) && `line ${begin + 1}`].filter(Boolean).join(", ") : Object.values(others).find(isSet);

function describe({ midi_cc: cc, midi_note: note, channel }) {
  const what = isSet(cc) ? `controller ${cc}` : `note ${note}`;
  return isSet(channel) ? `${what}, channel ${channel + 1}` : what;
}
