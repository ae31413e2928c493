// The page: connects the settings panel, the stream and what is shown.

import { api, problemText, Unreachable } from "./api.js";
import { ControlView } from "./control.js";
import { Controls } from "./controls.js";
import { ReferenceImages } from "./images.js";
import { Loras } from "./loras.js";
import { isNetworkFull, Meter } from "./meter.js";
import { Models } from "./models.js";
import { dismiss, notify } from "./notices.js";
import { bindFullscreen, saveSnapshot } from "./screen.js";
import { Share } from "./share.js";
import { Settings } from "./settings.js";
import { Examples } from "./stage/examples.js";
import { Show } from "./stage/show.js";
import { Takes } from "./takes.js";
import { listCameras, openCamera, openFile, SourceError } from "./source.js";
import { Stream, StreamError } from "./stream.js";
import { describe, describePlan, hideToken, Progress, setText, showNumbers, showPlaceholder, showMark, showServerNumbers, showState } from "./view.js";

const $ = (id) => document.getElementById(id);
const IDLE_POLL_MS = 4_000;
const READING_MS = 1_000;
const NO_PICTURE_MS = 12_000;
const SESSION_ASKED_MS = 1_000; // without a picture, and from one question to the next
const NETWORK_WELL_MS = 10_000; // without a sign of a full network
const MARKS = {
  paused: "Paused",
  interrupted: "Last picture",
  reconnecting: "Last picture",
  connecting: "Last picture",
  replacing: "Last picture",
  loading: "Last picture",
};
const FULL_READINGS = 2; // signs of a full network before it is said

const settings = new Settings();
const controls = new Controls(settings);
const stream = new Stream();
const models = new Models();
const images = new ReferenceImages();
const controlView = new ControlView();
const loras = new Loras(settings);
new Share(stream);
const takes = new Takes((recording) => stream.send({ recording }, { now: true }), stream);
const progress = new Progress();
const [output, preview] = [$("output"), $("preview")];
const examples = new Examples(stream, showExample);
$("models").after(examples.element);
const show = new Show(stream, controls, output, {
  pause: () => stream.isLive && togglePause(),
  record: () => $("record").click(),
  snapshot: () => $("snapshot").click(),
  fullscreen: () => $("fullscreen").click(),
});

let online = null; // null: not known yet
let loaded = null; // the server's status answer, when a pipeline is loaded
let loading = null; // the same, while the server loads one by itself or for someone else
let failure = null; // why the server's last load failed
let locked = false; // whether only operators may load pipelines
let opening = false; // the camera is being asked for
let input = null; // track of the local video
let lastFrameAt = 0;
let lastFullAt = -Infinity; // when a reading showed that the network is full
let fullReadings = 0;
let problem = null; // what ended the last stream

const meter = new Meter(output, preview, () => {
  lastFrameAt = performance.now();
  dismiss("no-picture");
  stream.playing();
});

/** For the console and for tests. */
window.wanstream = {
  get state() {
    return currentState();
  },
  get sessionId() {
    return stream.sessionId;
  },
  get streamId() {
    return stream.streamId;
  },
  get stats() {
    return meter.stats;
  },
};

// --- State ---------------------------------------------------------------------------------------------------

function currentState() {
  if (opening) return "opening";
  if (stream.isLive && stream.interrupted) return "interrupted";
  if (stream.isBusy) return stream.state;
  if (online === null) return "starting";
  return online ? stream.state : "offline";
}

function render() {
  const state = currentState();
  const { entry } = controls;
  showState(state, entry?.name);
  showMark(show.output.mark || MARKS[state]);
  const busy = opening || (stream.isBusy && !stream.isConnected);
  $("primary").disabled = !busy && !stream.isConnected && (!online || !entry);
  $("load").disabled = busy || !online || !entry;
  $("unload").hidden = !loaded || busy || locked;
  $("server-log").hidden = locked;
  renderLoaded(entry);
  models.choose(entry);
  examples.show(entry);
  images.show(entry?.supports_vace, entry && controls.values.vace_enabled);
  renderVace();
  loras.show(entry, loaded);
  if (!entry) {
    showPlaceholder(
      online === false ? "Server unreachable" : online ? "No pipeline available" : "",
      online === false ? "Looking for it every few seconds." : online ? "The list on this page says why." : "",
    );
    return;
  }
  const source = settings.source === "camera" ? "stream your camera" : "stream a video file";
  const text = `Press Start to ${controls.mode === "text" ? "make video from text" : source}.`;
  // In full screen the messages above the picture cannot be seen.
  if (state === "error" && problem && document.fullscreenElement) showPlaceholder(problem.title, problem.message);
  else if (state === "unsuitable") showPlaceholder("No picture", "The loaded pipeline needs an input video; the message above says more.");
  else if (state === "offline") showPlaceholder(entry.name, "The server does not answer.");
  else if (loading?.loading_pipeline_id === entry.id) {
    showPlaceholder(`Loading ${entry.name}`, `${describe(loading.loading_stage ?? "").text} ${text}`);
  } else showPlaceholder(entry.name, text);
}

