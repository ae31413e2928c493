// A page for those who watch a stream that somebody else has made, and who may ask to drive it.

import { api, ApiError, problemText } from "./api.js";
import { Connection } from "./connection.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = 3_000;
const CONNECT_TIMEOUT_MS = 15_000;

const query = new URLSearchParams(location.search);
const join = {
  streamId: query.get("stream") ?? "main",
  role: query.get("role") === "controller" ? "controller" : "viewer",
  label: (query.get("name") ?? navigator.userAgentData?.platform ?? navigator.platform ?? "browser").slice(0, 64),
};

let connection = null;
let driver = null; // session id of whoever drives
let paused = false;
let asked = false;

/** For the console and for tests. */
window.wanstream = {
  get sessionId() {
    return connection?.sessionId ?? null;
  },
  get driver() {
    return driver;
  },
};

function show(state, title, text = "") {
  document.body.dataset.state = state;
  $("status-text").textContent = title;
  $("placeholder-title").textContent = title;
  $("placeholder-text").textContent = text;
  $("placeholder").hidden = state === "streaming";
}

function render() {
  const drives = driver !== null && driver === connection?.sessionId;
  $("drive").hidden = !drives;
  $("seat").hidden = join.role !== "controller" || !connection?.sessionId;
  $("seat").textContent = drives ? "Give control back" : asked ? "Asked for control" : "Ask for control";
  $("seat").disabled = asked && !drives;
  $("pause").textContent = paused ? "Resume" : "Pause";
}

function showPeople(viewers) {
  $("people").textContent = viewers > 1 ? `${viewers} watching` : "";
}

function adopt(parameters) {
  if ("paused" in parameters) paused = parameters.paused;
  const text = parameters.prompts?.[0]?.text;
  if (text !== undefined && document.activeElement !== $("prompt")) $("prompt").value = text;
}

const received = {
  stream_state(message) {
    driver = message.driver;
    adopt(message.parameters);
    showPeople(message.viewers);
  },
  viewers_changed: ({ viewers }) => showPeople(viewers),
  driver_changed(message) {
    driver = message.driver;
    asked = false;
  },
  parameters_updated: ({ parameters }) => adopt(parameters),
  parameter_error({ errors }) {
    $("problem").textContent = errors.map(problemText).join(" ");
  },
  control_requested({ sessionId, label }) {
    if (confirm(`${label} asks for control of this stream. Hand it over?`)) {
      connection.send({ hand_over: sessionId }, { now: true });
    }
  },
  stream_stopped: ({ error_message: text }) => end("The stream has ended", text ?? ""),
};

/** The stream or the connection is over; both may come again. */
function end(title, text) {
  connection?.close();
  connection = null;
  driver = null;
  asked = false;
  $("output").srcObject = null;
  show("waiting", title, `${text} It is tried again every few seconds.`.trim());
  render();
  setTimeout(watch, RETRY_MS);
}

async function watch() {
  const mine = (connection = new Connection());
  const isMine = () => mine === connection;
  const timer = setTimeout(() => isMine() && end("No way through for video", "A firewall may block UDP."), CONNECT_TIMEOUT_MS);
  mine.addEventListener("media", ({ detail }) => ($("output").srcObject = detail));
  mine.addEventListener("message", ({ detail }) => {
    $("problem").textContent = "";
    received[detail.type]?.(detail);
    render();
  });
  mine.addEventListener("state", ({ detail }) => {
    if (detail === "connected") clearTimeout(timer);
    if (isMine() && (detail === "failed" || detail === "closed")) end("Connection lost", "");
  });
  try {
    await mine.open(null, null, undefined, join);
    render();
  } catch (error) {
    clearTimeout(timer);
    if (!isMine()) return;
    const missing = error instanceof ApiError && error.status === 404;
    end(missing ? "There is no such stream" : "The stream cannot be watched", error.message);
  }
}

$("output").addEventListener("playing", () => show("streaming", "Watching"));
$("seat").addEventListener("click", () => {
  const drives = driver === connection.sessionId;
  asked = !drives;
  connection.send({ take_control: !drives }, { now: true });
  render();
});
$("drive").addEventListener("submit", (event) => {
  event.preventDefault();
  connection.send({ prompts: [{ text: $("prompt").value, weight: 1 }] }, { now: true });
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  connection.send({ paused }, { now: true });
  render();
});
$("full").addEventListener("click", () => $("player").requestFullscreen?.().catch(() => {}));
window.addEventListener("pagehide", () => connection?.close());

show("connecting", "Connecting");
watch();
