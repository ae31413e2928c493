// The editor of the denoising schedule: a few numbers from 1000 (pure noise) down to 1.

import { tidySteps } from "./fields.js";

const MAX_STEPS = 10;

export class StepEditor {
  #steps = [];
  #onChange;
  #list = document.getElementById("steps");
  #line = document.getElementById("steps-line");
  #template = document.getElementById("step-item");

  /** onChange(steps): called with a valid, descending list. */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  set(steps) {
    this.#steps = [...steps];
    this.#render();
  }

  #change(steps) {
    const tidy = tidySteps(steps);
    const changed = tidy.length > 0 && tidy.join() !== this.#steps.join();
    if (changed) this.#steps = tidy;
    this.#render(); // also puts back what was not valid
    if (changed) this.#onChange([...tidy]);
  }

  #render() {
    const focused = document.activeElement?.closest?.("#steps") ? document.activeElement.id : null;
    this.#list.replaceChildren(...this.#steps.map((step, index) => this.#item(step, index)));
    if (this.#steps.length < MAX_STEPS) this.#list.append(this.#adder());
    this.#line.replaceChildren(...this.#steps.map(dot));
    if (focused) document.getElementById(focused)?.focus();
  }

  #item(step, index) {
    const item = this.#template.content.firstElementChild.cloneNode(true);
    const [label, input, remove] = ["label", "input", "button"].map((tag) => item.querySelector(tag));
    input.id = `step-${index + 1}`;
    label.htmlFor = input.id;
    label.textContent = `Step ${index + 1}`;
    input.value = step;
    input.addEventListener("change", () => this.#change(this.#steps.with(index, input.valueAsNumber)));
    remove.id = `step-remove-${index + 1}`;
    remove.setAttribute("aria-label", `Remove step ${index + 1}`);
    remove.disabled = this.#steps.length === 1;
    remove.addEventListener("click", () => this.#change(this.#steps.toSpliced(index, 1)));
    return item;
  }

  #adder() {
    const item = document.createElement("li");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", id: "step-add", textContent: "Add step" });
    button.addEventListener("click", () => this.#change([...this.#steps, widestGap(this.#steps)]));
    item.append(button);
    return item;
  }
}

/** The middle of the largest gap between two steps, or below the last one. */
function widestGap(steps) {
  const ends = [...steps, 0];
  const gaps = steps.map((step, index) => ({ size: step - ends[index + 1], middle: (step + ends[index + 1]) / 2 }));
  return Math.round(gaps.reduce((best, gap) => (gap.size > best.size ? gap : best)).middle);
}

function dot(step) {
  const mark = document.createElement("i");
  mark.style.left = `${(1 - step / 1000) * 100}%`;
  return mark;
}
