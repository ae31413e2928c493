// The settings panel: shows what the chosen pipeline has, remembers what the user changes.

import { fieldsOf, loadParams, promptRows, promptUpdate, snap, streamParameters } from "./fields.js";
import { PromptEditor } from "./prompts.js";
import { firstPrompt } from "./stage/examples.js";
import { StepEditor } from "./steps.js";

const $ = (id) => document.getElementById(id);
const LOAD_NAMES = new Set(["height", "width", "base_seed", "quantization", "vace_enabled"]);
const NUMBERS = ["height", "width", "base_seed", "transition_steps"];
const RANGES = ["noise_scale", "vace_context_scale", "kv_cache_attention_bias"];
const CHECKS = ["vace_enabled", "noise_controller", "manage_cache"];
const SELECTS = ["vace_preprocessor", "quantization", "prompt_interpolation_method", "transition_method"];

/**
 * Events: "pipeline" (another pipeline or input mode was chosen), "load" (a load parameter changed),
 * "live" (detail: parameters to send to a running stream), "source" (camera or file changed), "vace" (something
 * needs it that is used at once).
 */
export class Controls extends EventTarget {
  #settings;
  #pipelines = {};
  #steps;
  #prompts;
  file = null; // the chosen video file

  constructor(settings) {
    super();
    this.#settings = settings;
    this.#prompts = new PromptEditor(settings.prompts, () => {
      settings.save();
      this.#sendPrompts();
    });
    this.#steps = new StepEditor((steps) => this.#change("denoising_step_list", steps));
    this.#bindFields();
    this.#bindInput();
  }

  get entry() {
    return this.#pipelines[this.#settings.pipeline] ?? null;
  }

  get mode() {
    const { entry } = this;
    const chosen = this.#settings.modes[entry.id];
    return entry.supported_modes.includes(chosen) ? chosen : entry.default_mode;
  }

  get fields() {
    return fieldsOf(this.entry, this.mode);
  }

  /** Every setting of the pipeline: changed ones, else defaults. */
  get values() {
    const overrides = this.#settings.overrides(this.entry.id, this.mode);
    return Object.fromEntries(Object.entries(this.fields).map(([name, { value }]) => [name, overrides[name] ?? value]));
  }

  get mayReset() {
    return Object.keys(this.#settings.overrides(this.entry.id, this.mode)).length > 0;
  }

  get prompts() {
    return this.#settings.prompts;
  }

  nameOf(pipelineId) {
    return this.#pipelines[pipelineId]?.name ?? pipelineId;
  }

  /** Choose a pipeline in the user's place. */
  choose(pipelineId) {
    document.querySelector(`#pipelines input[value="${CSS.escape(pipelineId)}"]`)?.click();
  }

  /** What a new stream starts from: `initialParameters` of the offer. */
  streamParameters() {
    this.#prompts.markApplied();
    return streamParameters(this.fields, this.values, this.mode, this.#settings.prompts);
  }

  /** Use an example's mode and prompts, as if they had been chosen and written. */
  use({ mode, prompts }) {
    this.#settings.modes[this.entry.id] = mode;
    if (prompts.length) this.#prompts.replace(prompts);
    this.#settings.save();
    this.refresh();
  }

  /** Writes a first prompt for somebody who has not written any. */
  #suggest() {
    const [first, ...others] = this.#settings.prompts;
    const { filled } = this.#settings;
    const isOwn = others.length > 0 || (filled === null ? first.text !== "" : first.text !== filled);
    const text = firstPrompt(this.entry);
    if (isOwn || !text || text === first.text) return;
    this.#settings.filled = text;
    this.#prompts.replace([{ text, weight: 100 }]);
    this.#settings.save();
  }

  /** Take over parameters that a running stream got from elsewhere. */
  adopt(parameters) {
    const overrides = this.#settings.overrides(this.entry.id, this.mode);
    for (const [name, value] of Object.entries(parameters)) if (name in this.fields) overrides[name] = value;
    const prompts = parameters.transition?.target_prompts ?? parameters.prompts;
    if (prompts?.length) this.#prompts.replace(promptRows(prompts));
    this.#settings.save();
    this.refresh();
  }

  /** Have VACE loaded, for a picture, or for the input video as control; "vace" tells whoever loads. */
  useVace({ control = false } = {}) {
    if (this.mode === "video") this.#settings.overrides(this.entry.id, this.mode).vace_use_input_video = control;
    this.#change("vace_enabled", true);
    this.refresh();
    this.#emit("vace");
  }

  loadParams() {
    return loadParams(this.fields, this.values);
  }

  /** Whether loading again would change something. params: what was loaded, or null. */
  differsFrom(params) {
    return Object.entries(this.loadParams()).some(([name, value]) => params && name in params && params[name] !== value);
  }

  /** Picture size that the pipeline works on, or null when it takes any. */
  get size() {
    const { width, height } = this.values;
    return width && height ? { width, height } : null;
  }

  /** pipelines: of the schemas answer. vramGb: of the server's GPU, or null. preferred: for a user's first visit. */
  setPipelines(pipelines, vramGb, preferred = null) {
    this.#pipelines = pipelines;
    const entries = Object.values(pipelines);
    const usable = entries.filter((entry) => entry.available !== false);
    const others = entries.filter((entry) => entry.available === false);
    if (!usable.some((entry) => entry.id === this.#settings.pipeline)) {
      this.#settings.pipeline = (usable.find((entry) => entry.id === preferred) ?? usable[0])?.id ?? null;
    }
    $("pipelines").replaceChildren(...usable.map((entry) => this.#card(entry, vramGb)));
    $("unavailable-list").replaceChildren(...others.map((entry) => this.#card(entry, vramGb)));
    $("unavailable").hidden = !others.length;
    $("unavailable").open = !usable.length;
    $("unavailable-summary").textContent = `${others.length} not available on this server`;
    this.refresh();
  }

  #card(entry, vramGb) {
    const card = $("pipeline-card").content.firstElementChild.cloneNode(true);
    const radio = card.querySelector("input");
    const demo = entry.example_prompts?.length > 0; // tiny weights: the estimate is that of the real ones
    const memory = demo ? "Demonstration" : entry.estimated_vram_gb ? `${entry.estimated_vram_gb} GB GPU` : "";
    const only = entry.supported_modes.length === 1 ? `${entry.supported_modes[0]} only` : "";
    const tight = vramGb && entry.estimated_vram_gb > vramGb ? ` Needs about ${entry.estimated_vram_gb} GB of GPU memory; this server has ${Math.round(vramGb)}.` : "";
    for (const part of ["name", "tags", "text"]) card.querySelector(`.card-${part}`).id = `${entry.id}-${part}`;
    radio.setAttribute("aria-labelledby", `${entry.id}-name`);
    radio.setAttribute("aria-describedby", `${entry.id}-tags ${entry.id}-text`);
    radio.value = entry.id;
    radio.checked = entry.id === this.#settings.pipeline;
    radio.disabled = entry.available === false;
    card.querySelector(".card-name").textContent = entry.name;
    card.querySelector(".card-tags").textContent = [only, memory].filter(Boolean).join(", ");
    card.querySelector(".card-text").textContent = radio.disabled
      ? (entry.unavailable_reason ?? "Not available on this server.")
      : entry.description + tight;
    radio.addEventListener("change", () => {
      this.#settings.pipeline = entry.id;
      this.#settings.save();
      this.refresh();
      this.#emit("pipeline");
    });
    return card;
  }

  /** Brings every control in line with the settings. */
  refresh() {
    $("controls").classList.toggle("empty", !this.entry);
    if (!this.entry) return;
    this.#suggest();
    const { entry, fields, mode, values } = this;
    const visible = {
      size: "height" in fields,
      mode: entry.supported_modes.length > 1,
      source: mode === "video",
      prompts: Boolean(entry.supports_prompts),
      reset_cache: Boolean(entry.supports_cache_management),
      vace_context_scale: Boolean(values.vace_enabled),
      vace_ref_images: Boolean(entry.supports_vace),
      vace_preprocessor: mode === "video" && Boolean(values.vace_enabled && values.vace_use_input_video),
    };
    for (const element of document.querySelectorAll("[data-field]")) {
      const name = element.dataset.field;
      element.hidden = !(visible[name] ?? name in fields);
    }
    for (const id of ["section-input", "section-look", "section-load"]) {
      $(id).hidden = !$(id).querySelector("[data-field]:not([hidden])");
    }
    for (const radio of document.getElementsByName("mode")) radio.checked = radio.value === mode;
    for (const radio of document.getElementsByName("source")) radio.checked = radio.value === this.#settings.source;
    for (const radio of document.getElementsByName("video-use")) {
      radio.checked = (radio.value === "control") === Boolean(values.vace_enabled && values.vace_use_input_video);
    }
    $("file-field").hidden = this.#settings.source !== "file";
    $("vace_enabled-hint").textContent =
      entry.vace_default === false
        ? "Guidance by input video and reference pictures. What it needs is made the first time, which takes a minute or two."
        : "Guidance by input video and reference pictures.";
    this.#showExamples(entry);
    this.#showValues(fields, values);
    this.#showSizes(values);
  }

  /** What weights that know few words understand. */
  #showExamples({ note, example_prompts: prompts = [] }) {
    $("examples").hidden = prompts.length === 0;
    $("examples-note").textContent = note ?? "";
    const buttons = prompts.map((text) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.addEventListener("click", () => this.#prompts.choose(text));
      return button;
    });
    $("examples-list").replaceChildren(...buttons);
  }

  #showValues(fields, values) {
    for (const name of [...NUMBERS, ...RANGES]) {
      if (!(name in fields)) continue;
      const { min, max, step } = fields[name];
      Object.assign($(name), { min: min ?? "", max: max ?? "", step: step ?? 1 });
      $(name).value = values[name];
    }
    for (const name of RANGES) $(`${name}-value`).textContent = (values[name] ?? 0).toFixed(2);
    for (const name of CHECKS) $(name).checked = Boolean(values[name]);
    for (const name of SELECTS) if (name in fields) $(name).value = values[name];
    if ("denoising_step_list" in fields) this.#steps.set(values.denoising_step_list);
  }

  /** Engines that exist for certain sizes only: a list instead of two numbers. */
  #showSizes({ width, height }) {
    const sizes = this.entry.supported_resolutions;
    $("size-list-field").hidden = !sizes;
    for (const element of document.querySelectorAll(".size-free")) element.hidden = Boolean(sizes);
    if (!sizes) return;
    const options = sizes.map(([h, w]) => new Option(`${w} × ${h}`, `${h},${w}`));
    if (!sizes.some(([h, w]) => h === height && w === width)) {
      options.unshift(new Option(`${width} × ${height}`, `${height},${width}`));
    }
    $("size-list").replaceChildren(...options);
    $("size-list").value = `${height},${width}`;
  }

  /** cameras: MediaDeviceInfo list; a choice is offered only when there is one. */
  setCameras(cameras) {
    const names = cameras.map((camera, index) => new Option(camera.label || `Camera ${index + 1}`, camera.deviceId));
    $("camera").replaceChildren(new Option("Default", ""), ...names);
    $("camera").value = cameras.some((camera) => camera.deviceId === this.#settings.cameraId)
      ? this.#settings.cameraId
      : "";
    $("camera-field").hidden = this.#settings.source !== "camera" || cameras.length < 2;
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #change(name, value) {
    this.#settings.overrides(this.entry.id, this.mode)[name] = value;
    this.#settings.save();
    if (name === "prompt_interpolation_method") this.#emit("live", { [name]: value });
    else if (name.startsWith("transition_")) return; // part of the next change of a prompt
    else if (LOAD_NAMES.has(name)) this.#emit("load");
    else this.#emit("live", { [name]: value });
  }

  #sendPrompts() {
    if (this.entry?.supports_prompts) this.#emit("live", promptUpdate(this.values, this.#settings.prompts));
  }

  #bindFields() {
    for (const name of NUMBERS) {
      $(name).addEventListener("change", ({ target }) => {
        const number = target.valueAsNumber;
        const value = Number.isFinite(number) ? snap(number, this.fields[name]) : this.values[name];
        target.value = value;
        this.#change(name, value);
      });
    }
    for (const name of RANGES) {
      $(name).addEventListener("input", ({ target }) => {
        $(`${name}-value`).textContent = target.valueAsNumber.toFixed(2);
        this.#change(name, target.valueAsNumber);
      });
    }
    for (const name of SELECTS) $(name).addEventListener("change", ({ target }) => this.#change(name, target.value));
    for (const name of CHECKS) {
      $(name).addEventListener("change", ({ target }) => {
        this.#change(name, target.checked);
        this.refresh();
      });
    }
    $("size-list").addEventListener("change", ({ target }) => {
      const [height, width] = target.value.split(",").map(Number);
      this.#change("height", height);
      this.#change("width", width);
    });
    $("seed-dice").addEventListener("click", () => {
      $("base_seed").value = Math.floor(Math.random() * 2 ** 31);
      this.#change("base_seed", $("base_seed").valueAsNumber);
    });
    $("defaults").addEventListener("click", () => {
      this.#settings.forget(this.entry.id, this.mode);
      this.refresh();
      this.#emit("pipeline");
    });
  }

  #bindInput() {
    for (const radio of document.getElementsByName("mode")) {
      radio.addEventListener("change", () => {
        this.#settings.modes[this.entry.id] = radio.value;
        this.#settings.save();
        this.refresh();
        this.#emit("pipeline");
      });
    }
    for (const radio of document.getElementsByName("source")) {
      radio.addEventListener("change", () => {
        this.#settings.source = radio.value;
        this.#settings.save();
        this.refresh();
        this.#emit("source");
      });
    }
    for (const radio of document.getElementsByName("video-use")) {
      radio.addEventListener("change", () => {
        if (radio.value === "control" && !this.values.vace_enabled) this.useVace({ control: true });
        else this.#change("vace_use_input_video", radio.value === "control");
        this.refresh();
      });
    }
    $("camera").addEventListener("change", ({ target }) => {
      this.#settings.cameraId = target.value;
      this.#settings.save();
      this.#emit("source");
    });
    $("file").addEventListener("change", ({ target }) => {
      this.file = target.files[0] ?? null;
      this.#emit("source");
    });
  }
}
