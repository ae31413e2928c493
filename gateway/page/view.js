// Shows the state of the stream: status line, buttons, progress, live numbers.

const $ = (id) => document.getElementById(id);

/** state -> [status line, main button, its icon, heading over the picture while something is under way]. */
const STATES = {
  starting: ["Contacting the server", "Start", "play"],
  offline: ["Server unreachable", "Start", "play"],
  idle: ["Ready", "Start", "play"],
  error: ["Stopped", "Start", "play"],
  opening: ["Opening the input", "Cancel", "stop", "Opening the input"],
  loading: ["Loading", "Cancel", "stop", "Loading"],
  connecting: ["Connecting", "Cancel", "stop", "Connecting"],
  waiting: ["Server is full", "Cancel", "stop", "Waiting for a free place"],
  reconnecting: ["Reconnecting", "Stop", "stop", "Reconnecting"],
  replacing: ["Another pipeline is coming", "Stop", "stop", "Another pipeline is being loaded"],
  unsuitable: ["Needs an input video", "Stop", "stop"],
  streaming: ["Live", "Stop", "stop"],
  interrupted: ["Nothing comes from the server", "Stop", "stop"],
  paused: ["Paused", "Stop", "stop"],
};

/** Writes only what changed: screen readers repeat a live region whenever it is written. */
export function setText(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

export function showState(state, pipelineName) {
  const [status, action, icon, heading] = STATES[state];
  const live = ["streaming", "paused", "interrupted"].includes(state);
  document.body.dataset.state = state;
  setText("status-text", state === "loading" && pipelineName ? `Loading ${pipelineName}` : status);
  $("primary-text").textContent = action;
  $("primary-icon").setAttribute("href", `#i-${icon}`);
  $("primary").classList.toggle("calm", action !== "Start");
  $("pause").disabled = !live;
  $("pause-text").textContent = state === "paused" ? "Resume" : "Pause";
  $("pause-icon").setAttribute("href", state === "paused" ? "#i-play" : "#i-pause");
  for (const id of ["record", "snapshot", "reset_cache"]) $(id).disabled = !live;
  $("progress").hidden = !heading;
  $("placeholder").hidden = Boolean(heading) || live;
  if (heading) $("progress-title").textContent = state === "loading" && pipelineName ? `Loading ${pipelineName}` : heading;
}

/** text: what is to be said on the picture, or nothing. */
export function showMark(text) {
  $("badge").hidden = !text;
  if (text) setText("badge", text);
}

export function showPlaceholder(title, text) {
  $("placeholder-title").textContent = title;
  $("placeholder-text").textContent = text;
}

/** "Loading engine 2 of 7: its_name..." -> what kind of step it is, its text for people, and how much is done. */
export function describe(text) {
  const [, place, count] = text.match(/(\d+) of (\d+)/) ?? [];
  return {
    kind: text.split(/\d/)[0].replace(/[\s:.]+$/, ""),
    text: text.replace(/( of \d+): \S+$/, "$1"),
    share: count ? place / count : null,
  };
}

/** The current step of something that takes time, with the finished ones below. */
export class Progress {
  #kind = null;
  #since = 0;
  #timer = null;
  #until = null;

  start() {
    this.stop();
    $("progress-done").replaceChildren();
    this.#timer = setInterval(() => this.#tick(), 250);
  }

  stop() {
    clearInterval(this.#timer);
    this.#timer = this.#kind = this.#until = null;
    $("progress-stage").textContent = $("progress-time").textContent = "";
    $("progress-bar").removeAttribute("value");
  }

  /** Steps that are counted ("2 of 7") are one entry of the list. */
  stage(name) {
    const { kind, text, share } = describe(name);
    setText("progress-stage", text);
    if (share === null) $("progress-bar").removeAttribute("value");
    else $("progress-bar").value = share;
    if (kind === this.#kind) {
      if (this.#until !== null) this.#since = performance.now(); // the wait is over, the next try runs
      this.#until = null;
      return;
    }
    if (this.#kind && this.#elapsed() >= 1) {
      const item = document.createElement("li");
      item.textContent = `${this.#kind} (${this.#elapsed()} s)`;
      $("progress-done").append(item);
    }
    this.#kind = kind;
    this.#since = performance.now();
    this.#until = null;
    this.#tick();
  }

  /** Count down to the next try instead of up. */
  countdown(text, seconds) {
    this.stage(text);
    this.#until = performance.now() + seconds * 1000;
    this.#tick();
  }

  #elapsed() {
    return Math.round((performance.now() - this.#since) / 1000);
  }

  #tick() {
    const left = this.#until === null ? null : Math.max(0, Math.ceil((this.#until - performance.now()) / 1000));
    const elapsed = this.#elapsed();
    $("progress-time").textContent = left !== null ? `Next try in ${left} s` : elapsed >= 1 ? `${elapsed} s` : "";
  }
}

/**
 * The line below the settings: what the server holds, and whether the settings differ from that.
 * isChosen: whether it holds the chosen pipeline; changed: with other settings.
 */
export function showLoaded({ loaded, loading, failure, locked, online }, { entry, isChosen, changed, isConnected, nameOf }) {
  const params = loaded?.load_params;
  const size = isChosen && params?.width && entry.requires_models ? `, ${params.width} × ${params.height}` : "";
  const plan = describePlan(loaded?.load_plan);
  const held = loaded
    ? `Loaded: ${nameOf(loaded.pipeline_id)}${size}${plan && ` (${plan})`}.`
    : loading
      ? `Loading ${nameOf(loading.loading_pipeline_id)}.`
      : (failure ?? (online ? "Nothing is loaded." : ""));
  const pending = locked
    ? " What is loaded here is its operator's choice."
    : changed
      ? " Your changes apply after loading again."
      : isConnected && !isChosen && entry
        ? ` Switch to use ${entry.name}.`
        : "";
  setText("loaded", held + pending);
  const reason = loaded?.load_plan?.reason;
  $("loaded").title = reason ? `Chosen because ${reason}.` : "";
  $("load").textContent = changed ? "Reload" : isConnected ? "Switch" : "Load";
  $("load").hidden = locked || (isChosen && !changed);
  $("load").classList.toggle("accent", Boolean(pending));
}

/** "ONNX Runtime on the CPU, 8 streams, 0.7 GB". plan: `load_plan` of the server's status, null without engines. */
function describePlan(plan) {
  if (!plan?.engines.length) return "";
  const [{ runtime, device }] = plan.engines;
  const names = { tensorrt: "TensorRT", onnxruntime: "ONNX Runtime", pytorch: "PyTorch" };
  const parts = [`${names[runtime] ?? runtime} on the ${device === "cpu" ? "CPU" : "GPU"}`];
  if (plan.sessions !== null) parts.push(plan.sessions === 1 ? "1 stream" : `${plan.sessions} streams`);
  return [...parts, `${(plan.memory.total_bytes / 1e9).toFixed(1)} GB`].join(", ");
}

const whole = (value) => (value === null || value === undefined ? "–" : String(Math.round(value)));

/** stats: of the meter, or null. */
export function showNumbers(stats) {
  $("n-fps").textContent = stats?.fps === null || !stats ? "–" : stats.fps.toFixed(1);
  $("n-delay").textContent = whole(stats?.delayMs);
  $("n-rtt").textContent = stats?.rttMs > 0 && stats.rttMs < 1 ? "< 1" : whole(stats?.rttMs);
  $("n-jitter").textContent = whole(stats?.jitterBufferMs);
  $("n-dropped").textContent = whole(stats?.droppedFrames);
  $("n-bitrate").textContent = stats?.bitrate ? (stats.bitrate / 1e6).toFixed(1) : "–";
  $("n-size").textContent = stats?.width ? `${stats.width} × ${stats.height}` : "–";
  $("n-codec").textContent = stats?.codec ?? "";
}

const SERVER_NUMBERS = [
  ["Frames in", "frames_in", whole],
  ["Frames out", "frames_out", whole],
  ["Input rate", "fps_in", (value) => `${value.toFixed(1)} fps`],
  ["Output rate", "fps_out", (value) => `${value.toFixed(1)} fps`],
  ["Pipeline rate", "pipeline_fps", (value) => `${value.toFixed(1)} fps`],
  ["Time", "elapsed_seconds", (value) => `${Math.round(value)} s`],
];

/** metrics: answer of /api/v1/session/metrics, perhaps with this session alone and no more; null: not available. */
export function showServerNumbers(metrics, sessionId, stats) {
  const own = metrics?.sessions?.[sessionId] ?? {};
  const rows = SERVER_NUMBERS.filter(([, key]) => Number.isFinite(own[key])).map(([name, key, show]) => [
    name,
    show(own[key]),
  ]);
  if (metrics?.gpu) rows.push(["Streams on server", String(Object.keys(metrics.sessions).length)]);
  const { vram_allocated_mb: used, vram_total_mb: total } = metrics?.gpu ?? {};
  if (total) rows.push(["GPU memory", `${((used ?? 0) / 1024).toFixed(1)} of ${(total / 1024).toFixed(1)} GB`]);
  if (stats?.sentBitrate) rows.push(["Sent", `${(stats.sentBitrate / 1e6).toFixed(1)} Mbit/s`]);
  if (Number.isFinite(stats?.decodedFps)) rows.push(["Decoded", `${stats.decodedFps.toFixed(1)} fps`]);
  if (stats) rows.push(["Packets lost", whole(stats.packetsLost)], ["Freezes", whole(stats.freezes)]);
  if (!rows.length) rows.push(["Stream", "not running"]);
  $("server-numbers").replaceChildren(...rows.map(([name, text]) => numberTile(name, text)));
}

function numberTile(name, text) {
  const tile = document.createElement("div");
  const [label, value] = [document.createElement("dt"), document.createElement("dd")];
  label.textContent = name;
  value.textContent = text;
  tile.append(label, value);
  return tile;
}

/** A token in the address has become a cookie by now; it should not stay visible, nor be copied with a link. */
export function hideToken() {
  const address = new URL(location.href);
  if (!address.searchParams.has("token")) return;
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}
