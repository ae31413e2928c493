// Measures a running stream: what the screen shows, and what the browser's WebRTC statistics say.

import { DelayEstimator, Thumbnailer } from "./delay.js";

const MIN_SAMPLE_MS = 30; // of pictures for the delay
const FULL_LOSS_SHARE = 0.05; // of packets; a radio link may lose some without being full
const PIECES_BITRATE = 100_000; // bit/s that should have given a picture

export class Meter {
  #output;
  #preview;
  #delay = new DelayEstimator();
  #thumbnails = new Thumbnailer();
  #presented = null; // {frames, time} at the last reading
  #latest = null;
  #previous = null; // statistics at the last reading
  #sampled = { input: -Infinity, output: -Infinity };

  /** Numbers of the last reading; null before the first one and for what is not known. */
  stats = null;

  /**
   * output, preview: video elements. onFrame: called for every picture that the output shows.
   */
  constructor(output, preview, onFrame) {
    this.#output = output;
    this.#preview = preview;
    eachFrame(output, (now, frame) => {
      this.#latest = { frames: frame.presentedFrames, time: now };
      onFrame();
      this.#sample("output", frame.expectedDisplayTime ?? now);
    });
    // captureTime: when the camera took the picture; browsers tell for cameras, not for files.
    eachFrame(preview, (now, frame) => this.#sample("input", frame.captureTime ?? now));
  }

  reset() {
    this.stats = this.#previous = this.#presented = this.#latest = null;
    this.#delay.clear();
  }

  #sample(side, time) {
    if (!this.#preview.srcObject || document.hidden || time - this.#sampled[side] < MIN_SAMPLE_MS) return;
    this.#sampled[side] = time;
    if (side === "input") this.#delay.addInput(time, this.#thumbnails.take(this.#preview));
    else this.#delay.addOutput(time, this.#thumbnails.take(this.#output));
  }

  /** Takes a reading; call about once per second while streaming. peer: RTCPeerConnection. */
  async read(peer, { moving }) {
    const report = await peer.getStats();
    const reading = digest(report);
    const before = this.#previous ?? reading;
    this.#previous = reading;
    const seconds = (reading.time - before.time) / 1000;
    const perSecond = (name) => (seconds > 0 ? (reading[name] - before[name]) / seconds : null);
    const emitted = reading.jitterEmitted - before.jitterEmitted;
    this.stats = {
      fps: this.#screenRate(),
      decodedFps: perSecond("framesDecoded"),
      delayMs: moving ? this.#delay.estimate() : null,
      rttMs: reading.rttMs,
      jitterBufferMs: emitted > 0 ? ((reading.jitterDelay - before.jitterDelay) / emitted) * 1000 : null,
      droppedFrames: reading.framesDropped,
      freezes: reading.freezes,
      packetsLost: reading.packetsLost,
      lossShare: lossShare(reading, before),
      bitrate: seconds > 0 ? perSecond("bytesReceived") * 8 : null,
      sentFps: perSecond("framesSent"),
      sentBitrate: seconds > 0 ? perSecond("bytesSent") * 8 : null,
      width: this.#output.videoWidth,
      height: this.#output.videoHeight,
      codec: reading.codec,
    };
    return this.stats;
  }

  /** Pictures per second that were handed to the screen since the last reading. */
  #screenRate() {
    const [now, before] = [this.#latest, this.#presented];
    this.#presented = now;
    if (!now || !before || now.frames < before.frames) return null;
    return now.time === before.time ? 0 : ((now.frames - before.frames) * 1000) / (now.time - before.time);
  }
}

/** Share of the video's packets that were lost between two readings; 0 when there were none. */
function lossShare(now, before) {
  const lost = now.packetsLost - before.packetsLost;
  const all = lost + now.packetsReceived - before.packetsReceived;
  return lost > 0 && all > 0 ? lost / all : 0;
}

/** Whether a reading shows that the network, not the server, holds the picture up. */
export function isNetworkFull(stats) {
  const arrivesInPieces = stats.bitrate > PIECES_BITRATE && stats.decodedFps === 0;
  return stats.lossShare > FULL_LOSS_SHARE || arrivesInPieces;
}

function eachFrame(video, handle) {
  if (!video.requestVideoFrameCallback) return; // an old browser: the stream works, its picture is not measured
  const next = (now, frame) => {
    handle(now, frame);
    video.requestVideoFrameCallback(next);
  };
  video.requestVideoFrameCallback(next);
}

/** The few numbers that are of interest, out of a statistics report. */
function digest(report) {
  const all = [...report.values()];
  const of = (type) => all.find((item) => item.type === type && (item.kind ?? "video") === "video") ?? {};
  const inbound = of("inbound-rtp");
  const outbound = of("outbound-rtp");
  const transport = of("transport");
  const pair =
    report.get(transport.selectedCandidatePairId) ??
    all.find((item) => item.type === "candidate-pair" && item.nominated && item.state === "succeeded");
  const codec = report.get(inbound.codecId)?.mimeType?.replace("video/", "") ?? null;
  return {
    time: inbound.timestamp ?? performance.timeOrigin + performance.now(),
    framesDecoded: inbound.framesDecoded ?? 0,
    framesDropped: inbound.framesDropped ?? 0,
    freezes: inbound.freezeCount ?? 0,
    packetsLost: inbound.packetsLost ?? 0,
    packetsReceived: inbound.packetsReceived ?? 0,
    bytesReceived: inbound.bytesReceived ?? 0,
    jitterDelay: inbound.jitterBufferDelay ?? 0,
    jitterEmitted: inbound.jitterBufferEmittedCount ?? 0,
    framesSent: outbound.framesSent ?? 0,
    bytesSent: outbound.bytesSent ?? 0,
    rttMs: pair?.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000,
    codec,
  };
}
