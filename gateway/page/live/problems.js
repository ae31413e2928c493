// What goes wrong with a stream, said above the picture with what can be done about it.

import { problemText, Unreachable } from "../api.js";
import { dismiss, notify } from "../notices.js";
import { SourceError } from "../source.js";
import { StreamError } from "../stream.js";

const AGAIN = { lost: "Reconnect", stopped: "Start again", load: "Try again", connect: "Try again" };

/** start(): tries again. */
export function showProblem(error, start) {
  if (error instanceof SourceError) return notify("source", { title: error.title, text: error.message });
  if (error instanceof StreamError) {
    const again = AGAIN[error.kind];
    return notify("problem", { title: error.title, text: error.message, actions: again ? [{ label: again, run: start }] : [] });
  }
  const isAway = error instanceof Unreachable;
  if (!isAway) console.error(error);
  notify("problem", {
    title: isAway ? "The server does not answer" : "Something went wrong",
    text: isAway ? `Check that wanstream runs at ${location.origin} and that the network is up.` : error.message,
    actions: [{ label: "Try again", run: start }],
  });
}

/** Says what the server tells of a stream's changes. stop(): ends the stream. */
export function tellOfRefusals(stream, stop) {
  stream.addEventListener("retry", ({ detail: { reason } }) => {
    notify("retry", {
      title: stream.state === "waiting" ? "The server is full" : "Connection lost",
      text: `${reason} It is tried again by itself.`,
      actions: [
        { label: "Try now", run: () => stream.retryNow() },
        { label: "Stop", run: stop },
      ],
    });
  });
  stream.addEventListener("refused", ({ detail: problems }) => sayRefused(problems));
  stream.addEventListener("resumed", () => dismiss("silent"));
  stream.addEventListener("warnings", ({ detail }) => {
    notify("warnings", { level: "info", title: "Loaded with a remark", text: detail.join("\n") });
  });
}

function sayRefused(problems) {
  const hints = problems.filter(({ type }) => type === "plain_words");
  if (hints.length) {
    notify("hint", { level: "info", title: "About your prompt", text: hints.map(({ msg }) => `${msg}.`).join("\n") });
  }
  const silent = problems.find(({ type }) => type === "no_input");
  if (silent) notify("silent", { title: "No input picture arrives", text: silent.msg });
  const refused = problems.filter(({ type }) => !["plain_words", "no_input"].includes(type));
  if (!refused.length) return;
  notify("refused", { title: "The server refused a change", text: refused.map(problemText).join("\n") });
}

/** message: about the pipeline that someone else loads. */
export function sayLoading(name) {
  notify("pipeline", {
    level: "info",
    title: `${name} is being loaded`,
    text: "Someone else loads it. This server holds one pipeline at a time. Your stream waits and goes on with it.",
  });
}

/**
 * Someone else has loaded another pipeline: the stream goes on with it, or needs a decision.
 * names: {now, before, chosen}; inMode: its input mode where that is news; isChosen: whether the settings are its own.
 */
export function sayReplaced({ names, inMode, isChosen, isUnsuitable, useIt, goBack }) {
  const actions = [
    { label: `Use ${names.now} here`, run: useIt },
    { label: `Back to ${names.before}`, run: goBack },
  ];
  const one = "Someone else loaded it. This server holds one pipeline at a time.";
  if (isUnsuitable) {
    const text = `${one} It works on an input video and your stream has none, so there is no picture. Use it with a camera or a file, or load your pipeline again.`;
    return notify("pipeline", { title: `${names.now} needs an input video`, text, actions });
  }
  const panel = isChosen ? "" : ` The settings on this page are still those of ${names.chosen}.`;
  notify("pipeline", {
    level: "info",
    title: `${names.now} took the place of your pipeline`,
    text: `${one} Your stream goes on with it${inMode ? ` in ${inMode} mode` : ""}.${panel}`,
    actions: isChosen ? [] : actions,
  });
}
