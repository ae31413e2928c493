// What the server holds and offers, as this page knows it.

import { api, Unreachable } from "../api.js";
import { dismiss, notify } from "../notices.js";

const IDLE_POLL_MS = 4_000;
const READING_MS = 1_000;

/** Events: "change". */
export class Server extends EventTarget {
  #stream;
  #controls;
  #models;
  online = null; // null: not known yet
  loaded = null; // the status answer, when a pipeline is loaded
  loading = null; // the same, while the server loads one by itself or for someone else
  failure = null; // why the last load failed
  locked = false; // whether only operators may load pipelines

  constructor(stream, controls, models) {
    super();
    this.#stream = stream;
    this.#controls = controls;
    this.#models = models;
    stream.addEventListener("loaded", ({ detail }) => {
      this.loaded = detail;
      this.loading = this.failure = null;
      this.#tell();
    });
  }

  async refresh() {
    try {
      const status = await api.status();
      this.loaded = status.status === "loaded" ? status : null;
      this.loading = status.status === "loading" ? status : null;
      this.failure = status.error ?? null;
      this.locked = status.locked;
      const held = status.pipeline_id ?? status.loading_pipeline_id;
      if (!this.online) {
        await this.readPipelines(held);
        if (this.locked && held) this.#controls.choose(held);
      }
      this.online = true;
      dismiss("offline");
    } catch (error) {
      if (this.online !== false && !this.#stream.isBusy) this.#sayGone(error);
      this.online = false;
    }
    this.#tell();
  }

  /** preferred: the pipeline to choose when the user has not chosen one yet, or null. */
  async readPipelines(preferred = null) {
    const [pipelines, hardware] = await Promise.all([api.schemas(), api.hardware().catch(() => null)]);
    this.#controls.setPipelines(pipelines, hardware?.vram_gb ?? null, preferred);
    this.#models.setPipelines(pipelines);
  }

  /** Asks again and again, while nothing else tells. mayAsk(): whether now is a time for it. onStage: of a load. */
  async watch(mayAsk, onStage) {
    for (;;) {
      const waits = this.#stream.state === "replacing";
      await new Promise((resolve) => setTimeout(resolve, this.loading || waits ? READING_MS : IDLE_POLL_MS));
      if (mayAsk() && !document.hidden) await this.refresh();
      if (this.#stream.state === "replacing" && this.loading) onStage(this.loading.loading_stage ?? "Loading");
    }
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  #sayGone(error) {
    const text =
      error instanceof Unreachable
        ? `Nothing answers at ${location.origin}. Check that wanstream runs there and that the network is up. This page keeps looking for it.`
        : error.message;
    notify("offline", { title: "Server unreachable", text });
  }
}
