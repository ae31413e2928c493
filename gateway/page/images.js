// Images for VACE: the pictures on the server as thumbnails, upload and drop, and what the chosen one is for.

import { api, at } from "./api.js";
import { upright } from "./upright.js";

const $ = (id) => document.getElementById(id);
const USES = { vace_ref_images: "reference", first_frame_image: "first frame", last_frame_image: "last frame" };
const NONE = { vace_ref_images: [], first_frame_image: null, last_frame_image: null };

/** Events: "choose" (another image, another use, or none). */
export class ReferenceImages extends EventTarget {
  #chosen = null; // path on the server
  #read = false;
  #uses = "vace_ref_images"; // name of the parameter

  constructor() {
    super();
    $("image-file").addEventListener("change", async ({ target }) => {
      await this.#upload([...target.files]);
      target.value = ""; // the same file can be chosen again
    });
    $("image-use").addEventListener("change", ({ target }) => {
      this.#uses = target.value;
      $("image-afresh-field").hidden = !this.#isReference;
      if (this.isChosen) this.dispatchEvent(new Event("choose"));
    });
    for (const place of [$("image-drop"), $("screen")]) this.#bindDrop(place);
  }

  /** What the server is told about the choice, each time anew: an image counts for one chunk. */
  get parameters() {
    if (!this.isChosen) return NONE;
    return { ...NONE, [this.#uses]: this.#isReference ? [this.#chosen] : this.#chosen };
  }

  /** The same for a stream that runs: what it remembers of its past keeps a new reference from being seen. */
  get update() {
    const isAfresh = this.isChosen && this.#isReference && $("image-afresh").checked;
    return isAfresh ? { ...this.parameters, reset_cache: true } : this.parameters;
  }

  get isChosen() {
    return this.#chosen !== null;
  }

  get #isReference() {
    return this.#uses === "vace_ref_images";
  }

  /** Words for the choice; empty: there is none. */
  get words() {
    const name = this.#button(this.#chosen)?.title ?? this.#chosen?.split("/").at(-1);
    return name ? `${name} as ${USES[this.#uses]}` : "";
  }

  /** Take over an image that a running stream got from elsewhere. */
  adopt(parameters) {
    for (const [uses, value] of Object.entries(parameters)) {
      if (!(uses in USES)) continue;
      const named = [value].flat()[0] ?? null;
      if (named === null && uses !== this.#uses) continue;
      if (named !== null) this.#uses = $("image-use").value = uses;
      this.#mark(this.#find(named));
    }
  }

  /** Reads the list when the panel is shown for the first time. supported: of the chosen pipeline. enabled: VACE is to be loaded. */
  async show(supported, enabled) {
    $("image-hint").textContent = enabled
      ? "The chosen picture guides the next pictures of the stream. Pictures can be dropped here, or on the video."
      : "Choosing a picture loads the pipeline again with VACE, which uses it. Pictures can be dropped here, or on the video.";
    if (!supported || this.#read) return;
    this.#read = true;
    await this.#refresh();
  }

  async #refresh() {
    try {
      const assets = await api.images();
      if (!assets.some(({ path }) => path === this.#chosen)) this.#chosen = null;
      $("images").replaceChildren(...assets.map((asset) => this.#thumbnail(asset)));
      $("images-none").hidden = assets.length > 0;
    } catch (error) {
      this.#read = false; // tried again when the panel is drawn again
      $("image-error").textContent = error.message;
    }
  }

  #thumbnail(asset) {
    const item = $("image-item").content.firstElementChild.cloneNode(true);
    const button = item.querySelector("button");
    item.querySelector("img").src = at(`${asset.url}?thumbnail=1`);
    button.setAttribute("aria-label", asset.name);
    button.title = asset.name;
    button.dataset.path = asset.path;
    button.setAttribute("aria-pressed", String(asset.path === this.#chosen));
    button.addEventListener("click", () => this.#choose(asset.path === this.#chosen ? null : asset.path));
    return item;
  }

  #choose(path) {
    this.#mark(path);
    this.dispatchEvent(new Event("choose"));
  }

  #mark(path) {
    this.#chosen = path;
    for (const button of $("images").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.path === path));
    }
  }

  #button(path) {
    return [...$("images").querySelectorAll("button")].find((button) => button.dataset.path === path);
  }

  /** The path of an image whose path may be given relative to the server's directory. */
  #find(path) {
    const paths = [...$("images").querySelectorAll("button")].map((button) => button.dataset.path);
    return paths.find((known) => known === path || known.endsWith(`/${path}`)) ?? path;
  }

  #bindDrop(place) {
    const hasFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files") && !$("image-drop").closest("[hidden]");
    place.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault(); // else the browser opens what is dropped
      place.classList.add("drop-here");
    });
    place.addEventListener("dragleave", () => place.classList.remove("drop-here"));
    place.addEventListener("drop", async (event) => {
      place.classList.remove("drop-here");
      if (!hasFiles(event)) return;
      event.preventDefault();
      const path = await this.#upload([...event.dataTransfer.files]);
      if (path) this.#choose(path);
    });
  }

  /** Sends files to the server; the path of the last one there, or null. */
  async #upload(files) {
    if (!files.length) return null;
    let path = null;
    $("image-error").textContent = "";
    $("image-file").disabled = true;
    try {
      for (const file of files) {
        const stored = await api.uploadImage(await upright(file));
        path = stored.path;
        if (stored.problem) $("image-error").textContent = stored.problem;
      }
    } catch (error) {
      $("image-error").textContent = error.message;
    } finally {
      $("image-file").disabled = false;
    }
    await this.#refresh();
    return path;
  }
}
