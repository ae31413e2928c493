// Recordings: the button that begins and ends one, and what the server has, to play, download and delete.

import { api, ApiError, at, problemText } from "./api.js";

const $ = (id) => document.getElementById(id);

export class Takes {
  #send;
  #stream;
  #afresh = false; // begin the recording with fresh caches
  #replaying = null; // label of what is replayed
  #playing = null; // id of the take in the player
  #own = new Set(); // ids of takes that were begun here
  #mayChange = true;

  /** send(recording): ask the server to record this page's stream, or to end that. stream: takes are replayed to it. */
  constructor(send, stream) {
    this.#send = send;
    this.#stream = stream;
    stream.addEventListener("show", ({ detail }) => detail.type === "replay_changed" && this.#follow(detail));
    stream.addEventListener("state", () => {
      for (const button of $("takes-list").querySelectorAll(".take-replay")) button.disabled = !stream.isLive;
    });
    $("record").addEventListener("click", () => {
      const begins = $("record").getAttribute("aria-pressed") !== "true";
      this.#afresh = begins && $("record-afresh").checked;
      this.#send(begins);
    });
    $("takes").addEventListener("toggle", () => $("takes").open && this.#refresh());
    this.#refresh();
  }

  /** The server has begun or ended a recording of this stream. */
  changed({ state, take }) {
    if (take) this.#own.add(take);
    this.#show(state === "recording");
    if (state === "recording" && this.#afresh) this.#stream.send({ reset_cache: true }, { now: true });
    this.#afresh = false;
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
    const parts = [".take-play", ".take-download", ".take-delete", ".take-data", ".take-replay"];
    const [play, download, remove, data, replay] = parts.map((c) => item.querySelector(c));
    const replays = this.#replaying === take.take;
    replay.textContent = replays ? "End replay" : "Replay";
    replay.disabled = !this.#stream.isLive;
    replay.addEventListener("click", () => this.#replay(replays ? null : take.take));
    data.href = at(`/api/v1/takes/${encodeURIComponent(take.take)}/data`);
    data.download = `${take.take}.json`;
    for (const element of [play, download, remove, data, replay]) {
      element.hidden = running;
      element.setAttribute("aria-label", `${element.textContent} ${name}`);
    }
    remove.hidden ||= !this.#mayChange;
    download.href = video(take.take);
    play.addEventListener("click", () => this.#play(take.take));
    remove.addEventListener("click", () => this.#delete(take.take));
    return item;
  }

  /** Set again what was set in a take, chunk by chunk: with the same seed it is the same film. */
  async #replay(take) {
    $("takes-error").textContent = "";
    const { streamId } = this.#stream;
    try {
      if (take === null) return await api.stopReplay(streamId);
      const { errors } = await api.replayTake(streamId, take);
      $("takes-error").textContent = errors.map(problemText).join("\n");
    } catch (error) {
      $("takes-error").textContent = error.message;
    }
  }

  #follow({ state, of }) {
    this.#replaying = state === "running" ? of : null;
    this.#refresh();
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