/** What guides the pictures beside the prompts. */
function renderVace() {
  const { entry } = controls;
  const isLoaded = stream.isConnected && Boolean(loaded?.load_params?.vace_enabled) && loaded.pipeline_id === entry?.id;
  const values = entry ? controls.values : {};
  const takesInput = isLoaded && stream.plan?.mode === "video" && values.vace_use_input_video !== false;
  controlView.show({ streamId: takesInput ? stream.sessionId : null, values, image: images.words, isLoaded });
}

/** The line below the settings: what the server holds, and whether the settings differ from that. */
function renderLoaded(entry) {
  const params = loaded?.load_params;
  const isChosen = Boolean(loaded) && loaded.pipeline_id === entry?.id;
  const changed = isChosen && (controls.differsFrom(params) || loras.differs);
  const size = isChosen && params?.width && entry.requires_models ? `, ${params.width} × ${params.height}` : "";
  const plan = describePlan(loaded?.load_plan);
  const held = loaded
    ? `Loaded: ${controls.nameOf(loaded.pipeline_id)}${size}${plan && ` (${plan})`}.`
    : loading
      ? `Loading ${controls.nameOf(loading.loading_pipeline_id)}.`
      : (failure ?? (online ? "Nothing is loaded." : ""));
  const pending = locked
    ? " What is loaded here is its operator's choice."
    : changed
      ? " Your changes apply after loading again."
      : stream.isConnected && !isChosen && entry
        ? ` Switch to use ${entry.name}.`
        : "";
  setText("loaded", held + pending);
  const reason = loaded?.load_plan?.reason;
  $("loaded").title = reason ? `Chosen because ${reason}.` : "";
  $("load").textContent = changed ? "Reload" : stream.isConnected ? "Switch" : "Load";
  $("load").hidden = locked || (isChosen && !changed);
  $("load").classList.toggle("accent", Boolean(pending));
  $("defaults").hidden = !entry || !controls.mayReset;
}

// --- Server --------------------------------------------------------------------------------------------------

async function refreshServer() {
  try {
    const status = await api.status();
    loaded = status.status === "loaded" ? status : null;
    loading = status.status === "loading" ? status : null;
    failure = status.error ?? null;
    locked = status.locked;
    const held = status.pipeline_id ?? status.loading_pipeline_id;
    if (!online) {
      await readPipelines(held);
      if (locked && held) controls.choose(held);
    }
    online = true;
    dismiss("offline");
  } catch (error) {
    if (online !== false && !stream.isBusy) {
      const text =
        error instanceof Unreachable
          ? `Nothing answers at ${location.origin}. Check that wanstream runs there and that the network is up. This page keeps looking for it.`
          : error.message;
      notify("offline", { title: "Server unreachable", text });
    }
    online = false;
  }
  render();
}

/** preferred: the pipeline to choose when the user has not chosen one yet, or null. */
async function readPipelines(preferred = null) {
  const [pipelines, hardware] = await Promise.all([api.schemas(), api.hardware().catch(() => null)]);
  controls.setPipelines(pipelines, hardware?.vram_gb ?? null, preferred);
  models.setPipelines(pipelines);
}

// --- Input ---------------------------------------------------------------------------------------------------

