// The life of a stream, without any page element: load a pipeline, connect, stay connected, stop.

import { api, ApiError, Unreachable } from "./api.js";
import { Connection } from "./connection.js";

const POLL_MS = 400;
const CONNECT_TIMEOUT_MS = 20_000;
const DISCONNECTED_GRACE_MS = 4_000; // short gaps heal by themselves
const RETRY_DELAYS_S = [1, 2, 3]; // then the last one again and again
const AT_ONCE_S = 0.5; // spread over this, for a gateway that is gone may have had many viewers
const GIVE_UP_MS = 600_000;
const TRIES_TO_CONNECT = 6;
const FULL = [429, 503]; // no place; or too many at once from one address, as when all viewers of an office come back
const SLOW_ANSWER_MS = 2_500;
const GRACE_S = 15; // a stream waits so long for a page that is loaded again
const OF_SHOW = new Set(["look_recalled", "cues_changed", "replay_changed", "tempo_update", "change_scheduled", "change_applied"]);
const OF_PEOPLE = new Set(["viewers_changed", "driver_changed", "control_requested"]);

/** Something that ends or prevents a stream. `title` and the message are for the user. */
export class StreamError extends Error {
  constructor(title, text, kind) {
    super(text);
    this.name = "StreamError";
    this.title = title;
    this.kind = kind;
  }
}

/**
 * States: idle, loading, connecting, streaming, paused, waiting (server full), reconnecting, error;
 * replacing (someone else loads another pipeline under the stream), unsuitable (that one needs an input video).
 *
 * Events (detail):
 *   "state" (name), "stage" (text of a load's current step), "loaded" (status answer), "media" (MediaStream),
 *   "interrupted" (whether a live stream hears nothing from the server right now),
 *   "retry" ({inS, reason}), "problem" (Error), "refused" (list of problems), "warnings" (list of sentences),
 *   "show" (a message about looks, cues, replays and tempo), "people" (a message about who watches and who drives), "changed" (parameters that someone else changed), "pipeline" (another pipeline is loading, or loaded).
 *
 * A plan is {pipelineId, mode, loadParams, track (or null), parameters: () => initialParameters}.
 */
export class Stream extends EventTarget {
  state = "idle";
  interrupted = false;
  #plan = null;
  #run = null; // AbortController of the current attempt
  #connection = null;
  #graceTimer = null;
  #wake = () => {};
  #before = "streaming"; // what to go on with when the other pipeline shows its first picture
  #successor = null; // message about the pipeline that took the place of the stream's
  #unloaded = false; // by someone
  #asking = false; // for the session
  #paused = false; // a stream that this page has joined
  #cameFrom = null; // id of the stream that this page was connected to last
  #returns = false; // to that stream, because it goes on for a while after a page has left

  get sessionId() {
    return this.#connection?.sessionId ?? null;
  }

  /** What the API calls the stream; another one than the session's where the page has come back to its stream. */
  get streamId() {
    return this.#connection?.streamId ?? null;
  }

  get peer() {
    return this.#connection?.peer ?? null;
  }

  /** What the stream runs on, or starts from. */
  get plan() {
    return this.#plan;
  }

  get isLive() {
    return this.state === "streaming" || this.state === "paused";
  }

  /** Whether there is a connection over which another pipeline can be shown. */
  get isConnected() {
    return this.isLive || this.state === "replacing" || this.state === "unsuitable";
  }

  get isBusy() {
    return !["idle", "error"].includes(this.state);
  }

