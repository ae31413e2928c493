// Runs in every page before its own scripts: keeps a thumbnail of each decoded picture of each incoming stream.
// recorder.streams: one list per connection of { time (s, of the stream), width, height, pixels (RGBA, 20 x 16) }.

window.recorder = { streams: [] };

{
  const [WIDTH, HEIGHT, KEPT] = [20, 16, 2000];

  async function keep(track, pictures) {
    const context = new OffscreenCanvas(WIDTH, HEIGHT).getContext("2d", { willReadFrequently: true });
    const reader = new MediaStreamTrackProcessor({ track, maxBufferSize: 60 }).readable.getReader();
    for (;;) {
      const { value: frame, done } = await reader.read();
      if (done || pictures.length >= KEPT) return;
      context.drawImage(frame, 0, 0, WIDTH, HEIGHT);
      const pixels = [...context.getImageData(0, 0, WIDTH, HEIGHT).data];
      pictures.push({ time: frame.timestamp / 1e6, width: frame.displayWidth, height: frame.displayHeight, pixels });
      frame.close();
    }
  }

  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) {
      super(...options);
      const pictures = [];
      window.recorder.streams.push(pictures);
      this.addEventListener("track", ({ track }) => track.kind === "video" && keep(track, pictures));
    }
  };
}