/** The track for the current settings, newly opened; null in text mode. Throws SourceError. */
async function openInput() {
  closeInput();
  if (controls.mode !== "video") return null;
  if (settings.source === "file") {
    if (!controls.file) {
      throw new SourceError("No video file chosen", "Choose a file under Input, or switch to Camera.");
    }
    input = await openFile(controls.file, controls.size);
  } else {
    input = await openCamera(settings.cameraId, controls.size);
  }
  const track = input;
  track.addEventListener("ended", () => {
    if (track !== input) return;
    notify("source", {
      title: "The input stopped",
      text: "The camera was unplugged or its permission was withdrawn. The last picture stays.",
      actions: [{ label: "Open it again", run: changeInput }],
    });
  });
  preview.srcObject = new MediaStream([track]);
  $("input-tile").hidden = false;
  controls.setCameras(await listCameras());
  return track;
}

function closeInput() {
  input?.stop();
  input = null;
  preview.srcObject = null;
  $("input-tile").hidden = true;
}

/** Another camera or file while streaming. */
async function changeInput() {
  controls.setCameras(await listCameras());
  if (!stream.isLive) return render();
  try {
    await stream.replaceTrack(await openInput());
    dismiss("source");
  } catch (error) {
    showProblem(error);
  }
}

// --- Actions -------------------------------------------------------------------------------------------------

/** Opens the input, so that a missing camera is known before minutes of loading; null when that failed. */
async function makePlan() {
  dismiss("problem", "source", "refused", "warnings", "no-picture", "network", "pipeline", "silent");
  opening = true;
  render();
  try {
    const track = await openInput();
    if (!opening) return null; // cancelled meanwhile
    const { entry } = controls;
    return {
      pipelineId: entry.id,
      mode: controls.mode,
      loadParams: { ...controls.loadParams(), ...loras.loadParams },
      track,
      parameters: streamParameters,
    };
  } catch (error) {
    showProblem(error);
    return null;
  } finally {
    opening = false;
    render();
  }
}

function streamParameters() {
  return { ...controls.streamParameters(), ...loras.streamParameters, ...streamImages() };
}

function streamImages() {
  const usesImage = images.isChosen && controls.entry.supports_vace && controls.values.vace_enabled;
  return usesImage ? images.parameters : {};
}

async function start() {
  const plan = await makePlan();
  if (plan) await stream.start(plan);
  else if (!stream.isBusy) closeInput();
}

/** An example of the chosen pipeline; resolves when its picture is there, or it has failed. */
async function showExample(example) {
  controls.use(example);
  const { entry, mode } = controls;
  const inUse = stream.isLive && stream.plan.pipelineId === entry.id;
  if (!inUse) await (stream.isConnected ? load() : start());
  else if (stream.plan.mode === mode) stream.send({ ...streamParameters(), reset_cache: true }, { now: true });
  else await applyMode();
  while (stream.isBusy && !stream.isLive) await new Promise((resolve) => stream.addEventListener("state", resolve, { once: true }));
}

async function load() {
  if (stream.isConnected) {
    const plan = await makePlan();
    if (plan) await stream.load(plan);
    return;
  }
  dismiss("problem", "warnings");
  const params = { ...controls.loadParams(), ...loras.loadParams };
  const { entry, mode } = controls;
  await stream.load({ pipelineId: entry.id, mode, loadParams: params, track: null, parameters: () => ({}) });
}

function stop() {
  opening = false;
  remember(null);
  stream.stop();
  closeInput();
  output.srcObject = null;
  render();
}

const togglePause = () => stream.pause(stream.state === "streaming");

async function unload() {
  stop();
  try {
    await api.unload();
  } catch (error) {
    showProblem(error);
  }
  await refreshServer();
}

function showProblem(error) {
  if (error instanceof SourceError) notify("source", { title: error.title, text: error.message });
  else if (error instanceof StreamError) {
    const again = { lost: "Reconnect", stopped: "Start again", load: "Try again", connect: "Try again" }[error.kind];
    const actions = again ? [{ label: again, run: start }] : [];
    notify("problem", { title: error.title, text: error.message, actions });
  } else if (error instanceof Unreachable) {
    notify("problem", {
      title: "The server does not answer",
      text: `Check that wanstream runs at ${location.origin} and that the network is up.`,
      actions: [{ label: "Try again", run: start }],
    });
  } else {
    console.error(error);
    notify("problem", { title: "Something went wrong", text: error.message, actions: [{ label: "Try again", run: start }] });
  }
}

