// Making elements: the parts of the stage build their own, so that the page's HTML need not know them.

/** el("button", {type: "button", "aria-label": "Stop"}, "Stop"): properties where there are, else attributes. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export const button = (text, run, properties = {}) => {
  const element = el("button", { type: "button", ...properties }, text);
  element.addEventListener("click", run);
  return element;
};

/** A labelled field: the control keeps its own events. */
export function field(label, control, unit = "") {
  return el("label", { className: "inline" }, el("span", {}, label), control, unit && el("span", { className: "quiet" }, unit));
}

/** A part of the stage that can be folded: <details> with a heading. Its body is `element.body`. */
export function part(id, title, { open = false } = {}) {
  const count = el("span", { className: "quiet", id: `${id}-state` });
  const body = el("div", { className: "part-body" });
  const element = el("details", { className: "more part", id, open }, el("summary", {}, `${title} `, count), body);
  return Object.assign(element, { body, count });
}

/** A name for an address, from what people call it: "Blue hour!" -> "blue-hour"; free of those in `taken`. */
export function nameFor(title, taken) {
  const plain = title.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  const base = plain.replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 48) || "look";
  let name = base;
  for (let n = 2; taken.includes(name); n += 1) name = `${base}-${n}`;
  return name;
}

/** Offers a text as a file to save. */
export function download(name, text) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Asks for a file; resolves with its text. */
export function upload(accept = ".json,application/json") {
  const input = el("input", { type: "file", accept });
  return new Promise((resolve) => {
    input.addEventListener("change", async () => input.files[0] && resolve(await input.files[0].text()));
    input.click();
  });
}
