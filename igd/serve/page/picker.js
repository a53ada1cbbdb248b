// The category: a text field that searches a list (the ARIA combobox pattern).

import { count } from "./words.js";

const STATES = {
  loading: "model is being loaded", failed: "model cannot be used",
  stale: "newest version cannot be used, an earlier one answers", ready: "",
};

export class Picker {
  /** @param chosen told the category that a person chose */
  constructor(input, list, note, chosen) {
    Object.assign(this, { input, list, note, chosen });
    Object.assign(this, { value: null, details: [], query: "", active: -1 });
    input.addEventListener("focus", () => input.select());
    input.addEventListener("click", () => this.#open(""));
    input.addEventListener("input", () => this.#open(input.value));
    input.addEventListener("keydown", (event) => this.#key(event));
    input.addEventListener("blur", () => this.#close());
    list.addEventListener("mousedown", (event) => event.preventDefault());  // keeps the focus
    list.addEventListener("click", (event) => this.#choose(event.target.closest("li")));
  }

  /** What is known of the category that was picked. */
  get detail() {
    return this.details.find((detail) => detail.category === this.value);
  }

  /** Takes what the endpoint says; picks `wanted`, or the only category there is. */
  update(details, wanted) {
    this.details = details;
    const usable = details.filter(answers);
    if (!this.detail) {
      const asked = usable.find((detail) => detail.category === wanted);
      this.value = (asked ?? (usable.length === 1 ? usable[0] : null))?.category ?? null;
    }
    this.input.placeholder = details.length ? "Type to search …" : "none yet";
    if (this.list.hidden) this.#close();
    else this.#open(this.query);
    this.#tell();
  }

  #tell() {
    const detail = this.detail;
    if (!detail) {
      const loading = this.details.filter((one) => one.state === "loading").length;
      this.note.textContent = loading ? `${count(loading, "model")} being loaded …`
        : this.details.length ? count(this.details.length, "category", "categories")
          : "The endpoint has no models.";
      return;
    }
    const state = STATES[detail.state] ?? detail.state;
    this.note.textContent = [`preset ${detail.preset}`, detail.model_version, state]
      .filter(Boolean).join(" · ");
    this.note.classList.toggle("odd", detail.state !== "ready");
  }

  #open(text) {
    this.query = text;
    const words = text.trim().toLowerCase();
    const found = this.details.filter((detail) => detail.category.toLowerCase().includes(words));
    this.list.replaceChildren(...found.map((detail, i) => option(detail, i, this.value)));
    if (!found.length) this.list.append(nothing(text));
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
    this.#point(words ? 0 : found.findIndex((detail) => detail.category === this.value));
  }

  #close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.value = this.value ?? "";
    this.#point(-1);
  }

  #point(index) {
    const options = [...this.list.querySelectorAll("[role=option][id]")];
    this.active = options.length ? Math.min(index, options.length - 1) : -1;
    options.forEach((one, i) => one.classList.toggle("active", i === this.active));
    const active = options[this.active];
    active?.scrollIntoView({ block: "nearest" });
    if (active) this.input.setAttribute("aria-activedescendant", active.id);
    else this.input.removeAttribute("aria-activedescendant");
  }

  #key(event) {
    const { key } = event;
    if (key === "ArrowDown" || key === "ArrowUp") {
      if (this.list.hidden) this.#open("");
      else this.#point(Math.max(0, this.active + (key === "ArrowDown" ? 1 : -1)));
    } else if (key === "Enter" && !this.list.hidden) {
      this.#choose(this.list.querySelector(".active"));
    } else if (key === "Escape") {
      this.#close();
    } else {
      return;
    }
    event.preventDefault();
  }

  #choose(item) {
    if (!item?.id || item.getAttribute("aria-disabled") === "true") return;
    this.value = item.dataset.category;
    this.#close();
    this.#tell();
    this.chosen(this.value);
  }
}

function answers(detail) {
  return detail.state === "ready" || detail.state === "stale";
}

function option(detail, index, value) {
  const item = document.createElement("li");
  const state = document.createElement("small");
  Object.assign(item, { id: `category-${index}`, textContent: detail.category });
  item.setAttribute("role", "option");
  item.dataset.category = detail.category;
  item.setAttribute("aria-selected", String(detail.category === value));
  item.setAttribute("aria-disabled", String(!answers(detail)));
  state.textContent = detail.state === "stale" ? "earlier version"
    : STATES[detail.state] || detail.preset;
  item.append(" ", state);
  return item;
}

function nothing(text) {
  const item = document.createElement("li");
  item.setAttribute("role", "option");
  item.setAttribute("aria-disabled", "true");
  item.textContent = text ? `nothing like “${text}”` : "no categories";
  return item;
}