// --- Events --------------------------------------------------------------------------------------------------

const STREAM_KEY = "wanstream.stream";

/** Id of the stream that this tab had, before it was loaded again. */
function stored() {
  try {
    return sessionStorage.getItem(STREAM_KEY);
  } catch {
    return null; // storage is blocked
  }
}

function remember(streamId) {
  try {
    if (streamId) sessionStorage.setItem(STREAM_KEY, streamId);
    else sessionStorage.removeItem(STREAM_KEY);
  } catch {
    // The page works without.
  }
}

stream.addEventListener("state", ({ detail: state }) => {
  if (stream.isLive) remember(stream.streamId);
  const underWay = stream.isBusy && !stream.isLive;
  if (underWay && ["loading", "waiting", "reconnecting", "connecting", "replacing"].includes(state)) progress.start();
  if (!underWay || state === "unsuitable") progress.stop();
  if (!stream.isBusy || state === "connecting") takes.streamEnded();
  if (!stream.isBusy) {
    closeInput();
    output.srcObject = null;
    show.held.clear();
    meter.reset();
    showNumbers(null);
    showServerNumbers(null);
  }
  if (state !== "reconnecting" && state !== "waiting") dismiss("retry");
  render();
  if (!stream.isBusy) refreshServer();
});
document.addEventListener("wanstream-mark", render);
stream.addEventListener("interrupted", render);
stream.addEventListener("stage", ({ detail }) => progress.stage(detail));
stream.addEventListener("loaded", ({ detail }) => {
  loaded = detail;
  loading = failure = null;
  render();
});
stream.addEventListener("media", ({ detail }) => {
  meter.reset();
  lastFrameAt = performance.now();
  if (output.srcObject) show.held.hold("connecting"); // the last picture stays until the next one is there
  output.srcObject = detail;
  // Not by `autoplay`: after a reload, without a gesture, browsers hold such a picture while it is scrolled out of sight.
  output.play().catch(() => {});
});
output.addEventListener("playing", () => {
  show.held.release("connecting");
  stream.playing();
});
stream.addEventListener("problem", ({ detail }) => {
  problem = detail;
  showProblem(detail);
  render();
});
stream.addEventListener("retry", ({ detail: { inS, reason } }) => {
  progress.countdown(reason, inS);
  notify("retry", {
    title: stream.state === "waiting" ? "The server is full" : "Connection lost",
    text: `${reason} It is tried again by itself.`,
    actions: [
      { label: "Try now", run: () => stream.retryNow() },
      { label: "Stop", run: stop },
    ],
  });
});
stream.addEventListener("refused", ({ detail: problems }) => {
  const hints = problems.filter(({ type }) => type === "plain_words");
  if (hints.length) {
    notify("hint", { level: "info", title: "About your prompt", text: hints.map(({ msg }) => `${msg}.`).join("\n") });
  }
  const silent = problems.find(({ type }) => type === "no_input");
  if (silent) notify("silent", { title: "No input picture arrives", text: silent.msg });
  const refused = problems.filter(({ type }) => !["plain_words", "no_input"].includes(type));
  if (!refused.length) return;
  notify("refused", { title: "The server refused a change", text: refused.map(problemText).join("\n") });
});
stream.addEventListener("recording", ({ detail }) => {
  takes.changed(detail);
  if (detail.error) notify("recording", { title: "The recording has ended", text: detail.error });
});
stream.addEventListener("resumed", () => dismiss("silent"));
stream.addEventListener("pipeline", ({ detail }) => tellOfPipeline(detail));
stream.addEventListener("changed", ({ detail }) => {
  controls.adopt(detail);
  images.adopt(detail);
  renderVace();
});
stream.addEventListener("warnings", ({ detail }) => {
  notify("warnings", { level: "info", title: "Loaded with a remark", text: detail.join("\n") });
});

