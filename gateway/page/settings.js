// What the user has chosen, kept in localStorage so that a reload changes nothing.

const KEY = "wanstream.settings.1";

const FRESH = {
  pipeline: null,
  modes: {}, // pipeline id -> "text" or "video"
  values: {}, // "pipeline/mode" -> changed settings; what is absent follows the pipeline's defaults
  prompts: [{ text: "", weight: 100 }],
  filled: null, // the first prompt as the page has suggested it
  source: "camera",
  cameraId: "",
};

function read() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY));
    return stored && typeof stored === "object" ? stored : {};
  } catch {
    return {}; // storage is blocked or holds something else: start fresh
  }
}

export class Settings {
  constructor() {
    Object.assign(this, structuredClone(FRESH), read());
    const prompts = Array.isArray(this.prompts) ? this.prompts : [];
    this.prompts = prompts
      .filter((prompt) => typeof prompt?.text === "string")
      .map(({ text, weight }) => ({ text, weight: Number.isFinite(weight) ? weight : 100 }))
      .slice(0, 16);
    if (!this.prompts.length) this.prompts = structuredClone(FRESH.prompts);
  }

  save() {
    try {
      localStorage.setItem(KEY, JSON.stringify(this));
    } catch {
      // Private windows may forbid storage; the page works without.
    }
  }

  /** The changed settings of a pipeline in a mode; write to the result, then save(). */
  overrides(pipeline, mode) {
    return (this.values[`${pipeline}/${mode}`] ??= {});
  }

  /** Forget the changes of one pipeline in one mode. */
  forget(pipeline, mode) {
    delete this.values[`${pipeline}/${mode}`];
    this.save();
  }
}
