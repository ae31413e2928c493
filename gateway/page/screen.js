// The picture's own tools: snapshot and full screen.

const output = document.getElementById("output");
const player = document.getElementById("player");
const REST_MS = 2_500;

/** Saves the picture as it is now, in its own size. */
export function saveSnapshot(pipelineId) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: output.videoWidth, height: output.videoHeight });
  canvas.getContext("2d").drawImage(output, 0, 0);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    const stamp = new Date().toISOString().slice(0, 19).replace(/[:T]/g, "-");
    Object.assign(link, { href: URL.createObjectURL(blob), download: `wanstream-${pipelineId}-${stamp}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else if (player.requestFullscreen) player.requestFullscreen().catch(() => {});
  else output.webkitEnterFullscreen?.(); // phones that only know full-screen video
}

/** Buttons and pointer show in full screen while the pointer moves. */
export function bindFullscreen(onChange) {
  let timer = null;
  player.addEventListener("fullscreenchange", onChange);
  player.addEventListener("pointermove", () => {
    player.classList.add("awake");
    clearTimeout(timer);
    timer = setTimeout(() => player.classList.remove("awake"), REST_MS);
  });
  document.getElementById("fullscreen").addEventListener("click", toggleFullscreen);
  document.getElementById("screen").addEventListener("dblclick", toggleFullscreen);
}
