// The first minute: what each pipeline is good at, to be tried with one click. Weights that know few words bring
// their own prompts; for all others there are some here.

import { api } from "../api.js";
import { button, el } from "./dom.js";

const PROMPTS = [
  "A red fox runs through fresh snow in a birch forest, golden evening light",
  "A heavy storm over the same forest at night, lightning between the trees",
];
const CAMERA = "An oil painting with thick brush strokes, warm colours";
const LATER = 8; // chunks: enough to see what was before

const switched = ([first, second]) => ({
  title: "Another prompt",
  text: "another prompt after a moment, and the scene goes on under it",
  prompts: [first],
  steps: [{ chunk: LATER, set: { prompts: [second] } }],
});
const transition = ([first, second]) => ({
  title: "Transition",
  text: "from one prompt to the other over eight chunks",
  prompts: [first],
  steps: [{ chunk: LATER, set: { transition: { target_prompts: [second], num_steps: 8, temporal_interpolation_method: "linear" } } }],
});
const blend = ([first, second]) => ({ title: "Blend", text: "two prompts in one picture", prompts: [first, second], steps: [] });
const memory = ([first, second]) => ({
  title: "Memory",
  text: "there and back again: what was seen before returns",
  prompts: [first],
  steps: [
    { chunk: LATER, set: { prompts: [second] } },
    { chunk: 2 * LATER, set: { prompts: [first] } },
  ],
});
const calm = ([first]) => ({ title: "One scene", text: "it stays lively for as long as you look", prompts: [first], steps: [] });
const camera = (_, ofCamera) => ({ title: "Camera", text: "your camera, painted by the prompt", mode: "video", prompts: [ofCamera], steps: [] });
const raw = () => ({ title: "Camera", text: "your camera as it is, there and back: the shortest delay", mode: "video", prompts: [], steps: [] });

const OF = {
  longlive: [switched, transition, camera],
  memflow: [memory, switched, camera],
  "reward-forcing": [calm, transition, camera],
  "krea-realtime-video": [blend, transition, camera],
  streamdiffusionv2: [camera, switched],
  passthrough: [raw],
};

/** Two or three examples of a pipeline of the schemas answer: {title, text, mode, prompts, steps}. */
export function examplesOf(entry) {
  const [prompts, ofCamera] = promptsOf(entry);
  const made = (OF[entry.id] ?? [calm, transition, camera]).map((make) => ({ mode: "text", ...make(prompts, ofCamera) }));
  return made
    .filter(({ mode }) => entry.supported_modes.includes(mode))
    .map((example) => ({ ...example, prompts: example.prompts.map(weighted), steps: example.steps }));
}

/** [prompts to begin with, prompt for a camera] */
function promptsOf({ example_prompts: own }) {
  if (!own?.length) return [PROMPTS, CAMERA];
  return [[own[0], own[1] ?? own[0]], own.find((text) => /camera/i.test(text)) ?? own[0]];
}

/** What a new page writes into the first prompt. */
export const firstPrompt = (entry) => (entry.supports_prompts ? promptsOf(entry)[0][0] : "");

const weighted = (text) => ({ text, weight: 100 });

/** The buttons below the list of pipelines. run(example): has it shown; resolves when its stream is live. */
export class Examples {
  #run;
  #stream;
  #entry = null;
  #list = el("div", { className: "row" });
  #error = el("p", { className: "error-text", role: "alert" });
  element = el("div", { className: "stack try", id: "try", role: "group", "aria-label": "Examples of this pipeline" });

  constructor(stream, run) {
    this.#stream = stream;
    this.#run = run;
    this.element.append(el("p", { className: "hint" }, "Try what it is good at:"), this.#list, this.#error);
  }

  show(entry) {
    this.element.hidden = !entry;
    if (!entry || entry === this.#entry) return;
    this.#entry = entry;
    const buttons = examplesOf(entry).map((example) => button(example.title, () => this.#try(example), { title: example.text }));
    this.#list.replaceChildren(...buttons);
  }

  async #try(example) {
    this.#error.textContent = "";
    try {
      await this.#run(example);
      if (example.steps.length && this.#stream.isLive) await api.replay(this.#stream.streamId, example.steps);
    } catch (error) {
      this.#error.textContent = error.message;
    }
  }
}
