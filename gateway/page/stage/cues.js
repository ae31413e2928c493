// Cue lists: looks one after another, by time or on the beat. They are kept and played on the server.

import { api, problemText } from "../api.js";
import { button, download, el, field, nameFor, part, upload } from "./dom.js";

const CLOCKS = { time: "seconds", beat: "beats", chunk: "chunks" };

export class Cues extends EventTarget {
  #stream;
  #looks;
  #element = part("cues", "Cue lists");
  #choice = el("select", { "aria-label": "Cue list", id: "cue-choice" });
  #lines = el("ol", { className: "cue-lines", "aria-label": "Lines of the cue list" });
  #clock = el("select", { "aria-label": "Lines are placed in", id: "cue-clock" });
  #loop = el("input", { type: "checkbox", id: "cue-loop" });
  #length = el("input", { type: "number", min: 0.1, step: 0.5, id: "cue-length", "aria-label": "Length of a round" });
  #play = button("Play", () => this.toggle(), { id: "cue-play", className: "accent", "aria-keyshortcuts": "c" });
  #error = el("p", { className: "error-text", role: "alert" });
  #name = null;
  #list = null;
  #playing = { state: "stopped" };
  #kept = Promise.resolve(); // the last change on its way to the server
  #changes = 0;
  #items = new WeakMap(); // rows by their lines: what somebody operates stays in its place
  names = [];

