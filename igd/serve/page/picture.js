// The image with its heatmap and regions on top. All boxes are in source pixels.

import { Heatmap } from "./heatmap.js";
import { draw } from "./svg.js";
import { bytes, number, visible } from "./words.js";

export class Picture {
  constructor(section) {
    const find = (selector) => section.querySelector(selector);
    Object.assign(this, {
      section, stage: find(".stage"), frame: find(".frame"), image: find(".source"),
      canvas: find(".heatmap"), drawing: find(".drawing"), tags: find(".tags"),
      caption: find(".caption"), name: find(".name"), size: find(".size"), note: find(".note"),
      controls: find(".controls"), slider: find("#opacity"), percent: find("output"),
      boxes: find("#boxes"), scale: find(".scale"), scaleNote: find(".scale-note") });
    this.heatmap = new Heatmap(this.canvas);
    this.slider.addEventListener("input", () => this.#fade());
    this.boxes.addEventListener("change", () => this.#fade());
    this.#fade();
  }

  /** Shows an image; with a heatmap and regions once it has a reply. */
  show(shot) {
    const { reply } = shot;
    this.caption.hidden = false;
    this.name.textContent = visible(shot.name);
    this.size.textContent = [reply && `${reply.width} × ${reply.height} px`, bytes(shot.size)]
      .filter(Boolean).join(", ");
    this.#draw(shot);
    this.section.classList.toggle("pending", !reply && !shot.fault);
    for (const part of [this.canvas, this.drawing, this.tags]) {
      part.toggleAttribute("hidden", !reply);
    }
    for (const part of [this.controls, this.scale, this.scaleNote]) {
      part.hidden = Boolean(shot.fault);
    }
    this.note.textContent = reply ? noteOn(shot) : "";
    if (reply) this.#explain(shot);
  }

  #draw({ reply, shown, url }) {
    this.frame.hidden = !(shown || reply);
    this.stage.classList.toggle("empty", this.frame.hidden);
    if (this.frame.hidden) return;
    this.image.src = shown ? url : `data:image/png;base64,${reply.overlay}`;
    this.image.alt = reply ? `The image, ${reply.decision}` : "The image";
    const view = !reply ? null : shown ? [0, 0, reply.width, reply.height] : reply.box;
    this.#shape(view ?? [0, 0, shown.width, shown.height]);
    if (!reply) return;
    this.#outline(reply, view);
    place(this.canvas, reply.box, view);
    this.heatmap.show(shown ? reply : null);
  }

  #shape([x0, y0, x1, y1]) {
    this.frame.style.aspectRatio = `${x1 - x0} / ${y1 - y0}`;
    this.frame.style.setProperty("--ratio", (x1 - x0) / (y1 - y0));
  }

  #outline({ regions, box, width, height }, view) {
    const [left, top, right, bottom] = view;
    this.drawing.setAttribute("viewBox", `${left} ${top} ${right - left} ${bottom - top}`);
    const [x0, y0, x1, y1] = box;
    const unseen = draw("path", { class: "unseen-part", "fill-rule": "evenodd",
      d: `M0 0H${width}V${height}H0ZM${x0} ${y0}H${x1}V${y1}H${x0}Z` });
    this.drawing.replaceChildren(unseen, ...["halo", "region"].flatMap((kind) =>
      regions.map((r) => draw("rect", {
        class: kind, x: r.x0, y: r.y0, width: r.x1 - r.x0, height: r.y1 - r.y0 }))));
    this.tags.replaceChildren(...regions.map((r, i) => {
      const tag = document.createElement("span");
      tag.textContent = i + 1;
      place(tag, [r.x0, r.y0, r.x1, r.y1], view);
      return tag;
    }));
  }

  #explain({ shown, reply: { region_threshold: low, heatmap_max: high } }) {
    this.slider.disabled = !shown;
    this.scale.hidden = !shown || high <= low;
    this.scaleNote.hidden = !shown;
    if (!shown) return;
    this.scale.querySelector(".low").textContent = number(low);
    this.scale.querySelector(".high").textContent = number(high);
    this.scaleNote.textContent = high <= low
      ? `No colour: the heatmap ends at ${number(high)}; normal images reach up to ${number(low)}.`
      : `Colour begins above ${number(low)}, as high as normal images reach, and is full at this `
        + "image’s own peak.";
  }

  #fade() {
    const share = `${this.slider.value}%`;
    this.canvas.style.opacity = this.slider.value / 100;
    this.slider.setAttribute("aria-valuetext", share);
    this.percent.textContent = share;
    this.frame.classList.toggle("plain", !this.boxes.checked);
  }
}

/** Whether, and how large, this browser shows a file: {width, height}, or null. */
export async function sizeShown(url) {
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
    return { width: image.naturalWidth || 1, height: image.naturalHeight || 1 };
  } catch {
    return null;
  }
}

/** What is not to be seen in a picture itself. */
function noteOn({ shown, file, reply: { width, height, box: [x0, y0, x1, y1] } }) {
  const seen = (x1 - x0) * (y1 - y0) / (width * height);
  return [
    seen < 0.995 && `The model saw the central ${x1 - x0} × ${y1 - y0} px`
      + (shown ? "; the rest is dimmed." : "."),
    !shown && `This browser cannot show ${file.type || "this format"}: above is what the model `
      + "saw, the heatmap drawn in."].filter(Boolean).join(" ");
}

/** Puts an element over a box of source pixels, within a view of them. */
function place(element, [x0, y0, x1, y1], [left, top, right, bottom]) {
  const share = (part, whole) => `${100 * part / whole}%`;
  Object.assign(element.style, {
    left: share(x0 - left, right - left), top: share(y0 - top, bottom - top),
    width: share(x1 - x0, right - left), height: share(y1 - y0, bottom - top) });
}