  async start(plan) {
    this.#plan = plan;
    this.#cameFrom = null;
    await this.#attempt(async (signal) => {
      await this.#load(signal);
      try {
        await this.#connectWhenFree(signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof Unreachable)) throw error;
        this.#reconnect();
      }
    });
  }

  /** Come back to a stream that goes on without this page; where it has just ended, nothing is begun. */
  async comeBack(plan, streamId) {
    this.#plan = plan;
    this.#cameFrom = streamId;
    this.#returns = true;
    await this.#attempt(async (signal) => {
      try {
        await this.#connectWhenFree(signal);
      } catch (error) {
        if (signal.aborted || error.kind !== "gone") throw error;
        this.stop();
      }
    });
    this.#returns = false;
  }

  /** Load without streaming, or put another pipeline under a running stream. */
  async load(plan) {
    const wasLive = this.isConnected;
    const before = this.#plan;
    this.#plan = plan;
    await this.#attempt(async (signal) => {
      try {
        await this.#load(signal);
      } catch (error) {
        // A request that the server refused leaves the running stream as it was.
        if (!wasLive || error.kind !== "refused") throw error;
        this.#plan = before;
        this.#set("streaming");
        this.#emit("problem", error);
        return;
      }
      if (!wasLive) {
        this.#set("idle");
        return;
      }
      await this.#connection.replaceTrack(plan.track);
      this.#connection.send({ ...plan.parameters(), paused: false, reset_cache: true }, { now: true });
      this.#set("streaming");
    });
  }

  /** The first picture is on the screen. */
  playing() {
    if (this.state === "connecting") this.#set(this.#paused ? "paused" : "streaming");
    if (this.state === "replacing" && this.#successor) this.#set(this.#before);
  }

  /** Someone loads a pipeline under this stream. */
  replacing(message) {
    if (!this.isLive) return;
    this.#before = this.state;
    this.#successor = null;
    this.#set("replacing");
    this.#emit("pipeline", message);
  }

  /** The same pipeline is there again. */
  goOn() {
    if (this.state === "replacing") this.#set(this.#before);
  }

  /** A pipeline that was loaded by someone else carries this stream from now on. */
  replaced(message) {
    const isOwn = this.isLive && message.pipeline_id === this.#plan.pipelineId; // it may come after the status
    if (!this.isConnected || isOwn) return; // this page's own load
    if (this.isLive) this.#before = this.state;
    const { pipelineId, mode, track } = this.#plan;
    this.#plan.pipelineId = message.pipeline_id;
    if (message.input_mode === "video" && !track) {
      this.#set("unsuitable");
    } else {
      this.#successor = message;
      this.#plan.mode = message.input_mode ?? mode;
      this.#set("replacing");
      this.#emit("stage", "Waiting for the first picture");
    }
    this.#emit("pipeline", { ...message, before: { pipelineId, mode } });
  }

  pause(paused) {
    if (!this.isLive) return;
    this.#connection.send({ paused }, { now: true });
    this.#set(paused ? "paused" : "streaming");
  }

  /** End the current wait before another try. */
  retryNow() {
    this.#wake();
  }

  /** Change parameters while streaming; ignored otherwise, start() sends the whole state. */
  send(update, options) {
    if (this.isLive || this.state === "connecting") this.#connection?.send(update, options);
  }

  async replaceTrack(track) {
    if (this.#plan) this.#plan.track = track;
    await this.#connection?.replaceTrack(track);
  }

  /** Ends the stream, and a load that is under way for it. */
  stop() {
    const wasLoading = this.state === "loading" && !this.#connection;
    this.#run?.abort();
    this.#disconnect();
    this.#set("idle");
    if (wasLoading) api.unload().catch(() => {});
  }

  /** The page goes away, perhaps to come back: a reload should find the stream going on, and a load done. */
  leave() {
    this.#run?.abort();
    this.#connection?.close({ graceS: GRACE_S });
    this.#connection = null;
    this.#set("idle");
  }

  #interrupt(interrupted) {
    if (interrupted === this.interrupted) return;
    this.interrupted = interrupted;
    this.#emit("interrupted", interrupted);
  }

  #set(state) {
    if (state === this.state) return;
    this.state = state;
    this.#emit("state", state);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Runs `steps` unless something newer was begun; a failure ends the stream. */
  async #attempt(steps) {
    this.#run?.abort();
    const run = (this.#run = new AbortController());
    try {
      await steps(run.signal);
    } catch (error) {
      if (run.signal.aborted) return;
      this.#fail(error);
    }
  }

  #fail(error) {
    this.#run?.abort();
    this.#disconnect();
    this.#set("error");
    this.#emit("problem", error);
  }

  #disconnect() {
    clearTimeout(this.#graceTimer);
    this.#graceTimer = null;
    this.#interrupt(false);
    this.#connection?.close();
    this.#connection = null;
  }

  async #load(signal) {
    const { pipelineId, loadParams } = this.#plan;
    this.#set("loading");
    this.#emit("stage", "Asking the server");
    let answer;
    try {
      answer = await this.#answer(api.load(pipelineId, loadParams, signal));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 403 || !(await this.#isHeld(pipelineId, signal))) {
        throw new StreamError("The pipeline cannot be loaded", error.message, "refused");
      }
      answer = { warnings: [`It is used as it is here, with its operator's settings. ${error.message}`] };
    }
    if (answer.warnings?.length) this.#emit("warnings", answer.warnings);
    const status = await this.#untilLoaded(pipelineId, signal);
    this.#emit("loaded", status);
  }

  /** Whether a locked server has this pipeline, or is about to. */
  async #isHeld(pipelineId, signal) {
    const status = await api.status(signal);
    return status.locked && (status.pipeline_id ?? status.loading_pipeline_id) === pipelineId;
  }

  /** The answer to a request; when it takes long, the page says that nothing has come yet. */
  async #answer(request) {
    const timer = setTimeout(() => this.#emit("stage", "No answer from the server yet"), SLOW_ANSWER_MS);
    try {
      return await request;
    } finally {
      clearTimeout(timer);
    }
  }

  /** Asks the server for its status until it answers. The state says so, also while a question is under way. */
  async #untilReachable(signal, reason, { atOnce = false } = {}) {
    const since = performance.now();
    const delays = [...(atOnce ? [AT_ONCE_S * Math.random()] : []), ...RETRY_DELAYS_S];
    for (let tries = 0; performance.now() - since < GIVE_UP_MS; tries += 1) {
      const inS = delays[Math.min(tries, delays.length - 1)];
      this.#set("reconnecting");
      this.#emit("retry", { inS, reason });
      await this.#wait(inS, signal);
      this.#emit("stage", reason);
      try {
        return await api.status(signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof Unreachable)) throw error;
      }
    }
    throw new StreamError(
      "Connection lost",
      "The server could not be reached again. Check the network and that the server runs, then reconnect.",
      "lost",
    );
  }

  async #untilLoaded(pipelineId, signal) {
    for (;; await sleep(POLL_MS, signal)) {
      let status;
      let wasLost = false;
      try {
        status = await api.status(signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof Unreachable)) throw error;
        status = await this.#untilReachable(signal, "The server does not answer.");
        wasLost = true;
        this.#set("loading");
      }
      if (status.locked && status.status === "not_loaded") continue; // it loads its pipeline by itself
      // A server that was started again knows nothing of this load.
      if (wasLost && status.status === "not_loaded") {
        await api.load(pipelineId, this.#plan.loadParams, signal);
        continue;
      }
      const subject = status.pipeline_id ?? status.loading_pipeline_id ?? pipelineId;
      if (status.status === "error") throw new StreamError("Loading failed", status.error, "load");
      if (status.status === "not_loaded") {
        throw new StreamError("Loading was cancelled", "Someone unloaded the pipeline. Start again to load it.", "load");
      }
      if (subject !== pipelineId) {
        throw new StreamError(
          "Another pipeline was chosen",
          `Someone else is loading ${subject} on this server, and it holds one pipeline at a time.`,
          "load",
        );
      }
      if (status.status === "loaded") return status;
      this.#emit("stage", status.loading_stage ?? "Loading");
    }
  }

  /** Connects; when all places on the server are taken, waits for one. */
  async #connectWhenFree(signal) {
    for (;;) {
      try {
        return await this.#connect(signal);
      } catch (error) {
        if (signal.aborted || !(error instanceof ApiError)) throw error;
        if (!FULL.includes(error.status)) {
          const kind = this.#returns && error.status === 404 ? "gone" : "offer";
          throw new StreamError("The server refused the stream", error.message, kind);
        }
        this.#disconnect();
        this.#set("waiting");
        const inS = error.retryAfterS ?? 5;
        this.#emit("retry", { inS, reason: error.message });
        await this.#wait(inS, signal);
      }
    }
  }

  #wait(seconds, signal) {
    return Promise.race([sleep(seconds * 1000, signal), new Promise((resolve) => (this.#wake = resolve))]);
  }

  async #connect(signal) {
    this.#disconnect();
    this.#unloaded = this.#paused = false;
    this.#set("connecting");
    this.#emit("stage", "Connecting");
    const connection = (this.#connection = new Connection());
    const connected = outcome(connection, signal);
    connection.addEventListener("media", ({ detail }) => this.#emit("media", detail));
    connection.addEventListener("message", ({ detail }) => this.#receive(detail));
    const opened = this.#answer(this.#open(connection, signal));
    try {
      await Promise.all([opened, connected]);
    } catch (error) {
      // A network that is gone looks like a firewall to WebRTC: ask before a firewall is blamed.
      if (!signal.aborted && error.kind === "connect") await api.status(signal);
      throw error;
    }
    this.#cameFrom = connection.streamId;
    this.#emit("stage", "Waiting for the first picture");
    connection.addEventListener("state", ({ detail }) => this.#watch(detail));
    connection.addEventListener("gone", () => this.#reconnect());
  }

  /** Offers a new stream, or to go on with the one before where it plays on. */
  async #open(connection, signal) {
    const { track } = this.#plan;
    const join = await this.#joinable();
    if (!join) return connection.open(track, this.#plan.parameters(), signal, { grace_s: GRACE_S });
    const part = { role: "controller", label: "the page", grace_s: GRACE_S };
    return connection.open(track, null, signal, { ...join, ...part });
  }

  async #joinable() {
    const streamId = this.#cameFrom;
    if (streamId === null) return null;
    if (!this.#returns) {
      const { state } = await api.playing(streamId).catch(() => ({ state: "stopped" }));
      if (state !== "playing") return null;
    }
    const { source } = await api.stream(streamId);
    return { streamId, publish: this.#plan.track !== null || source.kind === "none" };
  }

  #receive(message) {
    if (OF_SHOW.has(message.type)) this.#emit("show", message);
    if (message.type === "stream_state") {
      this.#emit("people", { type: "driver_changed", driver: message.driver });
      this.#adopt(message.parameters);
    }
    if (OF_PEOPLE.has(message.type)) this.#emit("people", message);
    if (message.type === "parameter_error") this.#emit("refused", message.errors ?? []);
    if (message.type === "recording_changed") this.#emit("recording", message);
    if (message.type === "input_resumed") this.#emit("resumed");
    if (message.type === "pipeline_changed") this.#follow(message);
    if (message.type === "parameters_updated") this.#adopt(message.parameters ?? {});
    if (message.type !== "stream_stopped") return;
    const text = message.error_message;
    if (message.reconnect) return this.#reconnect("The server ends; another one takes over.");
    this.#fail(
      text
        ? new StreamError("The stream stopped", text, "stopped")
        : this.#unloaded
          ? new StreamError("The pipeline was unloaded", "Someone else unloaded it on this server, which ends its streams.", "stopped")
          : new StreamError("The server ended the stream", "It was shut down, or its pipeline was unloaded.", "stopped"),
    );
  }

  #follow(message) {
    this.#unloaded = message.status === "not_loaded";
    if (message.status === "loading") this.replacing(message);
    if (message.status === "loaded") this.replaced(message);
  }

  /** A script changed parameters of this stream over HTTP. */
  #adopt(parameters) {
    if ("paused" in parameters) this.#paused = Boolean(parameters.paused);
    if (this.isLive && "paused" in parameters) this.#set(this.#paused ? "paused" : "streaming");
    this.#emit("changed", parameters);
  }

  #watch(state) {
    clearTimeout(this.#graceTimer);
    this.#interrupt(state === "disconnected");
    if (state === "failed" || state === "closed") this.#reconnect();
    if (state === "disconnected") {
      this.lookForSession();
      this.#graceTimer = setTimeout(() => this.#reconnect(), DISCONNECTED_GRACE_MS);
    }
  }

  /**
   * Asks whether the server still has the session: where another one took its place, waiting is of no use.
   * To be called when pictures stay away; WebRTC takes longer to notice.
   */
  async lookForSession() {
    const id = this.sessionId;
    if (!id || !this.isLive || this.#asking) return;
    this.#asking = true;
    try {
      await api.session(id);
    } catch (error) {
      const isGone = error instanceof ApiError && error.status === 404;
      if (isGone && this.isLive && id === this.sessionId) this.#reconnect();
    } finally {
      this.#asking = false;
    }
  }

  #reconnect(reason = "The connection to the server was lost.") {
    this.#attempt(async (signal) => {
      this.#disconnect();
      for (let tries = 1; ; tries += 1) {
        await this.#untilReachable(signal, reason, { atOnce: tries === 1 });
        try {
          await this.#load(signal);
          await this.#connectWhenFree(signal);
          return;
        } catch (error) {
          this.#disconnect();
          const again = error instanceof Unreachable || (error.kind === "connect" && tries < TRIES_TO_CONNECT);
          if (signal.aborted || !again) throw error;
        }
      }
    });
  }
}

/** Resolves when the connection is up; rejects when it cannot be made. */
function outcome(connection, signal) {
  return new Promise((resolve, reject) => {
    const blocked = new StreamError(
      "No way through for video",
      "The server answered, but video cannot reach it or come back. A firewall may block UDP between this browser " +
        "and the server: use the same network, open UDP, or configure a TURN server (see the README).",
      "connect",
    );
    const timer = setTimeout(() => reject(blocked), CONNECT_TIMEOUT_MS);
    signal.addEventListener("abort", () => reject(signal.reason));
    connection.addEventListener("gone", () => reject(blocked));
    connection.addEventListener("state", ({ detail }) => {
      if (detail === "connected") resolve();
      else if (detail === "failed") reject(blocked);
      else return;
      clearTimeout(timer);
    });
  });
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
