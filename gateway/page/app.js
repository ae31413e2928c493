// The page: connects the settings panel, the stream and what is shown.

import { api } from "./api.js";
import { ControlView } from "./control.js";
import { Controls } from "./controls.js";
import { ReferenceImages } from "./images.js";
import { findAgain, remember } from "./live/comeback.js";
import { Input } from "./live/input.js";
import { sayLoading, sayReplaced, showProblem as say, tellOfRefusals } from "./live/problems.js";
import { Server } from "./live/server.js";
import { PictureWatch } from "./live/watch_picture.js";
import { Loras } from "./loras.js";
import { Models } from "./models.js";
import { dismiss, notify } from "./notices.js";
import { bindFullscreen, saveSnapshot } from "./screen.js";
import { Share } from "./share.js";
import { Settings } from "./settings.js";
import { Examples } from "./stage/examples.js";
import { Show } from "./stage/show.js";
import { Takes } from "./takes.js";
import { Stream } from "./stream.js";
import { describe, hideToken, Progress, showLoaded, showMark, showPlaceholder, showState } from "./view.js";

const $ = (id) => document.getElementById(id);
const MARKS = {
  paused: "Paused",
  opening: "Last picture",
  interrupted: "Last picture",
  reconnecting: "Last picture",
  connecting: "Last picture",
  replacing: "Last picture",
  loading: "Last picture",
};

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
const output = $("output");
const server = new Server(stream, controls, models);
const input = new Input(settings, controls);
const watch = new PictureWatch(stream, input, server, { output, preview: $("preview") });
const examples = new Examples(stream, showExample);
$("models").after(examples.element);
const show = new Show(stream, controls, output, {
  pause: () => stream.isLive && togglePause(),
  record: () => $("record").click(),
  snapshot: () => $("snapshot").click(),
  fullscreen: () => $("fullscreen").click(),
});

let opening = false; // the camera is being asked for
let problem = null; // what ended the last stream

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
    return watch.meter.stats;
  },
};

// --- State ---------------------------------------------------------------------------------------------------

function currentState() {
  if (opening) return "opening";
  if (stream.isLive && stream.interrupted) return "interrupted";
  if (stream.isBusy) return stream.state;
  if (server.online === null) return "starting";
  return server.online ? stream.state : "offline";
}

/** Whether a picture is there that stays while something else is made ready. */
const hasPicture = () => output.srcObject !== null && output.videoWidth > 0;

function render() {
  const state = currentState();
  const { entry } = controls;
  const { online, loaded, locked } = server;
  showState(state, entry?.name);
  $("screen").classList.toggle("holds", hasPicture());
  const mark = input.isChanging ? MARKS.opening : MARKS[state];
  showMark(show.output.mark || (hasPicture() && mark));
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
  renderPlaceholder(state, entry);
}

function renderPlaceholder(state, entry) {
  const { online, loading } = server;
  if (!entry) {
    const title = online === false ? "Server unreachable" : online ? "No pipeline available" : "";
    const text = online === false ? "Looking for it every few seconds." : online ? "The list on this page says why." : "";
    return showPlaceholder(title, text);
  }
  const source = settings.source === "camera" ? "stream your camera" : "stream a video file";
  const text = `Press Start to ${controls.mode === "text" ? "make video from text" : source}.`;
  // In full screen the messages above the picture cannot be seen.
  if (state === "error" && problem && document.fullscreenElement) return showPlaceholder(problem.title, problem.message);
  if (state === "unsuitable") return showPlaceholder("No picture", "The loaded pipeline needs an input video; the message above says more.");
  if (state === "offline") return showPlaceholder(entry.name, "The server does not answer.");
  if (loading?.loading_pipeline_id === entry.id) {
    return showPlaceholder(`Loading ${entry.name}`, `${describe(loading.loading_stage ?? "").text} ${text}`);
  }
  return showPlaceholder(entry.name, text);
}

/** What guides the pictures beside the prompts. */
function renderVace() {
  const { entry } = controls;
  const { loaded } = server;
  const isLoaded = stream.isConnected && Boolean(loaded?.load_params?.vace_enabled) && loaded.pipeline_id === entry?.id;
  const values = entry ? controls.values : {};
  const takesInput = isLoaded && stream.plan?.mode === "video" && values.vace_use_input_video !== false;
  controlView.show({ streamId: takesInput ? stream.sessionId : null, values, image: images.words, isLoaded });
}

function renderLoaded(entry) {
  const { loaded } = server;
  const isChosen = Boolean(loaded) && loaded.pipeline_id === entry?.id;
  const changed = isChosen && (controls.differsFrom(loaded.load_params) || loras.differs);
  showLoaded(server, { entry, isChosen, changed, isConnected: stream.isConnected, nameOf: (id) => controls.nameOf(id) });
  $("defaults").hidden = !entry || !controls.mayReset;
}

// --- Actions -------------------------------------------------------------------------------------------------

const showProblem = (error) => say(error, start);

/** Another camera or file while streaming. */
async function changeInput() {
  await input.listCameras();
  if (!stream.isLive) return render();
  try {
    await input.change(stream);
    dismiss("source");
  } catch (error) {
    showProblem(error);
  }
}

