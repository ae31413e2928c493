// Reference images for VACE: the pictures on the server as thumbnails, upload, and the chosen one.

import { api, at } from "./api.js";

const $ = (id) => document.getElementById(id);

/** Events: "choose" (another image, or none, was chosen). */
export class ReferenceImages extends EventTarget {
  #chosen = null; // path on the server
  #read = false;

  constructor() {
    super();
    $("image-file").addEventListener("change", ({ target }) => this.#upload(target));
  }

  /** What the server is told about the choice; an empty list stands for none. */
  get parameters() {
    return { vace_ref_images: this.#chosen ? [this.#chosen] : [] };
  }

  get isChosen() {
    return this.#chosen !== null;
  }

  /** Reads the list when the panel is shown for the first time. supported: of the chosen pipeline. enabled: VACE is to be loaded. */
  async show(supported, enabled) {
    $("image-hint").textContent = enabled
      ? "The chosen picture guides the next pictures of the stream."
      : "Turn on Load VACE to use a reference picture.";
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
    this.#chosen = path;
    for (const button of $("images").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.path === path));
    }
    this.dispatchEvent(new Event("choose"));
  }

  async #upload(input) {
    const [file] = input.files;
    if (!file) return;
    $("image-error").textContent = "";
    input.disabled = true;
    try {
      await api.uploadImage(file);
      await this.#refresh();
    } catch (error) {
      $("image-error").textContent = error.message;
    } finally {
      input.disabled = false;
      input.value = ""; // the same file can be chosen again
    }
  }
}
