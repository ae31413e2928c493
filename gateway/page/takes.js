// Recordings: the button that begins and ends one, and what the server has, to play, download and delete.

import { api, ApiError, at } from "./api.js";

const $ = (id) => document.getElementById(id);

export class Takes {
  #send;
  #playing = null; // id of the take in the player
  #own = new Set(); // ids of takes that were begun here
  #mayChange = true;

  /** send(recording): ask the server to record this page's stream, or to end that. */
  constructor(send) {
    this.#send = send;
    $("record").addEventListener("click", () => this.#send($("record").getAttribute("aria-pressed") !== "true"));
    $("takes").addEventListener("toggle", () => $("takes").open && this.#refresh());
    this.#refresh();
  }

  /** The server has begun or ended a recording of this stream. */
  changed({ state, take }) {
    if (take) this.#own.add(take);
    this.#show(state === "recording");
    this.#refresh();
  }

  streamEnded() {
    this.#show(false);
    this.#refresh();
  }

  #show(recording) {
    $("record").setAttribute("aria-pressed", String(recording));
    $("record").title = recording ? "End the recording" : "Record on the server";
  }

  async #refresh() {
    try {
      const takes = await this.#known();
      $("takes").hidden = !takes.length;
      $("takes-list").replaceChildren(...takes.map((take) => this.#item(take)));
      if (!takes.some(({ take }) => take === this.#playing)) this.#play(null);
      $("takes-error").textContent = "";
    } catch (error) {
      $("takes-error").textContent = error.message;
    }
  }

  /** All takes, or those of this page where only the operator is told of the others'. */
  async #known() {
    try {
      return await api.takes();
    } catch (error) {
      if (!(error instanceof ApiError && error.status === 403)) throw error;
      this.#mayChange = false;
      return Promise.all([...this.#own].map((id) => api.take(id)));
    }
  }

  #item(take) {
    const item = $("take-item").content.firstElementChild.cloneNode(true);
    const [name, running] = [take.name ?? new Date(take.started_at * 1000).toLocaleString(), take.state === "recording"];
    item.dataset.take = take.take;
    item.querySelector(".take-name").textContent = name;
    item.querySelector(".take-facts").textContent = facts(take);
    item.querySelector(".take-facts").title = take.error ?? "";
    const [play, download, remove] = [".take-play", ".take-download", ".take-delete"].map((c) => item.querySelector(c));
    for (const element of [play, download, remove]) {
      element.hidden = running;
      element.setAttribute("aria-label", `${element.textContent} ${name}`);
    }
    remove.hidden ||= !this.#mayChange;
    download.href = video(take.take);
    play.addEventListener("click", () => this.#play(take.take));
    remove.addEventListener("click", () => this.#delete(take.take));
    return item;
  }

  #play(take) {
    const player = $("take-player");
    if (take === this.#playing && take === null) return;
    this.#playing = take;
    player.hidden = take === null;
    if (take === null) player.removeAttribute("src");
    else player.src = video(take);
    player.load();
    if (take !== null) player.play().catch(() => {}); // the browser may want a click on its own button
  }

  async #delete(take) {
    try {
      await api.deleteTake(take);
    } catch (error) {
      $("takes-error").textContent = error.message;
      return;
    }
    await this.#refresh();
  }
}

const video = (take) => at(`/api/v1/takes/${encodeURIComponent(take)}/video`);

/** "0:12, 1.4 MB, 576 × 320", or what becomes of it. */
function facts({ state, duration_s, size_bytes, width, height }) {
  if (state === "recording") return "recording now";
  const [minutes, seconds] = [Math.floor(duration_s / 60), Math.round(duration_s % 60)];
  const length = `${minutes}:${String(seconds).padStart(2, "0")}`;
  return `${length}, ${(size_bytes / 1e6).toFixed(1)} MB, ${width} × ${height}${state === "cut" ? ", cut short" : ""}`;
}
