// What is said of an image: decision, score, where it stands, and the JSON of it all.

import { histogram } from "./histogram.js";
import { capital, count, number, visible } from "./words.js";

export class Verdict {
  constructor(banner, section) {
    Object.assign(this, { banner, section });
    this.download = this.#find("a.button");
  }

  /** Shows a shot; its `detail` is of the version that answered, or null. */
  show(shot) {
    const pending = !shot.reply && !shot.fault;
    for (const part of [this.banner, this.#find(".found")]) {
      part.setAttribute("aria-busy", String(pending));  // what it holds is of another image
      if (!pending) part.hidden = !shot.reply;
    }
    if (pending) return;
    this.#find(".blank").hidden = Boolean(shot.reply);
    this.#find(".blank").textContent = "This image has no result.";
    this.#find(".of").textContent = shot.reply?.category ?? "";
    if (!shot.reply) return;
    this.#decide(shot);
    this.#chart(shot);
    this.#facts(shot);
    this.#regions(shot.reply.regions);
    this.#parts(shot.reply);
    this.#offer(shot);
  }

  #find(selector) {
    return this.section.querySelector(selector);
  }

  #decide({ reply, detail }) {
    const { decision, score } = reply;
    const find = (selector) => this.banner.querySelector(selector);
    this.banner.className = `decision ${decision}`;
    find("use").setAttribute("href", `#icon-${decision}`);
    find(".word").textContent = capital(decision);
    find(".because").textContent = because(reply, detail);
    const data = find("data");
    data.value = data.title = String(score);
    data.textContent = number(score);
  }

  #chart({ reply, detail }) {
    this.#find(".chart").hidden = !detail;
    if (!detail) return;
    const { svg, beyond } = histogram(reply.score, detail);
    this.#find(".plot").replaceChildren(svg);
    this.#find(".beyond").textContent = beyond;
  }

  #facts({ reply, detail, roundTrip }) {
    const { decode, wait, score, total } = reply.timings_ms;
    this.#fact("p_value", number(reply.p_value), rank(reply, detail));
    this.#fact("threshold", number(reply.threshold), `alpha ${number(reply.alpha)}`);
    this.#fact("review", detail ? number(detail.review_threshold) : "unknown",
      detail ? "" : "this version has been replaced");
    this.#fact("model", reply.model_version, reply.preset);
    this.#fact("latency", `${Math.round(roundTrip)} ms`, `decode ${ms(decode)}, wait ${ms(wait)}, `
      + `score ${ms(score)}, transfer ${ms(Math.max(0, roundTrip - total))}`);
  }

  #fact(name, value, note) {
    const [bold, small] = ["b", "small"].map((tag) => document.createElement(tag));
    [bold.textContent, small.textContent] = [value, note];
    this.#find(`[data-fact=${name}]`).replaceChildren(bold, " ", small);
  }

  #regions(regions) {
    this.#find(".count").textContent = regions.length ? "" : "none stand out";
    this.#find(".scroll").hidden = !regions.length;
    this.#find("tbody").replaceChildren(...regions.map((r, i) => {
      const row = document.createElement("tr");
      for (const text of [i + 1, `${r.x0}, ${r.y0}`, `${r.x1 - r.x0} × ${r.y1 - r.y0}`, r.area,
        number(r.peak)]) {
        const cell = row.insertCell();
        cell.textContent = text;
        cell.className = row.cells.length > 1 ? "n" : "";
      }
      return row;
    }));
  }

  #parts(reply) {
    const terms = Object.entries(reply.terms).map(([name, value]) => [name, number(value)]);
    const parts = [...terms, ["sha256 of the file", reply.sha256],
      ["score fingerprint", reply.score_fingerprint]];
    this.#find(".parts").replaceChildren(...parts.map(([name, value]) => {
      const [line, term, definition] = ["div", "dt", "dd"].map(
        (tag) => document.createElement(tag));
      [term.textContent, definition.textContent] = [name, value];
      line.append(term, definition);
      return line;
    }));
  }

  #offer({ name, reply }) {
    URL.revokeObjectURL(this.download.href);
    this.download.href = URL.createObjectURL(
      new Blob([JSON.stringify(reply, null, 2)], { type: "application/json" }));
    this.download.download = `${visible(name)}.json`;
  }
}

/** The result in a sentence, for a screen reader. */
export function told({ name, reply }) {
  return `${visible(name)}: ${reply.decision}. Score ${number(reply.score)}, threshold ${
    number(reply.threshold)}. ${count(reply.regions.length, "region")}.`;
}

function because({ decision, threshold }, detail) {
  const anomalous = `the threshold ${number(threshold)}`;
  const review = detail && `the review threshold ${number(detail.review_threshold)}`;
  if (decision === "anomalous") return `above ${anomalous}`;
  if (decision === "normal") return `not above ${review ?? anomalous}`;
  return review ? `above ${review}, not above ${number(threshold)}` : `not above ${anomalous}`;
}

/** The p-value in images. */
function rank({ p_value: p }, detail) {
  if (!detail) return "";
  const normals = detail.calibration.reduce((sum, amount) => sum + amount, 0);
  const higher = Math.round(p * (normals + 1)) - 1;
  return `${higher} of ${normals} normals score as high`;
}

function ms(value) {
  return value < 10 ? value.toFixed(1) : String(Math.round(value));
}
