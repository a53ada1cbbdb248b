// The last images of this tab, in memory only.

import { icon } from "./svg.js";
import { capital, number, reason, visible } from "./words.js";

const KEPT = 24;
const SIDE = 112;  // of a thumbnail, in pixels

export class History {
  /** @param open told the shot that a person wants to see again */
  constructor(section, open) {
    this.section = section;
    this.list = section.querySelector("ol");
    this.open = open;
    this.shots = [];
  }

  /** Puts a finished shot first; the oldest goes. */
  add(shot) {
    this.shots.unshift(shot);
    this.list.prepend(this.#item(shot));
    this.section.hidden = false;
    if (this.shots.length > KEPT) {
      URL.revokeObjectURL(this.shots.pop().url);
      this.list.lastElementChild.remove();
    }
  }

  /** Marks the shot that is in sight. */
  mark(shot) {
    for (const [i, item] of [...this.list.children].entries()) {
      item.firstElementChild.setAttribute("aria-current", String(this.shots[i] === shot));
    }
  }

  #item(shot) {
    const item = document.createElement("li"), button = document.createElement("button");
    const [line, name] = ["line", "name"].map((kind) => {
      const span = document.createElement("span");
      span.className = kind;
      return span;
    });
    const [score, file] = ["b", "bdi"].map((tag) => document.createElement(tag));
    const kind = shot.reply?.decision ?? "error";
    button.type = "button";
    button.className = kind;
    file.textContent = visible(shot.name);
    score.textContent = shot.reply ? number(shot.reply.score) : "";
    button.title = shot.reply ? `${shot.category}: ${visible(shot.name)}`
      : reason(shot.fault.code);
    line.append(icon(kind), shot.reply ? capital(kind) : "No result");
    name.append(score, " ", file);
    button.append(thumbnail(shot), line, name);
    button.addEventListener("click", () => this.open(shot));
    item.append(button);
    return item;
  }
}

function thumbnail({ url, shown, reply }) {
  const canvas = document.createElement("canvas"), image = new Image();
  Object.assign(canvas, { width: SIDE, height: SIDE });
  if (!shown && !reply) return canvas;
  image.src = shown ? url : `data:image/png;base64,${reply.overlay}`;
  image.decode().then(() => {
    const side = Math.min(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, (image.naturalWidth - side) / 2, (image.naturalHeight - side) / 2,
      side, side, 0, 0, SIDE, SIDE);
  }, () => {});  // a file that has moved since leaves its thumbnail empty
  return canvas;
}
