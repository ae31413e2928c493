// LoRA files: which ones the chosen pipeline is to have, their scales, and installing others.

import { api } from "./api.js";

const $ = (id) => document.getElementById(id);
const RUNTIME = "runtime_peft";

/**
 * Events: "load" (what a load asks for changed), "scale" (detail: `lora_scales` for a running stream).
 * A choice is kept with the other settings: path -> scale, by pipeline.
 */
export class Loras extends EventTarget {
  #settings;
  #entry = null; // the chosen pipeline
  #loaded = null; // the server's status answer, when a pipeline is loaded
  #files = [];
  #read = false;

  constructor(settings) {
    super();
    this.#settings = settings;
    this.#settings.loras ??= {};
    $("lora-file").addEventListener("change", ({ target }) => this.#upload(target));
    $("lora-install").addEventListener("click", () => this.#install());
    $("lora-merged").querySelector("button").addEventListener("click", ({ target }) => this.#bring(target, api.deleteMergedSets));
  }

  get #chosen() {
    return (this.#settings.loras[this.#entry?.id] ??= {});
  }

  /** Adapters that the loaded pipeline has, by path. */
  get #inUse() {
    const isChosen = this.#loaded?.pipeline_id === this.#entry?.id;
    const adapters = (isChosen && this.#loaded?.loaded_lora_adapters) || [];
    return new Map(adapters.map((adapter) => [adapter.path, adapter]));
  }

  /** Whether files can be put beside the weights of what is loaded, without loading again. */
  get #isLive() {
    const { pipeline_id: id, load_params: params } = this.#loaded ?? {};
    if (id !== this.#entry?.id) return false;
    return params?.lora_merge_mode === RUNTIME || [...this.#inUse.values()].some(({ merge_mode }) => merge_mode === RUNTIME);
  }

  /**
   * The part of `load_params` that is about LoRA files; what takes them while it runs goes on doing so.
   * A file that is loaded keeps its scale of the load: what was turned since is the stream's.
   */
  get loadParams() {
    if (!this.#entry?.supports_lora) return {};
    const chosen = Object.entries(this.#chosen);
    if (!chosen.length && !this.#isLive) return {};
    const loaded = new Map((this.#isLive && this.#loaded.load_params.loras ? this.#loaded.load_params.loras : []).map((entry) => [entry.path, entry]));
    return { loras: chosen.map(([path, scale]) => loaded.get(path) ?? { path, scale }), lora_merge_mode: RUNTIME };
  }

  /** What a new stream begins with: the scales of this page. */
  get streamParameters() {
    const turned = Object.entries(this.#chosen).filter(([path]) => this.#inUse.get(path)?.merge_mode === RUNTIME);
    return turned.length ? { lora_scales: turned.map(([path, scale]) => ({ path, scale })) } : {};
  }

  /** Whether loading again would change which files are used. */
  get differs() {
    const inUse = this.#inUse;
    const chosen = Object.keys(this.#chosen);
    return chosen.some((path) => !inUse.has(path)) || [...inUse.keys()].some((path) => !chosen.includes(path));
  }

  /** The pipeline that is chosen on the page, and the server's status answer, or null. */
  show(entry, loaded) {
    const before = [this.#entry?.id, JSON.stringify(this.#loaded?.loaded_lora_adapters), this.#loaded?.pipeline_id].join();
    [this.#entry, this.#loaded] = [entry ?? null, loaded];
    $("section-loras").hidden = !entry?.supports_lora;
    if (!entry?.supports_lora) return;
    this.#adopt();
    const now = [entry.id, JSON.stringify(loaded?.loaded_lora_adapters), loaded?.pipeline_id].join();
    if (!this.#read) this.refresh();
    else if (before !== now) this.#draw();
  }

  /** What is loaded counts as chosen, once: somebody else, or another page, has loaded it. */
  #adopt() {
    const paths = [...this.#inUse.keys()].join();
    if (paths === this.#adopted) return;
    this.#adopted = paths;
    for (const [path, { scale }] of this.#inUse) this.#chosen[path] ??= scale;
  }
  #adopted = "";

  async refresh() {
    this.#read = true;
    try {
      const [files, merged] = await Promise.all([api.loras(), api.mergedSets()]);
      this.#files = files;
      this.#showMerged(merged);
      this.#draw();
    } catch (error) {
      this.#read = false; // tried again when the panel is drawn again
      this.#say(error.message);
    }
  }

  /** Engines that were made for loads with files in their weights; they take room on the server's disk. */
  #showMerged(sets) {
    const megabytes = sets.reduce((sum, { size_bytes }) => sum + size_bytes, 0) / 1e6;
    $("lora-merged").hidden = !sets.length;
    $("lora-merged").querySelector("span").textContent =
      `Engines with files merged in: ${sets.length}, ${megabytes.toFixed(1)} MB.`;
  }

  #draw() {
    $("loras-none").hidden = this.#files.length > 0;
    // A slider that is being dragged must stay the same element.
    if (document.activeElement?.closest?.("#loras") && document.activeElement.type === "range") return;
    $("loras").replaceChildren(...this.#files.map((file) => this.#item(file)));
    $("lora-hint").textContent = this.#isLive
      ? "Files are put beside the model's weights at once; the picture follows from its next part on."
      : "A chosen file counts after loading again. From then on its strength can be turned while streaming.";
  }

  #item(file) {
    const item = $("lora-item").content.firstElementChild.cloneNode(true);
    const part = (name) => item.querySelector(name);
    const [check, slider] = [part("input[type=checkbox]"), part("input[type=range]")];
    const path = this.#pathOf(file);
    const merged = this.#inUse.get(path)?.merge_mode === "permanent_merge";
    item.dataset.lora = file.name;
    slider.id = `lora-${[file.folder, file.name].filter(Boolean).join("/")}`; // what a MIDI controller is bound to
    part(".lora-name").textContent = file.title ?? file.name;
    part(".lora-name").title = [file.folder, file.name].filter(Boolean).join("/");
    part(".lora-facts").textContent = facts(file);
    part(".lora-problem").textContent = file.problem ? `Cannot be used: ${file.problem}.` : "";
    check.checked = path in this.#chosen;
    check.disabled = Boolean(file.problem) || merged;
    check.addEventListener("change", () => this.#use(path, check, part(".lora-problem")));
    slider.value = this.#chosen[path] ?? 1;
    slider.disabled = !check.checked || merged;
    slider.setAttribute("aria-label", `Strength of ${file.title ?? file.name}`);
    part("output").textContent = Number(slider.value).toFixed(2);
    slider.addEventListener("input", () => {
      part("output").textContent = Number(slider.value).toFixed(2);
      this.#turn(path, Number(slider.value));
    });
    for (const word of file.trigger_words) part(".lora-words").append(Object.assign(document.createElement("code"), { textContent: word }));
    part(".lora-words").hidden = !file.trigger_words.length;
    return item;
  }

  /** How the loaded pipeline, or the choice, calls the file: by its whole path, or within its directory. */
  #pathOf({ path, name, folder }) {
    const relative = [folder, `${name}.safetensors`].filter(Boolean).join("/");
    return this.#inUse.has(relative) ? relative : path;
  }

  async #use(path, check, problem) {
    const use = check.checked;
    problem.textContent = "";
    if (this.#isLive) {
      check.disabled = true;
      try {
        const { loaded_lora_adapters: adapters } = await (use ? api.addLora(path, this.#chosen[path] ?? 1) : api.removeLora(path));
        this.#loaded.loaded_lora_adapters = adapters;
        const { load_params: params } = this.#loaded;
        params.loras = use
          ? [...(params.loras ?? []), { path, scale: this.#chosen[path] ?? 1, merge_mode: RUNTIME }]
          : params.loras.filter((entry) => entry.path !== path);
      } catch (error) {
        check.checked = !use;
        problem.textContent = error.message;
        return;
      } finally {
        check.disabled = false;
      }
    }
    if (use) this.#chosen[path] = 1;
    else delete this.#chosen[path];
    this.#adopted = [...this.#inUse.keys()].join();
    this.#settings.save();
    check.focus();
    this.#draw();
    this.dispatchEvent(new Event("load"));
  }

  #turn(path, scale) {
    this.#chosen[path] = scale;
    this.#settings.save();
    this.dispatchEvent(new CustomEvent("scale", { detail: this.streamParameters }));
  }

  async #upload(input) {
    const [file] = input.files;
    if (!file) return;
    await this.#bring(input, () => api.uploadLora(file));
    input.value = ""; // the same file can be chosen again
  }

  async #install() {
    const url = $("lora-url").value.trim();
    if (!url) return this.#say("Write the address of a file on Hugging Face or CivitAI first.");
    if (await this.#bring($("lora-install"), () => api.installLora(url))) $("lora-url").value = "";
  }

  /** Get a file onto the server; whether it is there. element: disabled meanwhile */
  async #bring(element, get) {
    this.#say("");
    element.disabled = true;
    try {
      await get();
      await this.refresh();
      return true;
    } catch (error) {
      this.#say(error.message);
      return false;
    } finally {
      element.disabled = false;
    }
  }

  #say(text) {
    $("lora-error").textContent = text;
  }
}

/** "0.2 MB, safetensors", or where it lies and what it is. */
function facts({ size_mb, folder, description }) {
  return [`${size_mb.toFixed(1)} MB`, folder, description].filter(Boolean).join(" · ");
}
