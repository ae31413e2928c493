// The local video that goes to the server: opened for the settings, changed while it streams.

import { notify } from "../notices.js";
import { listCameras, openCamera, openFile, SourceError } from "../source.js";

const $ = (id) => document.getElementById(id);

/** Events: "lost" (the camera is gone), "change" (whether another one is being opened). */
export class Input extends EventTarget {
  #settings;
  #controls;
  #preview = $("preview");
  #isCamera = false; // what the track comes from
  track = null;
  isChanging = false; // another camera or file is being opened under a running stream

  constructor(settings, controls) {
    super();
    this.#settings = settings;
    this.#controls = controls;
    this.#preview.addEventListener("resize", () => {
      const { videoWidth: width, videoHeight: height } = this.#preview;
      $("preview-size").textContent = width ? `${width} × ${height}` : "";
    });
    navigator.mediaDevices?.addEventListener("devicechange", () => this.listCameras());
  }

  async listCameras() {
    this.#controls.setCameras(await listCameras().catch(() => []));
  }

  /** The track for the current settings, newly opened; null in text mode. Throws SourceError. */
  async open() {
    if (this.#controls.mode !== "video") {
      this.close();
      return null;
    }
    const track = await (this.#settings.source === "file" ? this.#openFile() : this.#openCamera());
    this.close();
    this.track = track;
    track.addEventListener("ended", () => track === this.track && this.#sayLost());
    this.#preview.srcObject = new MediaStream([track]);
    $("input-tile").hidden = false;
    await this.listCameras();
    return track;
  }

  /** The one before goes on until the file plays. */
  async #openFile() {
    const { file, size } = this.#controls;
    if (!file) throw new SourceError("No video file chosen", "Choose a file under Input, or switch to Camera.");
    const track = await openFile(file, size);
    this.#isCamera = false;
    return track;
  }

  async #openCamera() {
    if (this.#isCamera) this.close(); // many devices open one camera at a time
    const track = await openCamera(this.#settings.cameraId, this.#controls.size);
    this.#isCamera = true;
    return track;
  }

  /** Put another camera or file under a running stream, whose last picture stays meanwhile. Throws SourceError. */
  async change(stream) {
    this.#setChanging(true);
    try {
      await stream.replaceTrack(await this.open());
    } finally {
      this.#setChanging(false);
    }
  }

  close() {
    this.track?.stop();
    this.track = null;
    this.#preview.srcObject = null;
    $("input-tile").hidden = true;
  }

  #setChanging(changing) {
    this.isChanging = changing;
    this.dispatchEvent(new Event("change"));
  }

  #sayLost() {
    notify("source", {
      title: "The input stopped",
      text: "The camera was unplugged or its permission was withdrawn. The last picture stays.",
      actions: [{ label: "Open it again", run: () => this.dispatchEvent(new Event("lost")) }],
    });
  }
}
