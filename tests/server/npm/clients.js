// The clients of others, as a page uses them. Each function resolves when its client has done its requests.
import { WHIPClient as EyevinnPublisher } from "@eyevinn/whip-web-client";
import { WebRTCPlayer } from "@eyevinn/webrtc-player";
import { WHEPClient } from "whip-whep/whep.js";
import { WHIPClient } from "whip-whep/whip.js";

const camera = () => navigator.mediaDevices.getUserMedia({ audio: true, video: true });

window.publish = {
  "whip-whep": async (url, token) => {
    const peer = new RTCPeerConnection();
    const stream = await camera();
    stream.getTracks().forEach((track) => peer.addTransceiver(track, { direction: "sendonly", streams: [stream] }));
    const client = new WHIPClient();
    await client.publish(peer, url, token);
    window.end = () => client.stop();
  },
  eyevinn: async (url, token) => {
    const client = new EyevinnPublisher({ endpoint: url, opts: { authkey: token } });
    await client.setIceServersFromEndpoint();
    await client.ingest(await camera());
    window.end = () => client.destroy();
  },
};

window.play = {
  "whip-whep": async (url, token) => {
    const peer = new RTCPeerConnection();
    peer.addTransceiver("audio", { direction: "recvonly" });
    peer.addTransceiver("video", { direction: "recvonly" });
    peer.ontrack = (event) => {
      if (event.track.kind === "video") document.querySelector("video").srcObject = new MediaStream([event.track]);
    };
    const client = new WHEPClient();
    await client.view(peer, url, token);
    window.end = () => client.stop();
  },
  eyevinn: async (url, token) => {
    const player = new WebRTCPlayer({ video: document.querySelector("video"), type: "whep" });
    await player.load(new URL(url), `Bearer ${token}`);
    window.end = () => player.destroy();
  },
};
