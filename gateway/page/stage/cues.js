// Cue lists: looks one after another, by time or on the beat. They are kept and played on the server.

import { api, problemText } from "../api.js";
import { CueLine } from "./cue_line.js";
import { button, download, el, field, nameFor, part, upload } from "./dom.js";

const CLOCKS = { time: "seconds", beat: "beats", chunk: "chunks" };
const STEP = 8; // from one line to the next, as the page writes them

export class Cues extends EventTarget {
  #stream;
  #looks;
  #element = part("cues", "Cue lists");
  #choice = el("select", { "aria-label": "Cue list", id: "cue-choice" });
  #lines = el("ol", { className: "cue-lines", "aria-label": "Lines of the cue list" });
  #clock = el("select", { "aria-label": "Lines are placed in", id: "cue-clock" });
  #loop = el("input", { type: "checkbox", id: "cue-loop" });
  #rename = el("input", { type: "text", maxLength: 64, id: "cue-name" });
  #nameField = field("Name", this.#rename);
  #edit = button("Edit lines", () => this.#setEditing(!this.#editing), { id: "cue-edit", "aria-pressed": "false" });
  #editing = false;
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
    for (const [value, text] of Object.entries(CLOCKS)) this.#clock.append(new Option(text, value));
    const head = el(
      "div",
      { className: "part-head" },
      this.#choice,
      button("New list", () => this.#new(), { id: "cue-new" }),
      this.#play,
      this.#edit,
      button("Import", () => this.#try(() => this.#import())),
      button("Export", () => this.#list && download(`${this.#name}.json`, JSON.stringify(this.#list, null, 1))),
      button("Delete", () => this.#try(() => this.#delete()), { className: "plain" }),
    );
    const settings = el(
      "div",
      { className: "part-head" },
      this.#nameField,
      field("Lines in", this.#clock),
      el("label", { className: "inline" }, this.#loop, el("span", {}, "Loop after")),
      this.#length,
      button("Add line", () => this.#add(), { id: "cue-add" }),
    );
    this.#element.body.append(head, settings, this.#lines, this.#error);
    this.#choice.addEventListener("change", () => this.#try(() => this.#open(this.#choice.value)));
    this.#nameField.hidden = true;
    this.#rename.addEventListener("change", () => this.#try(() => this.#setName(this.#rename.value)));
    this.#clock.addEventListener("change", () => this.#setClock(this.#clock.value));
    for (const input of [this.#loop, this.#length]) input.addEventListener("change", () => this.#change(this.#rounds()));
    stream.addEventListener("show", ({ detail }) => detail.type === "cues_changed" && this.#follow(detail));
    looks.addEventListener("change", () => this.#render());
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
    if (plain(list) !== plain(this.#list)) this.#list = list;
    if (name !== null) this.#choice.value = name;
    this.#render();
  }

  async #new() {
    const name = nameFor("show", this.names);
    const looks = this.#looks.looks;
    const lines = looks.map((look, index) => ({ at: index * STEP, look: look.name }));
    const list = { clock: "time", loop: true, length: Math.max(STEP, looks.length * STEP), lines: lines.length ? lines : [{}] };
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
    return this.#loop.checked ? { loop: true, length: this.#length.valueAsNumber || STEP } : { loop: undefined, length: undefined };
  }

  /** The same list under another name. */
  async #setName(title) {
    const before = this.#name;
    if (before === null) return;
    const name = nameFor(title, this.names.filter((each) => each !== before));
    if (name === before) return;
    await this.#kept;
    await api.putCues(name, JSON.stringify(this.#list));
    await api.deleteCues(before);
    this.#name = name;
    await this.refresh();
  }

  /** Lines keep their places, counted in another unit. */
  #setClock(clock) {
    if (!this.#list) return;
    const before = placedBy(this.#list);
    const changes = clock === "chunk" ? { clock: undefined, loop: undefined, length: undefined } : { clock };
    const now = placedBy({ clock });
    for (const line of this.#list.lines) {
      const place = line[before] ?? 0;
      delete line[before];
      line[now] = now === "chunk" ? Math.round(place) : place;
      if (now === "chunk") for (const name of ["jump", "times"]) delete line[name];
    }
    this.#change(changes);
  }

  #setEditing(editing) {
    this.#editing = editing;
    this.#edit.setAttribute("aria-pressed", String(editing));
    this.#edit.textContent = editing ? "Done" : "Edit lines";
    this.#nameField.hidden = !editing;
    this.#render();
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
    this.#insert(this.#inOrder().at(-1));
  }

  /** Another line after this one: halfway to the next, or a step later. */
  #insert(line) {
    const [lines, key] = [this.#inOrder(), placedBy(this.#list)];
    const index = lines.indexOf(line);
    const [here, next] = [line[key] ?? 0, lines[index + 1]?.[key]];
    const between = next === undefined ? here + STEP : (here + next) / 2;
    const place = key === "chunk" ? Math.round(between) : between;
    const look = this.#looks.looks[0]?.name;
    const length = this.#list.loop ? Math.max(this.#list.length ?? 0, place + STEP) : undefined;
    this.#change({ length, lines: lines.toSpliced(index + 1, 0, { [key]: place, ...(look ? { look } : {}) }) });
  }

  /** Change places with a neighbour: the times stay. */
  #move(line, by) {
    const [lines, key] = [this.#inOrder(), placedBy(this.#list)];
    const index = lines.indexOf(line);
    const other = lines[index + by];
    if (!other) return;
    [line[key], other[key]] = [other[key] ?? 0, line[key] ?? 0];
    [lines[index], lines[index + by]] = [other, line];
    this.#change({ lines });
  }

  /** Jumps to a line follow its label; without one, they go on. */
  #relabel(line, label) {
    const before = line.label;
    if (label === undefined) delete line.label;
    else line.label = label;
    this.#followLabel(before, label);
    this.#change({});
  }

  #followLabel(before, label) {
    if (before === undefined || this.#list.lines.some((each) => each.label === before)) return;
    for (const each of this.#list.lines.filter(({ jump }) => jump === before)) {
      if (label !== undefined) each.jump = label;
      else for (const name of ["jump", "times"]) delete each[name];
    }
  }

  #remove(line) {
    this.#list.lines = this.#list.lines.filter((each) => each !== line);
    this.#followLabel(line.label, undefined);
    this.#change({});
  }

  #inOrder() {
    const key = this.#list ? placedBy(this.#list) : "at";
    return (this.#list?.lines ?? []).toSorted((a, b) => (a[key] ?? 0) - (b[key] ?? 0));
  }

  #follow({ state, list, line, round }) {
    this.#playing = { state, list, line, round };
    if (state === "playing" && list !== this.#name && this.names.includes(list)) this.#try(() => this.#open(list));
    this.#mark(); // what somebody is writing in a line stays
  }

  #render() {
    this.#clock.value = this.#list?.clock ?? (this.#list ? "chunk" : "time");
    this.#loop.checked = Boolean(this.#list?.loop);
    this.#length.value = this.#list?.length ?? "";
    for (const input of [this.#loop, this.#length]) input.disabled = this.#clock.value === "chunk";
    if (document.activeElement !== this.#rename) this.#rename.value = this.#name ?? "";
    const lines = this.#inOrder();
    const rows = lines.map((line, index) => this.#row(line, index, lines));
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

  #row(line, index, lines) {
    const item = this.#items.get(line) ?? new CueLine(line, this.#actions);
    this.#items.set(line, item);
    const key = placedBy(this.#list);
    const earlier = lines.filter((each) => (each[key] ?? 0) < (line[key] ?? 0));
    item.show({
      name: this.#name,
      index,
      count: lines.length,
      placedBy: key,
      looks: this.#looks.looks,
      labels: earlier.map(({ label }) => label).filter(Boolean),
      editing: this.#editing,
    });
    return item.element;
  }

  #actions = {
    changed: () => this.#change({}),
    relabel: (line, label) => this.#relabel(line, label),
    move: (line, by) => this.#move(line, by),
    insert: (line) => this.#insert(line),
    remove: (line) => this.#remove(line),
    play: (index) => this.play(this.#name, index),
  };
}

/** What places the lines of a list. */
const placedBy = ({ clock }) => (clock === "time" || clock === "beat" ? "at" : "chunk");

/** A list as text, the same for all that means the same: the server leaves out what is as usual. */
function plain(list) {
  const isUsual = (value) => value === undefined || value === 0 || value === false;
  return JSON.stringify(list, (key, value) => {
    if (key === "version") return undefined;
    if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
    return Object.fromEntries(Object.entries(value).filter(([, each]) => !isUsual(each)).toSorted(([a], [b]) => (a < b ? -1 : 1)));
  });
}
