// Where input video comes from: a camera, or a file that plays in a loop.

/** The source cannot be used; `title` and the message are for the user. */
export class SourceError extends Error {
  constructor(title, text) {
    super(text);
    this.name = "SourceError";
    this.title = title;
  }
}

const FILE_ADVICE = "A video file works too: choose Video file under Input.";

/** Cameras that the browser lets us see; names are empty before the first permission. */
export async function listCameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices.filter((device) => device.kind === "videoinput" && device.deviceId);
}

/**
 * A live camera track. `size` ({width, height} or null): the picture the pipeline works on; the browser crops to
 * its shape, because the server would stretch.
 */
export async function openCamera(cameraId, size) {
  if (!navigator.mediaDevices?.getUserMedia) throw insecure();
  const wanted = size ?? { width: 640, height: 480 };
  const video = { width: { ideal: wanted.width }, height: { ideal: wanted.height }, frameRate: { ideal: 30, max: 60 } };
  if (size) Object.assign(video, { aspectRatio: { ideal: size.width / size.height }, resizeMode: "crop-and-scale" });
  if (cameraId) video.deviceId = { exact: cameraId };
  try {
    return await firstTrack(video);
  } catch (error) {
    if (error.name !== "OverconstrainedError" || !cameraId) throw cameraError(error);
  }
  // The chosen camera is gone: take another one rather than none.
  delete video.deviceId;
  try {
    return await firstTrack(video);
  } catch (error) {
    throw cameraError(error);
  }
}

async function firstTrack(video) {
  const stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
  const [track] = stream.getVideoTracks();
  track.contentHint = "motion";
  return track;
}

function insecure() {
  const port = location.port || "80";
  return new SourceError(
    "The browser blocks the camera on this address",
    [
      `Cameras work on https addresses and on localhost only; this page is ${location.origin}.`,
      `On the server's own machine: open http://localhost:${port}`,
      `From another one: run ssh -L ${port}:localhost:${port} ${location.hostname}, then open http://localhost:${port}`,
      `Or put https in front of the server. ${FILE_ADVICE}`,
    ].join("\n"),
  );
}

function cameraError(error) {
  switch (error.name) {
    case "NotAllowedError":
      return new SourceError(
        "Camera access was denied",
        "Allow the camera for this page: click the camera or lock symbol beside the address, choose Allow, then " +
          `press Start again. The system's privacy settings may block the browser as well. ${FILE_ADVICE}`,
      );
    case "NotFoundError":
      return new SourceError("No camera found", `Connect a camera and press Start again. ${FILE_ADVICE}`);
    case "NotReadableError":
    case "AbortError":
      return new SourceError(
        "The camera cannot be opened",
        `Another program may be using it: close that program, or choose another camera. ${FILE_ADVICE}`,
      );
    case "SecurityError":
      return insecure();
    default:
      return new SourceError("The camera cannot be used", `${error.message || error.name}. ${FILE_ADVICE}`);
  }
}

/**
 * A track that plays `file` in a loop. `size` as in openCamera; null keeps the file's own size, up to 1280 pixels wide.
 * The returned track has `stop()` extended to release the file.
 */
export async function openFile(file, size) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, loop: true, playsInline: true, src: URL.createObjectURL(file) });
  try {
    await video.play();
  } catch {
    URL.revokeObjectURL(video.src);
    throw new SourceError(
      "This file cannot be played",
      `The browser does not understand ${file.name}. MP4 (H.264) and WebM (VP8, VP9) files work.`,
    );
  }
  const canvas = document.createElement("canvas");
  const { width, height } = size ?? ownSize(video);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { alpha: false });
  let running = true;
  const draw = () => {
    if (!running) return;
    drawCover(context, video, width, height);
    video.requestVideoFrameCallback(draw);
  };
  draw();
  const [track] = canvas.captureStream(30).getVideoTracks();
  const stop = track.stop.bind(track);
  track.stop = () => {
    running = false;
    video.pause();
    URL.revokeObjectURL(video.src);
    stop();
  };
  return track;
}

function ownSize(video) {
  const scale = Math.min(1, 1280 / video.videoWidth);
  const even = (length) => Math.max(2, Math.round((length * scale) / 2) * 2);
  return { width: even(video.videoWidth), height: even(video.videoHeight) };
}

/** Fill the target, cut off what does not fit. */
function drawCover(context, video, width, height) {
  const scale = Math.max(width / video.videoWidth, height / video.videoHeight);
  const [w, h] = [video.videoWidth * scale, video.videoHeight * scale];
  context.drawImage(video, (width - w) / 2, (height - h) / 2, w, h);
}
