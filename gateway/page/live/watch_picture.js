// Looks after the picture of a running stream: its numbers, and why no new one comes.

import { api } from "../api.js";
import { isNetworkFull, Meter } from "../meter.js";
import { dismiss, notify } from "../notices.js";
import { showNumbers, showServerNumbers } from "../view.js";

const READING_MS = 1_000;
const NO_PICTURE_MS = 12_000;
const SESSION_ASKED_MS = 1_000; // without a picture, and from one question to the next
const NETWORK_WELL_MS = 10_000; // without a sign of a full network
const FULL_READINGS = 2; // signs of a full network before it is said

export class PictureWatch {
  #stream;
  #input;
  #server;
  #lastFrameAt = 0;
  #lastFullAt = -Infinity; // when a reading showed that the network is full
  #fullReadings = 0;
  #askedAt = -Infinity;
  meter;

  constructor(stream, input, server, { output, preview }) {
    this.#stream = stream;
    this.#input = input;
    this.#server = server;
    this.meter = new Meter(output, preview, () => {
      this.#lastFrameAt = performance.now();
      dismiss("no-picture");
      stream.playing();
    });
    setInterval(() => this.#read(), READING_MS);
    // Of its own: what the other readings ask may wait for a server that is gone.
    setInterval(() => this.#lookForSession(), SESSION_ASKED_MS / 4);
  }

  /** A new picture is to be expected from now on. */
  begin() {
    this.#lastFrameAt = performance.now();
  }

  reset() {
    this.meter.reset();
    showNumbers(null);
    showServerNumbers(null);
  }

  async #read() {
    const stream = this.#stream;
    if (!stream.isLive || !stream.peer) return;
    showNumbers(await this.meter.read(stream.peer, { moving: this.#input.track !== null && stream.state === "streaming" }));
    if (document.getElementById("details").open) {
      showServerNumbers(await serverNumbers(stream.sessionId), stream.sessionId, this.meter.stats);
    }
    if (!document.hidden && performance.now() - this.#lastFrameAt > READING_MS) await this.#lookForReload();
    if (stream.isLive) this.#judge();
  }

  /** Says when the picture is held up, and by what. */
  #judge() {
    const now = performance.now();
    if (isNetworkFull(this.meter.stats)) {
      this.#lastFullAt = now;
      this.#fullReadings += 1;
    } else if (now - this.#lastFullAt > NETWORK_WELL_MS) {
      this.#fullReadings = 0;
      dismiss("network");
    }
    const isNetwork = now - this.#lastFullAt < NETWORK_WELL_MS;
    const isStill = !document.hidden && now - this.#lastFrameAt > NO_PICTURE_MS;
    if (isNetwork && (isStill || this.#fullReadings === FULL_READINGS)) sayNetworkFull(isStill);
    else if (isStill) sayNoPicture();
    if (isStill) this.#lastFrameAt = Infinity; // once
  }

  #lookForSession() {
    const now = performance.now();
    if (this.#stream.state !== "streaming" || now - Math.max(this.#lastFrameAt, this.#askedAt) < SESSION_ASKED_MS) return;
    this.#askedAt = now;
    this.#stream.lookForSession();
  }

  /** The stream's own pipeline is loaded again, in another size for example: the server sends no message then. */
  async #lookForReload() {
    const stream = this.#stream;
    const now = await api.status().catch(() => null);
    if (stream.state !== "streaming" || now?.loading_pipeline_id !== stream.plan.pipelineId) return;
    stream.replacing({ status: "loading", pipeline_id: now.loading_pipeline_id });
    while (stream.state === "replacing") {
      await new Promise((resolve) => setTimeout(resolve, READING_MS));
      const status = await api.status().catch(() => null);
      if (status?.status !== "loaded" || status.pipeline_id !== stream.plan?.pipelineId) continue;
      dismiss("pipeline");
      this.#server.loaded = status;
      stream.goOn();
    }
  }
}

function sayNetworkFull(isStill) {
  dismiss("no-picture");
  notify("network", {
    level: isStill ? "error" : "info",
    title: "The network is too slow",
    text:
      "Parts of the video get lost between the server and this browser. The picture gets coarser until it fits; " +
      "a cable, a better radio signal or a smaller picture helps.",
  });
}

function sayNoPicture() {
  notify("no-picture", {
    title: "No new picture",
    text: "The connection is up, but no picture has arrived for a while. The server may be overloaded; its log says more.",
  });
}

/** Of all streams, or, where only the operator is told of those, of this one; null when nothing answers. */
async function serverNumbers(id) {
  const own = async () => ({ sessions: { [id]: await api.session(id) } });
  return api.metrics().catch(own).catch(() => null);
}
