// Messages above the picture: one per key, newest first, each with what the user can do about it.

const container = document.getElementById("notices");
const template = document.getElementById("notice");
const shown = new Map(); // key -> element

/**
 * level: "error" (read out at once) or "info". text: may have several lines.
 * actions: [{label, run}]; running one removes the message.
 */
export function notify(key, { level = "error", title, text = "", actions = [] }) {
  dismiss(key);
  const element = template.content.firstElementChild.cloneNode(true);
  element.classList.add(level);
  element.dataset.key = key;
  element.querySelector(".notice-title").textContent = title;
  element.querySelector(".notice-text").textContent = text;
  element.querySelector(".notice-close").addEventListener("click", () => dismiss(key));
  element.querySelector(".notice-actions").append(
    ...actions.map(({ label, run }) => {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: label });
      button.addEventListener("click", () => {
        dismiss(key);
        run();
      });
      return button;
    }),
  );
  element.setAttribute("role", level === "error" ? "alert" : "status");
  shown.set(key, element);
  container.prepend(element);
}

export function dismiss(...keys) {
  for (const key of keys) {
    shown.get(key)?.remove();
    shown.delete(key);
  }
}
