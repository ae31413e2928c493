// The stage below the picture: looks, cue lists, the output and its keys, put together.

import { api } from "../api.js";
import { Cues } from "./cues.js";
import { el } from "./dom.js";
import { Keys } from "./keys.js";
import { KEYS, Looks } from "./looks.js";
import { Midi } from "./midi.js";
import { HeldPicture, Output } from "./output.js";
import { Preview } from "./preview.js";
import { Tempo } from "./tempo.js";
import { Trust } from "./trust.js";

const TITLE_WORDS = 4;

/** actions: {pause, record, snapshot, fullscreen} of the page. */
export class Show {
  constructor(stream, controls, video, actions) {
    this.held = new HeldPicture(video);
    this.output = new Output(stream, video, this.held);
    this.looks = new Looks({
      stream,
      values: () => valuesOf(controls),
      adopt: ({ set }) => controls.adopt(set),
      title: () => (controls.prompts[0]?.text ?? "").split(/\s+/).slice(0, TITLE_WORDS).join(" ").slice(0, 60),
    });
    this.cues = new Cues(stream, this.looks);
    this.tempo = new Tempo(stream);
    this.midi = new Midi(this.looks, this.cues, this.tempo);
    this.preview = new Preview(stream);
    this.trust = new Trust(stream, (delay) => this.tempo.measured(delay));
    this.looks.addEventListener("preview", ({ detail }) => this.preview.show(detail, controls.streamParameters()));
    this.keys = new Keys();
    this.#bindKeys(actions);
    const host = document.getElementById("show");
    host.append(this.trust.element, this.output.element, this.looks.element, this.preview.element);
    host.append(this.cues.element, this.tempo.element, this.midi.element);
    host.append(el("p", { className: "hint keys-hint" }, "Press ", el("kbd", {}, "?"), " for the keys."));
    stream.addEventListener("state", () => this.cues.refresh());
  }

  async refresh() {
    await Promise.all([this.looks.refresh(), this.cues.refresh(), this.tempo.refresh()]);
  }

  #bindKeys({ pause, record, snapshot, fullscreen }) {
    const { keys, looks, cues, output, tempo } = this;
    keys.add([...KEYS], "A look, by its number", ({ key }) => looks.recall(KEYS.indexOf(key)), { shown: "1 … 9, 0" });
    keys.add(" ", "Pause or resume", pause, { shown: "Space" });
    keys.add("b", "Blackout, at once", () => output.blackout());
    keys.add("f", "Freeze the picture, at once", () => output.freeze());
    keys.add("c", "Play the cue list, or end it", () => cues.toggle());
    keys.add("t", "Tap the beat", () => tempo.tap());
    keys.add("s", "Save what is set as a look", () => looks.save());
    keys.add("r", "Record, or end the recording", record);
    keys.add("p", "Save a snapshot", snapshot);
    keys.add("o", "Open the clean feed", () => output.open());
    keys.add("Enter", "Full screen", fullscreen);
  }
}

/** What a look keeps: everything that can be changed while streaming, of what the page shows. */
async function valuesOf(controls) {
  const { input_mode: _, ...values } = controls.streamParameters();
  const { loaded_lora_adapters: adapters } = await api.status();
  const scales = (adapters ?? []).filter(({ merge_mode: mode }) => mode === "runtime_peft");
  return scales.length ? { ...values, lora_scales: scales.map(({ path, scale }) => ({ path, scale })) } : values;
}
