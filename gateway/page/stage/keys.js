// The keyboard: what each key does, and the overlay that says so.

import { button, el } from "./dom.js";

const FIELDS = "input:not([type=range], [type=checkbox], [type=radio]), textarea, select";
const OPERATED = "input:not([type=range]), textarea, select, button, a, summary"; // Space and Enter have a meaning there

export class Keys {
  #actions = new Map(); // key -> {text, run, group}
  #rows = [];
  #dialog = el("dialog", { id: "keys", "aria-labelledby": "h-keys" });

  constructor() {
    document.body.append(this.#dialog);
    document.addEventListener("keydown", (event) => this.#press(event));
    this.add("?", "These keys", () => this.toggle());
  }

  /** key: as KeyboardEvent.key says it, or a list of them. shown: how the overlay names it. */
  add(key, text, run, { shown = null, repeats = false } = {}) {
    for (const each of [key].flat()) this.#actions.set(each.toLowerCase(), { run, repeats, key: each });
    this.#rows.push([shown ?? [key].flat()[0], text]);
  }

  toggle() {
    if (this.#dialog.open) return this.#dialog.close();
    const rows = this.#rows.map(([key, text]) => el("div", {}, el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)));
    this.#dialog.replaceChildren(
      el("h2", { id: "h-keys" }, "Keys"),
      el("dl", { className: "keys-list" }, ...rows),
      button("Close", () => this.#dialog.close(), { autofocus: true }),
    );
    this.#dialog.showModal();
  }

  #press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const action = this.#actions.get(event.key.toLowerCase());
    const operates = event.key === " " || event.key === "Enter";
    if (!action || event.target.closest?.(operates ? OPERATED : FIELDS)) return;
    if (this.#dialog.open && action.key !== "?") return;
    if (event.repeat && !action.repeats) return;
    event.preventDefault();
    action.run(event);
  }
}
