// Who else sees the stream: a link and a QR code for them, who is there, and who drives.

import { api, at } from "./api.js";
import { dismiss, notify } from "./notices.js";

const $ = (id) => document.getElementById(id);

/** The panel below the picture. It shows the stream of `stream`, while it has one. */
export class Share {
  #stream;
  #driver = null;

  constructor(stream) {
    this.#stream = stream;
    $("share").addEventListener("toggle", () => this.refresh());
    $("share-control").addEventListener("change", () => this.refresh());
    $("share-copy").addEventListener("click", () => this.#copy());
    $("drive-again").addEventListener("click", () => this.#ask());
    stream.addEventListener("state", () => this.#follow());
    stream.addEventListener("people", ({ detail }) => this.#receive(detail));
  }

  /** Ask the server who is there. */
  async refresh() {
    const [id, session] = [this.#stream.streamId, this.#stream.sessionId];
    if (!$("share").open || !id) return;
    try {
      const role = $("share-control").checked ? "controller" : "viewer";
      const shown = await api.stream(id);
      const url = new URL(shown.watch_url);
      if (role === "controller") url.searchParams.set("role", role);
      $("share-link").value = url.href;
      const picture = at(`/api/v1/streams/${encodeURIComponent(id)}/qr.svg?role=${role}`);
      if ($("share-code").src !== picture) $("share-code").src = picture;
      const isLocal = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
      $("share-hint").textContent = isLocal
        ? "This address is good on this machine only. Open this page by the machine's name or address in the network to share it."
        : "Whoever opens it sees this stream, as long as it runs.";
      this.#showPeople(shown.people.filter(({ sessionId }) => sessionId !== session));
    } catch (error) {
      $("share-hint").textContent = error.message;
    }
  }

  #showPeople(people) {
    const names = { driver: "drives", controller: "may ask for control", viewer: "watches" };
    const items = people.map(({ label, role }) => {
      const item = document.createElement("li");
      item.textContent = `${label} ${names[role]}`;
      return item;
    });
    $("share-people").replaceChildren(...items);
    $("share-nobody").hidden = items.length > 0;
  }

  #follow() {
    const isThere = this.#stream.isConnected;
    $("share").hidden = !isThere;
    if (isThere) this.refresh();
    else this.#setDriver(null);
  }

  #receive(message) {
    if (message.type === "viewers_changed") {
      const { streamId, sessionId } = this.#stream;
      const others = message.viewers - (streamId === sessionId ? 0 : 1); // a page that has come back counts as one
      $("share-count").textContent = others > 0 ? `(${others} watching)` : "";
    }
    if (message.type === "driver_changed") this.#setDriver(message.driver);
    if (message.type === "control_requested") {
      notify("control", {
        level: "info",
        title: `${message.label} asks for control`,
        text: "Whoever has control changes prompts and settings; your changes are refused then. You can ask for it back.",
        actions: [
          { label: "Hand over", run: () => this.#stream.send({ hand_over: message.sessionId }, { now: true }) },
          { label: "Not now", run: () => {} },
        ],
      });
    }
    this.refresh();
  }

  #setDriver(driver) {
    dismiss("control");
    this.#driver = driver;
    const isElsewhere = this.#stream.isConnected && driver !== null && driver !== this.#stream.sessionId;
    $("driven").hidden = !isElsewhere;
    if (this.#stream.isConnected && driver === null) this.#ask(); // whoever had it has gone
  }

  #ask() {
    this.#stream.send({ take_control: true }, { now: true });
  }

  async #copy() {
    $("share-link").select();
    try {
      await navigator.clipboard.writeText($("share-link").value);
    } catch {
      document.execCommand("copy"); // where the page has no secure context
    }
  }
}