/** Opens the input, so that a missing camera is known before minutes of loading; null when that failed. */
async function makePlan() {
  dismiss("problem", "source", "refused", "warnings", "no-picture", "network", "pipeline", "silent");
  opening = true;
  render();
  try {
    const track = await input.open();
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
  else if (!stream.isBusy) input.close();
}

/** After a reload: a stream that goes on is gone on with. */
async function comeBack() {
  const streamId = await findAgain();
  if (streamId === null || !server.loaded || stream.isBusy) return;
  controls.choose(server.loaded.pipeline_id);
  const plan = await makePlan();
  if (plan) await stream.comeBack(plan, streamId);
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
  input.close();
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
  await server.refresh();
}

async function switchTo(id) {
  controls.choose(id);
  await load();
}

/** The pipeline stays, but input mode or defaults changed under a running stream. */
async function applyMode() {
  try {
    if (stream.plan.mode !== controls.mode) await input.change(stream);
    stream.plan.mode = controls.mode;
    stream.send(streamParameters(), { now: true });
  } catch (error) {
    showProblem(error);
  }
}

/** Someone else loads a pipeline, or has loaded one. */
async function tellOfPipeline({ status, pipeline_id: id, modes, input_mode: mode, before }) {
  dismiss("no-picture", "network", "silent", "refused");
  watch.begin();
  const name = controls.nameOf(id);
  if (status === "loading") {
    progress.stage(`Loading ${name}`);
    sayLoading(name);
    return server.refresh();
  }
  await server.refresh();
  if (server.loaded?.pipeline_id === id && stream.plan) stream.plan.loadParams = server.loaded.load_params;
  sayReplaced({
    names: { now: name, before: controls.nameOf(before.pipelineId), chosen: controls.nameOf(settings.pipeline) },
    inMode: modes.length > 1 || before.mode !== mode ? mode : null,
    isChosen: settings.pipeline === id,
    isUnsuitable: stream.state === "unsuitable",
    useIt: () => switchTo(id),
    goBack: () => switchTo(before.pipelineId),
  });
}

// --- Events --------------------------------------------------------------------------------------------------

stream.addEventListener("state", ({ detail: state }) => {
  if (stream.isLive) remember(stream);
  const underWay = stream.isBusy && !stream.isLive;
  if (underWay && ["loading", "waiting", "reconnecting", "connecting", "replacing"].includes(state)) progress.start();
  if (!underWay || state === "unsuitable") progress.stop();
  if (underWay && hasPicture()) show.held.hold("switching");
  else show.held.release("switching");
  if (!stream.isBusy || state === "connecting") takes.streamEnded();
  if (!stream.isBusy) {
    input.close();
    output.srcObject = null;
    show.held.clear();
    watch.reset();
  }
  if (state !== "reconnecting" && state !== "waiting") dismiss("retry");
  render();
  if (!stream.isBusy) server.refresh();
});
for (const type of ["interrupted", "loaded"]) stream.addEventListener(type, render);
stream.addEventListener("stage", ({ detail }) => progress.stage(detail));
stream.addEventListener("media", ({ detail }) => {
  watch.meter.reset();
  watch.begin();
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
stream.addEventListener("retry", ({ detail: { inS, reason } }) => progress.countdown(reason, inS));
tellOfRefusals(stream, stop);
stream.addEventListener("recording", ({ detail }) => {
  takes.changed(detail);
  if (detail.error) notify("recording", { title: "The recording has ended", text: detail.error });
});
stream.addEventListener("pipeline", ({ detail }) => tellOfPipeline(detail));
stream.addEventListener("changed", ({ detail }) => {
  controls.adopt(detail);
  images.adopt(detail);
  renderVace();
});

server.addEventListener("change", render);
input.addEventListener("change", render);
input.addEventListener("lost", changeInput);
document.addEventListener("wanstream-mark", render);
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
  else if (images.isChosen && !server.locked) controls.useVace();
  renderVace();
});
loras.addEventListener("scale", ({ detail }) => stream.send(detail));
for (const part of [loras, controls]) part.addEventListener("load", render);
models.addEventListener("downloaded", () => server.readPipelines().then(render, showProblem));
controls.addEventListener("source", changeInput);
controls.addEventListener("vace", () => {
  if (stream.isLive && !server.locked) load();
});
controls.addEventListener("pipeline", () => {
  const { loaded } = server;
  if (stream.isLive && loaded?.pipeline_id === controls.entry.id && !controls.differsFrom(loaded.load_params)) applyMode();
  render();
});

$("primary").addEventListener("click", () => (opening || stream.isBusy ? stop() : start()));
$("pause").addEventListener("click", togglePause);
$("load").addEventListener("click", load);
$("unload").addEventListener("click", unload);
// An image counts for one chunk: with what it led to gone, it has to be given again.
$("reset_cache").addEventListener("click", () => stream.send({ ...streamImages(), reset_cache: true }, { now: true }));
$("snapshot").addEventListener("click", () => saveSnapshot(settings.pipeline));
bindFullscreen(render);
$("controls").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", (event) => {
  // A button that was clicked with the mouse must not catch the Space key that follows.
  if (event.detail > 0) event.target.closest?.("button, summary")?.blur();
});
// Both: some browsers fire only one of them. Leaving twice does no harm.
for (const type of ["pagehide", "beforeunload"]) window.addEventListener(type, () => stream.leave());
window.addEventListener("online", () => {
  stream.retryNow();
  if (!stream.isBusy && !opening) server.refresh();
});

hideToken();
watch.reset();
render();
await server.refresh();
server.watch(
  () => !opening && (!stream.isBusy || stream.state === "replacing" || stream.state === "unsuitable"),
  (text) => progress.stage(text),
);
await input.listCameras();
await Promise.all([show.refresh(), comeBack()]);
