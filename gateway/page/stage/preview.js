// The next look, seen before the audience sees it: a second stream of its own, where the server has room for one.

import { api, at } from "../api.js";
import { button, el } from "./dom.js";

const LEASE_S = 10; // without this page the server ends the stream by itself

export class Preview {
  #stream;
  #id = null;
  #image = el("img", { alt: "Preview of the look", width: 208, height: 117 });
  #title = el("span", {});
  #error = el("p", { className: "error-text", role: "alert" });
  element = el("figure", { className: "look-preview", id: "look-preview", hidden: true });

  constructor(stream) {
    this.#stream = stream;
    const caption = el("figcaption", {}, this.#title, " ", button("Close preview", () => this.close()));
    this.element.append(this.#image, caption, this.#error);
    stream.addEventListener("state", () => !stream.isConnected && this.close());
    window.addEventListener("pagehide", () => this.close());
  }

  /** current: what the page's own stream is set to, which the look changes. */
  async show(look, current) {
    await this.close();
    this.element.hidden = false;
    this.#title.textContent = `Preview: ${look.title ?? look.name}`;
    if (!this.#stream.isConnected) return this.#fail("Start a stream first.");
    try {
      const { lora_scales: _, ...set } = look.set; // they belong to the loaded pipeline, not to one stream
      const parameters = { ...current, ...set, input_mode: "text" };
      const { id } = await api.createStream({ parameters, lease_s: LEASE_S });
      this.#id = id;
      this.#image.hidden = false;
      this.#image.src = at(`/api/v1/streams/${encodeURIComponent(id)}/mjpeg?fps=5`);
    } catch (error) {
      this.#fail(`${error.message}: a preview needs room for a second stream.`);
    }
  }

  #fail(text) {
    this.#image.hidden = true;
    this.#error.textContent = text;
  }

  async close() {
    this.element.hidden = true;
    this.#error.textContent = "";
    this.#image.removeAttribute("src");
    const id = this.#id;
    this.#id = null;
    if (id) await api.deleteStream(id).catch(() => {}); // its lease ends it, too
  }
}