controls.addEventListener("live", ({ detail }) => {
  dismiss("refused");
  renderLoaded(controls.entry);
  renderVace();
  // Settings of a pipeline or mode that is only chosen wait for the switch; prompts are the same for all.
  const { pipelineId, mode } = stream.plan ?? {};
  const inUse = pipelineId === controls.entry.id && mode === controls.mode;
  if (inUse || "prompts" in detail || "transition" in detail) stream.send(detail);
});
images.addEventListener("choose", () => {
  const isLoaded = !stream.isLive || stream.plan.loadParams.vace_enabled;
  if (controls.values.vace_enabled && isLoaded) stream.send(images.update, { now: true });
  else if (images.isChosen && !locked) controls.useVace();
  renderVace();
});
loras.addEventListener("scale", ({ detail }) => stream.send(detail));
loras.addEventListener("load", render);
models.addEventListener("downloaded", () => readPipelines().then(render, showProblem));
controls.addEventListener("source", changeInput);
controls.addEventListener("vace", () => {
  if (stream.isLive && !locked) load();
});
controls.addEventListener("load", render);
controls.addEventListener("pipeline", () => {
  if (stream.isLive && loaded?.pipeline_id === controls.entry.id && !controls.differsFrom(loaded.load_params)) applyMode();
  render();
});

/** Someone else loads a pipeline, or has loaded one: the stream goes on with it, or needs a decision. */
async function tellOfPipeline({ status, pipeline_id: id, modes, input_mode: mode, before }) {
  dismiss("no-picture", "network", "silent", "refused");
  lastFrameAt = performance.now();
  const name = controls.nameOf(id);
  const one = "This server holds one pipeline at a time.";
  if (status === "loading") {
    progress.stage(`Loading ${name}`);
    notify("pipeline", {
      level: "info",
      title: `${name} is being loaded`,
      text: `Someone else loads it. ${one} Your stream waits and goes on with it.`,
    });
    return refreshServer();
  }
  await refreshServer();
  if (loaded?.pipeline_id === id && stream.plan) stream.plan.loadParams = loaded.load_params;
  const isChosen = settings.pipeline === id;
  const actions = [
    { label: `Use ${name} here`, run: () => switchTo(id) },
    { label: `Back to ${controls.nameOf(before.pipelineId)}`, run: () => switchTo(before.pipelineId) },
  ];
  if (stream.state === "unsuitable") {
    const text = `Someone else loaded it. ${one} It works on an input video and your stream has none, so there is no picture. Use it with a camera or a file, or load your pipeline again.`;
    notify("pipeline", { title: `${name} needs an input video`, text, actions });
    return;
  }
  const inMode = modes.length > 1 || before.mode !== mode ? ` in ${mode} mode` : "";
  const panel = isChosen ? "" : ` The settings on this page are still those of ${controls.nameOf(settings.pipeline)}.`;
  notify("pipeline", {
    level: "info",
    title: `${name} took the place of your pipeline`,
    text: `Someone else loaded it. ${one} Your stream goes on with it${inMode}.${panel}`,
    actions: isChosen ? [] : actions,
  });
}

async function switchTo(id) {
  controls.choose(id);
  await load();
}

/** The pipeline stays, but input mode or defaults changed under a running stream. */
async function applyMode() {
  try {
    if (stream.plan.mode !== controls.mode) await stream.replaceTrack(await openInput());
    stream.plan.mode = controls.mode;
    stream.send(streamParameters(), { now: true });
  } catch (error) {
    showProblem(error);
  }
}

$("primary").addEventListener("click", () => (opening || stream.isBusy ? stop() : start()));
$("pause").addEventListener("click", togglePause);
$("load").addEventListener("click", load);
$("unload").addEventListener("click", unload);
// An image counts for one chunk: with what it led to gone, it has to be given again.
$("reset_cache").addEventListener("click", () => stream.send({ ...streamImages(), reset_cache: true }, { now: true }));
$("snapshot").addEventListener("click", () => saveSnapshot(settings.pipeline));
bindFullscreen(render);
$("controls").addEventListener("submit", (event) => event.preventDefault());
preview.addEventListener("resize", () => {
  $("preview-size").textContent = preview.videoWidth ? `${preview.videoWidth} × ${preview.videoHeight}` : "";
});
document.addEventListener("click", (event) => {
  // A button that was clicked with the mouse must not catch the Space key that follows.
  if (event.detail > 0) event.target.closest?.("button, summary")?.blur();
});
navigator.mediaDevices?.addEventListener("devicechange", async () => controls.setCameras(await listCameras()));
// Both: some browsers fire only one of them. Closing twice does no harm.
for (const type of ["pagehide", "beforeunload"]) {
  window.addEventListener(type, () => stream.stop({ cancelLoad: false }));
}

