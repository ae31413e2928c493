// The clean feed: one stream without anything around it. ?stream=ID, &fit=contain|cover|fill, &scale=plain|smooth|pixels.
// One click: full screen. Keys: f freezes, b blacks out, m changes the fit, u the upscaling.

import { ApiError } from "../api.js";
import { Connection } from "../connection.js";
import { el } from "./dom.js";
import { HeldPicture, OutputState } from "./output.js";
import { Upscaler } from "./upscale.js";

const RETRY_MS = 1_000;
const CONNECT_TIMEOUT_MS = 15_000;
const FITS = ["contain", "cover", "fill"];
const SCALES = ["plain", "smooth", "pixels"];

const query = new URLSearchParams(location.search);
const feed = document.getElementById("feed");
const video = document.getElementById("output");
const held = new HeldPicture(video);
const curtain = el("div", { className: "curtain", hidden: true });
feed.append(curtain);
const outputs = new OutputState({ leads: false });
const upscaler = new Upscaler(video);
const join = { streamId: query.get("stream") ?? "main", role: "viewer", label: "Clean feed" };

let connection = null;
let state = "connecting";

/** For the console and for tests. */
window.wanstream = {
  get state() {
    return state;
  },
};

function choose(name, options, wanted) {
  feed.dataset[name] = options.includes(wanted) ? wanted : options[0];
  if (name === "scale") upscaler.enable(feed.dataset.scale === "smooth");
}

const next = (name, options) => choose(name, options, options[(options.indexOf(feed.dataset[name]) + 1) % options.length]);

function showOutputs() {
  curtain.hidden = !outputs.black;
  if (outputs.frozen) held.hold("frozen");
  else held.release("frozen");
}

/** gone: there is no such stream, so there is nothing to see; otherwise the last picture stays. */
function again(gone) {
  connection?.close();
  connection = null;
  state = gone ? "nothing" : "connecting";
  if (gone) {
    video.srcObject = null;
    upscaler.clear();
    held.release("connecting");
  } else {
    held.hold("connecting");
  }
  setTimeout(watch, RETRY_MS);
}

async function watch() {
  const mine = (connection = new Connection());
  const isMine = () => mine === connection;
  const timer = setTimeout(() => isMine() && again(false), CONNECT_TIMEOUT_MS);
  mine.addEventListener("media", ({ detail }) => (video.srcObject = detail));
  mine.addEventListener("message", ({ detail }) => {
    if (detail.type === "stream_stopped" && isMine()) again(true);
  });
  mine.addEventListener("state", ({ detail }) => {
    if (detail === "connected") clearTimeout(timer);
    if (isMine() && (detail === "failed" || detail === "closed")) again(false);
  });
  try {
    await mine.open(null, null, undefined, join);
  } catch (error) {
    clearTimeout(timer);
    if (isMine()) again(error instanceof ApiError && error.status === 404);
  }
}

video.addEventListener("playing", () => {
  state = "streaming";
  held.release("connecting");
});
document.addEventListener("click", () => {
  if (document.fullscreenElement) document.exitFullscreen();
  else document.documentElement.requestFullscreen?.().catch(() => {});
});
document.addEventListener("keydown", ({ key, repeat, ctrlKey, metaKey, altKey }) => {
  if (repeat || ctrlKey || metaKey || altKey) return;
  if (key === "f") outputs.set({ frozen: !outputs.frozen });
  if (key === "b") outputs.set({ black: !outputs.black });
  if (key === "m") next("fit", FITS);
  if (key === "u") next("scale", SCALES);
});
outputs.addEventListener("change", showOutputs);
window.addEventListener("pagehide", () => connection?.close());

choose("fit", FITS, query.get("fit"));
choose("scale", SCALES, query.get("scale"));
watch();
