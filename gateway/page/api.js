// The server's HTTP interface, and its errors as sentences.

/** The server answered with an error. `retryAfterS` is set when it says when to try again. */
export class ApiError extends Error {
  constructor(status, text, retryAfterS = null) {
    super(text);
    this.name = "ApiError";
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** No answer of the server's at all, or none in time: it is down, or the network is, or the router finds no server. */
export class Unreachable extends Error {
  constructor(cause) {
    super("The server does not answer.", { cause });
    this.name = "Unreachable";
    this.title = "Server unreachable";
  }
}

// Beyond these a request counts as unanswered. Answers come within milliseconds; an offer waits for the server's
// own candidates, an unload for the engines.
const TIMEOUT_MS = 6_000;
const STATUS_TIMEOUT_MS = 3_000; // asked again and again: what it says must be the truth of now
const LOAD_TIMEOUT_MS = 10_000;
const OFFER_TIMEOUT_MS = 15_000;
const UNLOAD_TIMEOUT_MS = 90_000;
const ADAPT_TIMEOUT_MS = 60_000; // between two chunks, and a large file is read
const PREPARATION_TIMEOUT_MS = 30_000; // the server asks the hub for the sizes of many files
const INSTALL_TIMEOUT_MS = 3_600_000;
const UPLOAD_BYTES_PER_MS = 50; // a slow line
const NO_SERVER = [502, 503, 504]; // what routers say when they reach none; the server's own 503 has a JSON body

/** `detail` is a string, or a list of validation problems. */
function sentence(detail, status) {
  if (typeof detail === "string" && detail) return detail;
  if (Array.isArray(detail)) return detail.map(problemText).join("\n");
  return `The server answered with status ${status}.`;
}

/** One validation problem, of a 422 answer or of a `parameter_error` message. */
export function problemText(problem) {
  const where = (problem.loc ?? []).filter((part) => !["body", "initialParameters"].includes(part)).join(".");
  return where ? `${where}: ${problem.msg}` : problem.msg;
}

/** Where a path of the server's is, when the page itself may stand below one. */
export const at = (path) => new URL(`.${path}`, document.baseURI).href;

async function request(method, path, { body, file, signal, keepalive, timeoutMs = TIMEOUT_MS } = {}) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), timeoutMs);
  const abort = () => controller.abort();
  signal?.addEventListener("abort", abort);
  if (signal?.aborted) abort();
  let response;
  let text;
  try {
    response = await fetch(at(path), {
      method,
      keepalive,
      cache: "no-store",
      signal: controller.signal,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? file : typeof body === "string" ? body : JSON.stringify(body),
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable(error);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
  const answer = parse(text);
  if (NO_SERVER.includes(response.status) && answer?.detail === undefined) {
    throw new Unreachable(new Error(`A router answered with status ${response.status}.`));
  }
  if (!response.ok) {
    const retryAfter = Number.parseFloat(response.headers.get("Retry-After") ?? "");
    throw new ApiError(
      response.status,
      sentence(answer?.detail, response.status),
      Number.isFinite(retryAfter) ? retryAfter : null,
    );
  }
  return answer;
}

function parse(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return null; // a proxy's error page; the status says enough
  }
}

const named = (kind, name) => `/api/v1/${kind}/${encodeURIComponent(name)}`;
const ofStream = (id, rest) => `/api/v1/streams/${encodeURIComponent(id)}/${rest}`;
const session = (id) => `/api/v1/webrtc/offer/${encodeURIComponent(id)}`;

export const api = {
  hardware: () => request("GET", "/api/v1/hardware/info"),
  schemas: async () => (await request("GET", "/api/v1/pipelines/schemas")).pipelines,
  status: (signal) => request("GET", "/api/v1/pipeline/status", { signal, timeoutMs: STATUS_TIMEOUT_MS }),
  load: (id, params, signal) =>
    request("POST", "/api/v1/pipeline/load", {
      body: { pipeline_ids: [id], load_params: params },
      signal,
      timeoutMs: LOAD_TIMEOUT_MS,
    }),
  unload: () => request("POST", "/api/v1/pipeline/unload", { timeoutMs: UNLOAD_TIMEOUT_MS }),
  /** streamId: of somebody else's stream, whose token may be all that this page has. */
  iceServers: (signal, streamId) =>
    request("GET", `/api/v1/webrtc/ice-servers${streamId ? `?stream=${encodeURIComponent(streamId)}` : ""}`, { signal }),
  /** join: {streamId, role, label} of a stream that is there already. */
  offer: (description, initialParameters, signal, join = {}) =>
    request("POST", "/api/v1/webrtc/offer", {
      body: { sdp: description.sdp, type: description.type, initialParameters, ...join },
      signal,
      timeoutMs: OFFER_TIMEOUT_MS,
    }),
  addCandidates: (id, candidates) => request("PATCH", session(id), { body: { candidates } }),
  /** Also works while the page is being closed. */
  closeSession: (id, graceS = 0) => request("DELETE", session(id) + (graceS ? `?grace_s=${graceS}` : ""), { keepalive: true }),
  stream: (id) => request("GET", `/api/v1/streams/${encodeURIComponent(id)}`),
  /** Numbers of one session; 404 when the server does not have it. */
  session: (id) => request("GET", `/api/v1/session/${encodeURIComponent(id)}/metrics`, { timeoutMs: STATUS_TIMEOUT_MS }),
  metrics: () => request("GET", "/api/v1/session/metrics"),
  modelStatus: (id) => request("GET", `/api/v1/models/status?pipeline_id=${encodeURIComponent(id)}`),
  preparation: (id) =>
    request("GET", `/api/v1/pipeline/prepare?pipeline_id=${encodeURIComponent(id)}`, {
      timeoutMs: PREPARATION_TIMEOUT_MS,
    }),
  downloadModels: (id) => request("POST", "/api/v1/models/download", { body: { pipeline_id: id } }),
  takes: async () => (await request("GET", "/api/v1/recordings")).takes,
  take: (id) => request("GET", `/api/v1/takes/${encodeURIComponent(id)}`),
  deleteTake: (id) => request("DELETE", `/api/v1/takes/${encodeURIComponent(id)}`),
  looks: () => request("GET", "/api/v1/looks"),
  /** text: as it was exported. */
  putLooks: (text) => request("PUT", "/api/v1/looks", { body: text }),
  putLook: (name, look) => request("PUT", named("looks", name), { body: look }),
  moveLook: (name, to) => request("POST", `${named("looks", name)}/move`, { body: { to } }),
  deleteLook: (name) => request("DELETE", named("looks", name)),
  recallLook: (id, name) => request("POST", ofStream(id, `looks/${encodeURIComponent(name)}`)),
  cues: () => request("GET", "/api/v1/cues"),
  cueList: (name) => request("GET", named("cues", name)),
  putCues: (name, list) => request("PUT", named("cues", name), { body: list }),
  deleteCues: (name) => request("DELETE", named("cues", name)),
  playCues: (id, name, options) => request("POST", ofStream(id, `cues/${encodeURIComponent(name)}`), { body: options }),
  playing: (id) => request("GET", ofStream(id, "cues")),
  stopCues: (id) => request("DELETE", ofStream(id, "cues")),
  midi: () => request("GET", "/api/v1/midi"),
  putMidi: (midi) => request("PUT", "/api/v1/midi", { body: { midi } }),
  tempo: () => request("GET", "/api/v1/tempo/status"),
  enableTempo: (tempo) => request("POST", "/api/v1/tempo/enable", { body: tempo }),
  disableTempo: () => request("POST", "/api/v1/tempo/disable"),
  setTempo: (tempo) => request("POST", "/api/v1/tempo/set_tempo", { body: tempo }),
  tapTempo: () => request("POST", "/api/v1/tempo/tap"),
  /** lines: as of a take; by the chunk. What was replayed before ends. */
  replay: async (id, lines) => {
    await request("DELETE", ofStream(id, "replay"));
    return request("POST", ofStream(id, "replay"), { body: { events: lines, clock: "chunk" } });
  },
  /** With the same seed, size and engines a take made from text is shown again picture by picture. */
  replayTake: async (id, take) => {
    await request("DELETE", ofStream(id, "replay"));
    return request("POST", ofStream(id, "replay"), { body: { take, clock: "chunk", reset: true } });
  },
  stopReplay: (id) => request("DELETE", ofStream(id, "replay")),
  createStream: (options) => request("POST", "/api/v1/streams", { body: options, timeoutMs: LOAD_TIMEOUT_MS }),
  deleteStream: (id) => request("DELETE", named("streams", id), { keepalive: true }),
  loras: async () => (await request("GET", "/api/v1/loras")).lora_files,
  installLora: (url) => request("POST", "/api/v1/loras", { body: { url }, timeoutMs: INSTALL_TIMEOUT_MS }),
  uploadLora: (file) =>
    request("POST", `/api/v1/lora/upload?filename=${encodeURIComponent(file.name)}`, {
      file,
      timeoutMs: TIMEOUT_MS + file.size / UPLOAD_BYTES_PER_MS,
    }),
  addLora: (path, scale) =>
    request("POST", "/api/v1/pipeline/loras", { body: { path, scale }, timeoutMs: ADAPT_TIMEOUT_MS }),
  removeLora: (path) =>
    request("DELETE", `/api/v1/pipeline/loras?path=${encodeURIComponent(path)}`, { timeoutMs: ADAPT_TIMEOUT_MS }),
  mergedSets: async () => (await request("GET", "/api/v1/pipeline/merged-sets")).sets,
  deleteMergedSets: () => request("DELETE", "/api/v1/pipeline/merged-sets", { timeoutMs: ADAPT_TIMEOUT_MS }),
  images: async () => (await request("GET", "/api/v1/assets?type=image")).assets,
  uploadImage: (file) =>
    request("POST", `/api/v1/assets?filename=${encodeURIComponent(file.name)}`, {
      file,
      timeoutMs: TIMEOUT_MS + file.size / UPLOAD_BYTES_PER_MS,
    }),
};
