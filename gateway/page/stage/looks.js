// Looks: sets of parameters on the server, recalled by a click or a number key, saved from what is set now.

import { api, problemText } from "../api.js";
import { button, download, el, field, nameFor, upload } from "./dom.js";

/** What the number keys reach: 1 to 9, then 0. */
export const KEYS = "1234567890";

/**
 * Events: "change" (the list is another one), "recalled" (detail: a look).
 *
 * show: {stream: of stream.js, values(): parameters that are set now, adopt(look): show it where no stream runs}.
 */
export class Looks extends EventTarget {
  #show;
  #list = el("ol", { className: "looks", "aria-label": "Looks" });
  #error = el("p", { className: "error-text", role: "alert" });
  #seconds = el("input", { type: "number", id: "look-seconds", min: 0, max: 300, step: 0.5, value: "0", inputMode: "decimal" });
  #edit = button("Edit", () => this.#setEditing(!this.#editing), { "aria-pressed": "false", id: "looks-edit" });
  #editing = false;
  #current = null; // name of the look that was recalled last
  looks = [];

  constructor(show) {
    super();
    this.#show = show;
    this.element = el(
      "section",
      { className: "part", id: "looks", "aria-labelledby": "h-looks" },
      el(
        "div",
        { className: "part-head" },
        el("h2", { id: "h-looks" }, "Looks"),
        field("Reached in", this.#seconds, "s"),
        button("Save look", () => this.save(), { id: "look-save", className: "accent" }),
        this.#edit,
      ),
      this.#list,
      this.#error,
    );
    show.stream.addEventListener("show", ({ detail }) => detail.type === "look_recalled" && this.#mark(detail.look));
  }

  async refresh() {
    await this.#try(async () => this.#take(await api.looks()));
  }

  /** Move to a look, by its place in the list. */
  async recall(index) {
    const look = this.looks[index];
    if (!look) return;
    const { stream } = this.#show;
    if (!stream.isConnected) {
      this.#show.adopt(look);
      this.#mark(look.name);
      return;
    }
    await this.#try(async () => {
      const { errors } = await api.recallLook(stream.streamId, look.name);
      this.#error.textContent = errors.map(problemText).join("\n");
    });
    this.dispatchEvent(new CustomEvent("recalled", { detail: look }));
  }

  async recallByName(name) {
    await this.recall(this.looks.findIndex((look) => look.name === name));
  }

  /** Keep what is set now as another look. */
  async save() {
    const number = this.looks.length + 1;
    const title = this.#show.title() || `Look ${number}`;
    const name = nameFor(title, this.looks.map((look) => look.name));
    await this.#put(name, { title, set: await this.#show.values(), transition_s: this.#seconds.valueAsNumber || 0 });
    this.#mark(name);
  }

  async export() {
    await this.#try(async () => download("looks.json", JSON.stringify(await api.looks(), null, 1)));
  }

  async import() {
    const text = await upload();
    await this.#try(async () => this.#take(await api.putLooks(text)));
  }

  async #put(name, look) {
    await this.#try(async () => {
      await api.putLook(name, look);
      this.#take(await api.looks());
    });
  }

  async #try(run) {
    this.#error.textContent = "";
    try {
      await run();
    } catch (error) {
      this.#error.textContent = error.message;
    }
  }

  #take({ looks }) {
    this.looks = looks;
    this.#render();
    this.dispatchEvent(new Event("change"));
  }

  #mark(name) {
    this.#current = name;
    for (const item of this.#list.children) {
      item.querySelector(".look").setAttribute("aria-pressed", String(item.dataset.look === name));
    }
  }

  #setEditing(editing) {
    this.#editing = editing;
    this.#edit.setAttribute("aria-pressed", String(editing));
    this.#edit.textContent = editing ? "Done" : "Edit";
    this.#render();
  }

  #render() {
    const files = el(
      "li",
      { className: "look-files" },
      button("Import", () => this.import()),
      button("Export", () => this.export()),
    );
    const empty = el("li", { className: "hint" }, "None yet: set prompts and sliders, then save them as a look.");
    this.#list.classList.toggle("editing", this.#editing);
    this.#list.replaceChildren(
      ...this.looks.map((look, index) => this.#item(look, index)),
      ...(this.looks.length ? [] : [empty]),
      ...(this.#editing || !this.looks.length ? [files] : []),
    );
  }

  #item(look, index) {
    const title = look.title ?? look.name;
    const key = KEYS[index];
    const recall = button("", () => this.recall(index), {
      className: "look",
      "aria-pressed": String(look.name === this.#current),
      "aria-keyshortcuts": key,
      title: describe(look),
    });
    recall.append(el("kbd", { "aria-hidden": "true" }, key ?? "·"), el("span", { className: "look-title" }, title));
    const item = el("li", {}, recall, ...(this.#editing ? this.#tools(look, index, title) : []));
    item.dataset.look = look.name;
    return item;
  }

  #tools(look, index, title) {
    const name = el("input", { type: "text", value: title, maxLength: 200, "aria-label": `Name of ${title}` });
    const seconds = el("input", { type: "number", min: 0, max: 300, step: 0.5, value: String(look.transition_s ?? 0), "aria-label": `Seconds to ${title}` });
    const keep = (changes) => this.#put(look.name, body({ ...look, ...changes }));
    name.addEventListener("change", () => keep({ title: name.value.trim() || look.name }));
    seconds.addEventListener("change", () => keep({ transition_s: Math.max(0, seconds.valueAsNumber || 0) }));
    const move = (to) => this.#try(async () => this.#take(await api.moveLook(look.name, to)));
    const of = (what) => ({ "aria-label": `${what} ${title}` });
    return [
      name,
      field("", seconds, "s"),
      button("↑", () => move(index - 1), { ...of("Move up"), disabled: index === 0, className: "icon-only" }),
      button("↓", () => move(index + 1), { ...of("Move down"), disabled: index === this.looks.length - 1, className: "icon-only" }),
      button("Set to now", async () => keep({ set: await this.#show.values() }), of("Set to now:")),
      button("Preview", () => this.dispatchEvent(new CustomEvent("preview", { detail: look })), of("Preview")),
      button("Delete", () => this.#try(() => this.#delete(look)), { ...of("Delete"), className: "plain" }),
    ];
  }

  async #delete(look) {
    await api.deleteLook(look.name);
    this.#take(await api.looks());
  }
}

/** A look without its name, as the server takes it. */
function body({ title, set, transition_s, transition_method }) {
  return { title, set, transition_s, transition_method };
}

function describe({ set, transition_s: seconds }) {
  const prompts = [set.prompts ?? set.transition?.target_prompts ?? []].flat().map((p) => p.text ?? p);
  return [prompts.join(" + "), seconds ? `in ${seconds} s` : "at once"].filter(Boolean).join(", ");
}
