// Model files of the pipelines: whether they are on the server, and the download with its progress.

import { api, Unreachable } from "./api.js";

const POLL_MS = 2_000;

/** The block of one pipeline. onDone: called when a download has finished. */
class ModelFiles {
  #entry;
  #onDone;
  #polling = false;
  #wasMissing = false;
  #askedNeeds = false;

  constructor(entry, onDone) {
    this.#entry = entry;
    this.#onDone = onDone;
    this.element = document.getElementById("model-files").content.firstElementChild.cloneNode(true);
    this.element.setAttribute("aria-label", `Model files of ${entry.name}`);
    this.#part("progress").setAttribute("aria-label", `Download of ${entry.name}`);
    this.#part("button").addEventListener("click", () => this.#download());
  }

  /** Reads the state, and follows a download that somebody else has started. */
  async refresh() {
    if (this.#polling) return;
    this.#polling = true;
    try {
      while (await this.#step()) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    } catch (error) {
      this.#showError(error.message);
    } finally {
      this.#polling = false;
    }
  }

  /** Whether to ask again: a download runs, or ran when the server stopped answering. */
  async #step() {
    try {
      return this.#show(await api.modelStatus(this.#entry.id));
    } catch (error) {
      if (!(error instanceof Unreachable) || this.#part("progress").hidden) throw error;
      this.#part(".models-detail").textContent = "The server does not answer; it is asked again.";
      return true;
    }
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }

  async #download() {
    this.#part("button").disabled = true;
    try {
      await api.downloadModels(this.#entry.id);
    } catch (error) {
      if (error.status !== 409) return this.#showError(error.message); // 409: it runs already, follow it
    }
    await this.refresh();
  }

  /** Whether a download runs. */
  #show({ downloaded, progress }) {
    const running = Boolean(progress?.is_downloading);
    this.#part("progress").hidden = !running;
    this.#part("button").hidden = downloaded || running;
    this.#part("button").disabled = false;
    this.#part("button").textContent = progress?.error ? "Try again" : "Download models";
    this.#part(".models-error").textContent = progress?.error ?? "";
    this.#part(".models-detail").textContent = running ? detail(progress) : "";
    this.#part(".models-state").textContent = running
      ? "Downloading the models"
      : downloaded
        ? "Models are downloaded."
        : "Models are not downloaded.";
    if (running) this.#part("progress").value = progress.total_percentage ?? 0;
    if (downloaded && this.#wasMissing) this.#onDone();
    this.#wasMissing = !downloaded;
    this.#showNeeds(downloaded);
    return running;
  }

  /** What a download brings, and what this machine has room for. Asked once, as long as it is not here. */
  async #showNeeds(downloaded) {
    const place = this.#part(".models-needs");
    if (downloaded) place.textContent = "";
    if (downloaded || this.#askedNeeds) return;
    this.#askedNeeds = true;
    try {
      place.textContent = needs(await api.preparation(this.#entry.id));
    } catch (error) {
      this.#askedNeeds = false;
      if (error instanceof Unreachable) setTimeout(() => this.refresh(), POLL_MS); // whose state says what is wrong
    }
  }

  #showError(text) {
    this.#part("progress").hidden = true;
    this.#part(".models-detail").textContent = "";
    this.#part(".models-error").textContent = text;
    this.#part("button").hidden = false;
    this.#part("button").disabled = false;
    this.#part("button").textContent = "Try again";
  }
}

function detail({ current_artifact: artifact, downloaded_mb: done, total_mb: total, total_percentage: share }) {
  const size = total ? `${Math.round(done)} of ${Math.round(total)} MB` : "";
  return [`${Math.floor(share ?? 0)} %`, size, artifact].filter(Boolean).join(", ");
}

function needs({ download, room }) {
  const size = download ? `${inUnits(download.missing_bytes)} to download.` : "How large the download is, the hub does not tell.";
  return [size, room?.text].filter(Boolean).join(" ");
}

function inUnits(bytes) {
  const [unit, name] = bytes < 1e9 ? [1e6, "MB"] : [1e9, "GB"];
  return `${(bytes / unit).toFixed(1)} ${name}`;
}

/** Whether there is something to download: also where a demonstration stands in for it. */
const hasReleasedWeights = (entry) => Boolean(entry.requires_models || entry.example_prompts?.length);

/** The blocks of all pipelines that have model files. */
export class Models extends EventTarget {
  #blocks = new Map();

  /** pipelines: of the schemas answer. Pipelines that are not available get theirs below their card. */
  setPipelines(pipelines) {
    for (const entry of Object.values(pipelines)) {
      if (!hasReleasedWeights(entry)) continue;
      if (!this.#blocks.has(entry.id)) {
        this.#blocks.set(entry.id, new ModelFiles(entry, () => this.dispatchEvent(new Event("downloaded"))));
      }
      if (entry.available !== false) continue;
      const block = this.#blocks.get(entry.id);
      document.querySelector(`#unavailable-list input[value="${entry.id}"]`).closest(".card").after(block.element);
      block.refresh();
    }
  }

  /** Shows the block of the chosen pipeline; entry: null for none. */
  choose(entry) {
    const place = document.getElementById("models");
    const block = entry && hasReleasedWeights(entry) ? this.#blocks.get(entry.id) : null;
    if (place.firstElementChild === (block?.element ?? null)) return;
    place.replaceChildren(...(block ? [block.element] : []));
    block?.refresh();
  }
}
