// One line of a cue list on the page: when it comes, what it does, and what comes after it.

import { button, el, field } from "./dom.js";

const GO_ON = "";

/**
 * list: {changed(): the line was written to, relabel(line, label), move(line, by), insert(after), remove(line), play(index)}.
 * `element` stays the same while the line does: somebody may be writing in it.
 */
export class CueLine {
  #line;
  #at = el("input", { type: "number", min: 0, step: 0.5 });
  #look = el("select");
  #note = el("span", { className: "quiet" });
  #label = el("input", { type: "text", maxLength: 200, size: 10 });
  #then = el("select");
  #times = el("input", { type: "number", min: 1, step: 1, placeholder: "always" });
  #seconds = el("input", { type: "number", min: 0, max: 300, step: 0.5, placeholder: "look's" });
  #afresh = el("input", { type: "checkbox" });
  #tools;
  #names;
  #index = 0;
  element;

  constructor(line, list) {
    this.#line = line;
    const go = button("Go", () => list.play(this.#index), { className: "cue-go" });
    const remove = button("Remove", () => list.remove(line), { className: "plain" });
    const up = button("↑", () => list.move(line, -1), { className: "icon-only" });
    const down = button("↓", () => list.move(line, 1), { className: "icon-only" });
    const insert = button("Add after", () => list.insert(line));
    this.#tools = el(
      "div",
      { className: "cue-tools", hidden: true },
      field("Label", this.#label),
      field("Then", this.#then),
      field("times", this.#times),
      field("Reached in", this.#seconds, "s"),
      el("label", { className: "inline" }, this.#afresh, el("span", {}, "Afresh")),
      up,
      down,
      insert,
    );
    this.element = el("li", {}, go, this.#at, this.#look, this.#note, remove, this.#tools);
    this.#names = [
      [go, "Go to"], [this.#at, "Time of"], [this.#look, "Look of"], [remove, "Remove"], [this.#label, "Label of"],
      [this.#then, "What comes after"], [this.#times, "Times of the jump of"], [this.#seconds, "Seconds to"],
      [this.#afresh, "Fresh caches with"], [up, "Move up"], [down, "Move down"], [insert, "Add a line after"],
    ];
    this.#bind(list);
    Object.assign(this, { up, down, remove });
  }

  #bind(list) {
    const put = (changes) => {
      for (const [name, value] of Object.entries(changes)) {
        if (value === undefined) delete this.#line[name];
        else this.#line[name] = value;
      }
      list.changed();
    };
    const number = (input) => (Number.isFinite(input.valueAsNumber) ? input.valueAsNumber : undefined);
    this.#at.addEventListener("change", () => {
      const place = Math.max(0, number(this.#at) ?? 0);
      put({ [this.#placedBy]: this.#placedBy === "chunk" ? Math.round(place) : place });
    });
    this.#look.addEventListener("change", () => put({ look: this.#look.value || undefined }));
    this.#label.addEventListener("change", () => list.relabel(this.#line, this.#label.value.trim() || undefined));
    this.#then.addEventListener("change", () => {
      const jump = this.#then.value || undefined;
      put({ jump, ...(jump ? {} : { times: undefined }) });
    });
    this.#times.addEventListener("change", () => put({ times: number(this.#times) && Math.max(1, Math.round(number(this.#times))) }));
    this.#seconds.addEventListener("change", () => put({ transition_s: number(this.#seconds) }));
    this.#afresh.addEventListener("change", () => put({ event: this.#afresh.checked ? "reset" : undefined }));
  }

  #placedBy = "at";

  /**
   * name, index, count: which line of which list. placedBy: `at` or `chunk`. looks: all there are.
   * labels: of earlier lines, to jump back to. editing: whether the tools are shown.
   */
  show({ name, index, count, placedBy, looks, labels, editing }) {
    this.#index = index;
    this.#placedBy = placedBy;
    Object.assign(this.element.dataset, { cue: name, line: index });
    for (const [control, what] of this.#names) control.setAttribute("aria-label", `${what} line ${index + 1}`);
    this.remove.disabled = count === 1;
    this.up.disabled = index === 0;
    this.down.disabled = index === count - 1;
    this.#tools.hidden = !editing;
    this.#write(looks, labels);
  }

  #write(looks, labels) {
    const line = this.#line;
    const isKnown = looks.some((look) => look.name === line.look);
    const missing = line.look && !isKnown ? [[line.look, `${line.look} (missing)`]] : [];
    choose(this.#look, [["", "(no look)"], ...looks.map((look) => [look.name, look.title ?? look.name]), ...missing], line.look ?? "");
    const back = [...new Set([...labels, ...(line.jump ? [line.jump] : [])])];
    choose(this.#then, [[GO_ON, "goes on"], ...back.map((label) => [label, `back to ${label}`])], line.jump ?? GO_ON);
    this.#then.disabled = this.#placedBy === "chunk" || back.length === 0;
    this.#times.disabled = !line.jump;
    write(this.#at, line[this.#placedBy] ?? 0);
    write(this.#label, line.label ?? "");
    write(this.#times, line.times ?? "");
    write(this.#seconds, line.transition_s ?? "");
    this.#afresh.checked = line.event === "reset";
    this.#note.textContent = noteOf(line);
  }
}

/** What a line does beside its look. */
function noteOf({ label, jump, times, set = {}, event }) {
  const back = jump && `back to ${jump}${times ? ` ${times} ×` : ""}`;
  const sets = Object.keys(set).length > 0 && `sets ${Object.keys(set).join(", ")}`;
  return [label, back, sets, event === "reset" && "afresh"].filter(Boolean).join(", ");
}

function write(input, value) {
  if (document.activeElement !== input) input.value = String(value);
}

function choose(select, options, value) {
  const same = options.length === select.options.length && options.every(([v, text], n) => select.options[n].value === v && select.options[n].text === text);
  if (!same) select.replaceChildren(...options.map(([v, text]) => new Option(text, v)));
  select.value = value;
}
