// The list of weighted prompts.

const MAX_PROMPTS = 16;

/** Edits `prompts` ([{text, weight}]) in place; calls onChange() when a change should take effect. */
export class PromptEditor {
  #prompts;
  #onChange;
  #list = document.getElementById("prompts");
  #template = document.getElementById("prompt-row");
  #add = document.getElementById("prompt-add");
  #apply = document.getElementById("prompt-apply");
  #blend = document.getElementById("blend-field");
  #applied; // texts that took effect last

  constructor(prompts, onChange) {
    this.#prompts = prompts;
    this.#onChange = onChange;
    this.#add.addEventListener("click", () => this.#append());
    this.#apply.addEventListener("click", () => this.#commit());
    this.#applied = this.#texts();
    this.#render();
  }

  #texts() {
    return JSON.stringify(this.#prompts.map((prompt) => prompt.text));
  }

  /** Show other prompts, which are already in use. */
  replace(prompts) {
    this.#prompts.splice(0, Infinity, ...prompts);
    this.#render();
    this.markApplied();
  }

  /** Put one text in place of the first prompt, as if it had been typed. */
  choose(text) {
    this.#prompts[0].text = text;
    this.#render();
    this.#commit();
  }

  /** The prompts as they are now have been sent. */
  markApplied() {
    this.#applied = this.#texts();
    this.#apply.hidden = true;
  }

  #commit() {
    this.markApplied();
    this.#onChange();
  }

  #append() {
    this.#prompts.push({ text: "", weight: 100 });
    this.#render();
    this.#list.lastElementChild.querySelector("textarea").focus();
  }

  #remove(index) {
    this.#prompts.splice(index, 1);
    this.#render();
    this.#list.children[Math.min(index, this.#prompts.length - 1)].querySelector("textarea").focus();
    this.#commit();
  }

  #render() {
    this.#list.replaceChildren(...this.#prompts.map((prompt, index) => this.#row(prompt, index)));
    const several = this.#prompts.length > 1;
    this.#list.classList.toggle("several", several);
    this.#blend.hidden = !several;
    this.#add.disabled = this.#prompts.length >= MAX_PROMPTS;
    this.#shares();
  }

  #row(prompt, index) {
    const row = this.#template.content.firstElementChild.cloneNode(true);
    const [label, text] = [row.querySelector(".prompt-label"), row.querySelector("textarea")];
    const [weightLabel, weight] = [row.querySelector(".weight label"), row.querySelector(".weight input")];
    const remove = row.querySelector("button");
    const number = index + 1;
    text.id = `prompt-${number}`;
    weight.id = `weight-${number}`;
    label.htmlFor = text.id;
    label.textContent = `Prompt ${number}`;
    weightLabel.htmlFor = weight.id;
    weightLabel.textContent = `Weight ${number}`;
    remove.setAttribute("aria-label", `Remove prompt ${number}`);
    text.value = prompt.text;
    weight.value = prompt.weight;
    text.addEventListener("input", () => {
      prompt.text = text.value;
      this.#apply.hidden = this.#texts() === this.#applied;
    });
    text.addEventListener("keydown", (event) => {
      // Enter applies, Shift+Enter makes a new line; not while an input method composes a word.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#commit();
    });
    weight.addEventListener("input", () => {
      prompt.weight = weight.valueAsNumber;
      this.#shares();
      this.#commit();
    });
    remove.addEventListener("click", () => this.#remove(index));
    return row;
  }

  /** Weights are relative: show the share that each prompt gets. All zero counts as equal. */
  #shares() {
    const total = this.#prompts.reduce((sum, prompt) => sum + prompt.weight, 0);
    this.#prompts.forEach((prompt, index) => {
      const share = total > 0 ? prompt.weight / total : 1 / this.#prompts.length;
      const row = this.#list.children[index];
      row.querySelector("output").textContent = `${Math.round(share * 100)} %`;
    });
  }
}