  constructor(stream, looks) {
    super();
    this.#stream = stream;
    this.#looks = looks;
    for (const [value, text] of Object.entries(CLOCKS)) if (value !== "chunk") this.#clock.append(new Option(text, value));
    const head = el(
      "div",
      { className: "part-head" },
      this.#choice,
      button("New list", () => this.#new(), { id: "cue-new" }),
      this.#play,
      button("Import", () => this.#try(() => this.#import())),
      button("Export", () => this.#list && download(`${this.#name}.json`, JSON.stringify(this.#list, null, 1))),
      button("Delete", () => this.#try(() => this.#delete()), { className: "plain" }),
    );
    const settings = el(
      "div",
      { className: "part-head" },
      field("Lines in", this.#clock),
      el("label", { className: "inline" }, this.#loop, el("span", {}, "Loop after")),
      this.#length,
      button("Add line", () => this.#add(), { id: "cue-add" }),
    );
    this.#element.body.append(head, settings, this.#lines, this.#error);
    this.#choice.addEventListener("change", () => this.#try(() => this.#open(this.#choice.value)));
    this.#clock.addEventListener("change", () => this.#change({ clock: this.#clock.value }));
    for (const input of [this.#loop, this.#length]) input.addEventListener("change", () => this.#change(this.#rounds()));
    stream.addEventListener("show", ({ detail }) => detail.type === "cues_changed" && this.#follow(detail));
    looks.addEventListener("change", () => {
      this.#items = new WeakMap();
      this.#render();
    });
  }

  get element() {
    return this.#element;
  }

  async refresh() {
    await this.#try(async () => {
      this.names = (await api.cues()).cues;
      this.#choice.replaceChildren(...this.names.map((name) => new Option(name, name)));
      if (this.#stream.streamId) this.#follow(await api.playing(this.#stream.streamId));
      await this.#open(this.#playing.list ?? (this.names.includes(this.#name) ? this.#name : (this.names[0] ?? null)));
      this.dispatchEvent(new Event("change"));
    });
  }

  /** Play the list that is shown, or end what plays. */
  async toggle() {
    if (this.#playing.state === "playing") return this.#try(() => api.stopCues(this.#stream.streamId));
    return this.play(this.#name);
  }

  /** begin: number of the line to begin with. */
  async play(name, begin = null) {
    if (!name || !this.#stream.isConnected) return;
    await this.#try(async () => {
      await this.#kept;
      const { errors } = await api.playCues(this.#stream.streamId, name, begin === null ? {} : { begin });
      this.#error.textContent = errors.map(problemText).join("\n");
    });
  }

  async #try(run) {
    this.#error.textContent = "";
    try {
      await run();
    } catch (error) {
      this.#error.textContent = error.message;
    }
    this.#render();
  }

  async #open(name) {
    await this.#kept;
    await this.#load(name);
  }

  async #load(name) {
    this.#name = name;
    const number = this.#changes;
    const list = name === null ? null : await api.cueList(name);
    if (name !== this.#name || number !== this.#changes) return; // something newer is shown
    // Somebody may be writing in a row: those of the same list stay.
    if (JSON.stringify(list) !== JSON.stringify(this.#list)) this.#list = list;
    if (name !== null) this.#choice.value = name;
    this.#render();
  }

  async #new() {
    const name = nameFor("show", this.names);
    const looks = this.#looks.looks;
    const lines = looks.map((look, index) => ({ at: index * 8, look: look.name }));
    const list = { clock: "time", loop: true, length: Math.max(8, looks.length * 8), lines: lines.length ? lines : [{}] };
    await this.#try(async () => {
      await api.putCues(name, list);
      this.#name = name;
      this.names.push(name);
    });
    await this.refresh();
    this.#choice.value = name;
    await this.#try(() => this.#open(name));
  }

  async #import() {
    const text = await upload();
    const name = nameFor("imported", this.names);
    await api.putCues(name, text);
    this.#name = name;
    await this.refresh();
  }

  async #delete() {
    if (this.#name === null) return;
    await this.#kept;
    await api.deleteCues(this.#name);
    this.#name = null;
    await this.refresh();
  }

  #rounds() {
    return this.#loop.checked ? { loop: true, length: this.#length.valueAsNumber || 8 } : { loop: undefined, length: undefined };
  }

  /** Shown at once, so that the next change builds on it; they reach the server one after another. */
  #change(changes) {
    if (!this.#list) return;
    const [name, list, number] = [this.#name, { ...this.#list, ...changes }, (this.#changes += 1)];
    this.#list = list;
    this.#render();
    const text = JSON.stringify(list);
    this.#kept = this.#kept.then(() => this.#keep(name, text, number));
  }

  async #keep(name, text, number) {
    this.#error.textContent = "";
    try {
      await api.putCues(name, text);
    } catch (error) {
      if (number === this.#changes && name === this.#name) await this.#try(() => this.#load(name)); // what the server has
      this.#error.textContent = error.message;
    }
  }

  #add() {
    if (!this.#list) return;
    const last = Math.max(0, ...this.#list.lines.map(({ at }) => at ?? 0));
    const look = this.#looks.looks[0]?.name;
    const length = this.#list.loop ? Math.max(this.#list.length ?? 0, last + 16) : undefined;
    this.#change({ length, lines: [...this.#list.lines, { at: last + 8, ...(look ? { look } : {}) }] });
  }

  #follow({ state, list, line, round }) {
    this.#playing = { state, list, line, round };
    if (state === "playing" && list !== this.#name && this.names.includes(list)) this.#try(() => this.#open(list));
    this.#mark(); // what somebody is writing in a line stays
  }

  #render() {
    const timed = this.#list && this.#list.clock && this.#list.clock !== "chunk";
    this.#clock.value = timed ? this.#list.clock : "time";
    this.#loop.checked = Boolean(this.#list?.loop);
    this.#length.value = this.#list?.length ?? "";
    const lines = (this.#list?.lines ?? []).toSorted((a, b) => (a.at ?? a.chunk ?? 0) - (b.at ?? b.chunk ?? 0));
    const rows = lines.map((line, index) => this.#row(line, index, lines.length === 1));
    if (rows.length !== this.#lines.children.length || rows.some((row, index) => row !== this.#lines.children[index])) {
      const focused = document.activeElement;
      this.#lines.replaceChildren(...rows);
      if (this.#lines.contains(focused)) focused.focus();
    }
    this.#mark();
  }

  #mark() {
    const { state, list, line } = this.#playing;
    const plays = state === "playing";
    this.#element.count.textContent = plays ? `(${list} plays, line ${(line ?? 0) + 1})` : "";
    this.#play.textContent = plays ? "Stop" : "Play";
    this.#play.disabled = !plays && (!this.#list || !this.#stream.isConnected);
    for (const [index, item] of [...this.#lines.children].entries()) {
      if (state === "playing" && list === this.#name && index === line) item.setAttribute("aria-current", "step");
      else item.removeAttribute("aria-current");
    }
  }

  #row(line, index, isOnly) {
    const row = this.#items.get(line) ?? this.#line(line);
    this.#items.set(line, row);
    const [go, at, look, , remove] = row.children;
    const names = [[go, "Go to"], [at, "Time of"], [look, "Look of"], [remove, "Remove"]];
    for (const [control, name] of names) control.setAttribute("aria-label", `${name} line ${index + 1}`);
    remove.disabled = isOnly;
    return row;
  }

  #line(line) {
    const at = el("input", { type: "number", min: 0, step: 0.5, value: String(line.at ?? line.chunk ?? 0) });
    const look = el("select", {}, new Option("(no look)", ""));
    for (const each of this.#looks.looks) look.append(new Option(each.title ?? each.name, each.name));
    if (line.look && !this.#looks.looks.some(({ name }) => name === line.look)) look.append(new Option(`${line.look} (missing)`, line.look));
    look.value = line.look ?? "";
    const put = (changes) => {
      Object.assign(line, changes);
      this.#change({});
    };
    at.addEventListener("change", () => put({ at: Math.max(0, at.valueAsNumber || 0) }));
    look.addEventListener("change", () => put({ look: look.value || undefined }));
    const row = el(
      "li",
      {},
      button("Go", () => this.play(this.#name, [...this.#lines.children].indexOf(row)), { className: "cue-go" }),
      at,
      look,
      el("span", { className: "quiet" }, [line.label, line.jump && `back to ${line.jump}`].filter(Boolean).join(", ")),
      button("Remove", () => this.#change({ lines: this.#list.lines.filter((each) => each !== line) }), { className: "plain" }),
    );
    return row;
  }
}
