// One WebRTC session with the server: peer connection, trickled candidates, the "parameters" data channel.

import { api, ApiError } from "./api.js";

const DEBOUNCE_MS = 120;

/**
 * Events: "media" (detail: MediaStream), "state" (detail: RTCPeerConnectionState), "message" (detail: object from the
 * server), "gone" (the server does not know the session any more).
 */
export class Connection extends EventTarget {
  #peer = null;
  #channel = null;
  #sender = null;
  #candidates = []; // not yet sent
  #sending = false;
  #update = {}; // parameters not yet sent; the last value of a name wins
  #timer = null;
  #closed = false;

  /** Both are set when the server has accepted the offer; they differ where somebody else's stream was joined. */
  sessionId = null;
  streamId = null;

  get peer() {
    return this.#peer;
  }

  /**
   * track: input video or null. initialParameters: see fields.js. join: see api.js; to see a stream that is there.
   * Resolves when the answer is applied; media follows with the "media" event.
   */
  async open(track, initialParameters, signal, join) {
    const configuration = await fetchConfiguration(signal, join?.streamId);
    signal?.throwIfAborted();
    this.#peer = new RTCPeerConnection(configuration);
    this.#listen();
    this.#channel = this.#peer.createDataChannel("parameters", { ordered: true });
    this.#channel.onopen = () => this.#flush();
    this.#channel.onmessage = ({ data }) => this.#receive(data);
    // sendrecv also without a track: a later switch to video needs no new negotiation.
    const direction = join?.streamId && !join.publish ? "recvonly" : "sendrecv";
    this.#sender = this.#peer.addTransceiver(track ?? "video", { direction }).sender;
    await this.#peer.setLocalDescription();
    const answer = await api.offer(this.#peer.localDescription, initialParameters, signal, join);
    this.sessionId = answer.sessionId;
    this.streamId = answer.streamId ?? join?.streamId ?? answer.sessionId;
    if (this.#closed) {
      this.#release();
      return;
    }
    this.#sendCandidates();
    await this.#peer.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
  }

  /** Use another input track, or none, without a new negotiation. */
  async replaceTrack(track) {
    await this.#sender?.replaceTrack(track);
  }

  /** Change parameters. Collected for a moment, so that a moved slider does not flood the server. */
  send(update, { now = false } = {}) {
    // As on the server: prompts without a transition end a pending transition.
    if ("prompts" in update && !("transition" in update)) delete this.#update.transition;
    Object.assign(this.#update, update);
    if (now) this.#flush();
    else this.#timer ??= setTimeout(() => this.#flush(), DEBOUNCE_MS);
  }

  /** Ends the session here and on the server. graceS: how long the stream is to wait for this page. */
  close({ graceS = 0 } = {}) {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#release(graceS);
    this.#peer?.close();
  }

  #release(graceS = 0) {
    if (this.sessionId) api.closeSession(this.sessionId, graceS).catch(() => {}); // the server also notices by itself
  }

  #emit(type, detail) {
    if (!this.#closed) this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #listen() {
    const peer = this.#peer;
    peer.ontrack = ({ track, streams }) => this.#emit("media", streams[0] ?? new MediaStream([track]));
    peer.onconnectionstatechange = () => this.#emit("state", peer.connectionState);
    peer.onicecandidate = ({ candidate }) => {
      // An empty candidate says that there will be no more; the server can then give up early.
      this.#candidates.push(candidate?.toJSON() ?? { candidate: "", sdpMid: "0", sdpMLineIndex: 0 });
      this.#sendCandidates();
    };
  }

  /** One request at a time, each with all candidates found so far. */
  async #sendCandidates() {
    if (this.#sending || !this.sessionId) return;
    this.#sending = true;
    try {
      while (this.#candidates.length && !this.#closed) {
        const batch = this.#candidates.splice(0).map(({ candidate, sdpMid, sdpMLineIndex }) => ({
          candidate,
          sdpMid,
          sdpMLineIndex,
        }));
        await api.addCandidates(this.sessionId, batch);
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) this.#emit("gone");
      else console.warn("Candidates were not accepted:", error.message); // others may still connect
    } finally {
      this.#sending = false;
    }
  }

  #flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (this.#channel?.readyState !== "open" || !Object.keys(this.#update).length) return;
    this.#channel.send(JSON.stringify(this.#update));
    this.#update = {};
  }

  #receive(data) {
    try {
      this.#emit("message", JSON.parse(data));
    } catch {
      console.warn("Not a JSON message:", data);
    }
  }
}

async function fetchConfiguration(signal, streamId) {
  try {
    const { iceServers, iceTransportPolicy } = await api.iceServers(signal, streamId);
    // null is not a valid user name for RTCPeerConnection
    const complete = ([, value]) => value !== null;
    return {
      iceServers: iceServers.map((server) => Object.fromEntries(Object.entries(server).filter(complete))),
      iceTransportPolicy,
    };
  } catch (error) {
    if (signal?.aborted) throw error;
    return {}; // enough on a local network
  }
}