window.addEventListener("online", () => {
  stream.retryNow();
  if (!stream.isBusy && !opening) refreshServer();
});

(async function watchServer() {
  for (;;) {
    const waits = stream.state === "replacing";
    await new Promise((resolve) => setTimeout(resolve, loading || waits ? READING_MS : IDLE_POLL_MS));
    const mayAsk = !stream.isBusy || stream.state === "replacing" || stream.state === "unsuitable";
    if (mayAsk && !opening && !document.hidden) await refreshServer();
    if (stream.state === "replacing" && loading) progress.stage(loading.loading_stage ?? "Loading");
  }
})();

/** Says when the picture is held up, and by what. */
function watchPicture() {
  const now = performance.now();
  if (isNetworkFull(meter.stats)) {
    lastFullAt = now;
    fullReadings += 1;
  } else if (now - lastFullAt > NETWORK_WELL_MS) {
    fullReadings = 0;
    dismiss("network");
  }
  const isNetwork = now - lastFullAt < NETWORK_WELL_MS;
  const isStill = !document.hidden && now - lastFrameAt > NO_PICTURE_MS;
  if (isNetwork && (isStill || fullReadings === FULL_READINGS)) {
    dismiss("no-picture");
    notify("network", {
      level: isStill ? "error" : "info",
      title: "The network is too slow",
      text:
        "Parts of the video get lost between the server and this browser. The picture gets coarser until it fits; " +
        "a cable, a better radio signal or a smaller picture helps.",
    });
  } else if (isStill) {
    notify("no-picture", {
      title: "No new picture",
      text: "The connection is up, but no picture has arrived for a while. The server may be overloaded; its log says more.",
    });
  }
  if (isStill) lastFrameAt = Infinity; // once
}

setInterval(async () => {
  if (!stream.isLive || !stream.peer) return;
  showNumbers(await meter.read(stream.peer, { moving: input !== null && stream.state === "streaming" }));
  if ($("details").open) showServerNumbers(await serverNumbers(stream.sessionId), stream.sessionId, meter.stats);
  if (!document.hidden && performance.now() - lastFrameAt > READING_MS) await lookForReload();
  if (stream.isLive) watchPicture();
}, READING_MS);

/** Of all streams, or, where only the operator is told of those, of this one; null when nothing answers. */
async function serverNumbers(id) {
  const own = async () => ({ sessions: { [id]: await api.session(id) } });
  return api.metrics().catch(own).catch(() => null);
}

/** Of its own: what the other readings ask may wait for a server that is gone. */
let sessionAskedAt = -Infinity;
setInterval(() => {
  const now = performance.now();
  if (stream.state !== "streaming" || now - Math.max(lastFrameAt, sessionAskedAt) < SESSION_ASKED_MS) return;
  sessionAskedAt = now;
  stream.lookForSession();
}, SESSION_ASKED_MS / 4);

/** The stream's own pipeline is loaded again, in another size for example: the server sends no message then. */
async function lookForReload() {
  const isSame = (status) => status?.pipeline_id === stream.plan?.pipelineId;
  const now = await api.status().catch(() => null);
  if (stream.state !== "streaming" || now?.loading_pipeline_id !== stream.plan.pipelineId) return;
  stream.replacing({ status: "loading", pipeline_id: now.loading_pipeline_id });
  while (stream.state === "replacing") {
    await new Promise((resolve) => setTimeout(resolve, READING_MS));
    const status = await api.status().catch(() => null);
    if (status?.status !== "loaded" || !isSame(status)) continue;
    dismiss("pipeline");
    loaded = status;
    stream.goOn();
  }
}

hideToken();
showNumbers(null);
showServerNumbers(null);
render();
await refreshServer();
controls.setCameras(await listCameras().catch(() => []));
await Promise.all([show.refresh(), comeBack()]);

/** After a reload: a stream that a cue list has kept is gone on with. */
async function comeBack() {
  const streamId = stored();
  const { state } = streamId ? await api.playing(streamId).catch(() => ({})) : {};
  if (state !== "playing" || !loaded || stream.isBusy) return;
  controls.choose(loaded.pipeline_id);
  const plan = await makePlan();
  if (plan) await stream.comeBack(plan, streamId);
}
