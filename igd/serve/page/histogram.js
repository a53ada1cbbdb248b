// A score against those of the calibration normals.

import { draw } from "./svg.js";
import { number } from "./words.js";

const WIDTH = 380, HEIGHT = 132, LEFT = 6, RIGHT = 374, TOP = 24, BASE = 110;
const STRETCH = 1.5;  // a score so many widths of the histogram beyond it is still drawn to scale

/**
 * Draws the histogram of a category with a score in it.
 * @returns {{svg: SVGElement, beyond: string}} beyond: what to say of a score off the scale
 */
export function histogram(score, detail) {
  const { calibration, scores_from: from, scores_to: to } = detail;
  const lines = [detail.review_threshold, detail.threshold];
  const [low, high] = range(score, from, to, lines);
  const x = (value) => LEFT
    + (RIGHT - LEFT) * Math.min(1, Math.max(0, (value - low) / (high - low)));
  const off = score < low ? "below" : score > high ? "above" : "";
  const label = `Score ${number(score)}${off && ", off the scale"}. Calibration normals from `
    + `${number(from)} to ${number(to)}; review threshold ${number(lines[0])}, threshold `
    + `${number(lines[1])}.`;
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    ...bars(calibration, from, to, x), ...ticks(low, high, x),
    ...["review-threshold", "threshold"].map((kind, i) => upright(kind, x(lines[i]), TOP)),
    ...pointer(score, x(score), off));
  return { svg, beyond: off && `The score lies ${off} the axis, which ends at ${
    number(off === "above" ? high : low)}; it is drawn at the edge.` };
}

function range(score, from, to, lines) {
  const low = Math.min(from, ...lines), high = Math.max(to, ...lines);
  const span = high - low || Math.abs(high) || 1;
  const bottom = score < low && score >= low - span * STRETCH ? score : low;
  const top = score > high && score <= high + span * STRETCH ? score : high;
  const margin = (top - bottom || span) * 0.04;
  return [bottom - margin, top + margin];
}

function bars(counts, from, to, x) {
  const most = Math.max(...counts), step = (to - from) / counts.length;
  return counts.map((amount, i) => {
    const left = x(from + i * step), height = (BASE - TOP) * amount / most;
    return draw("rect", { class: "bar", x: left, y: BASE - height, height,
      width: Math.max(0.75, x(from + (i + 1) * step) - left - 0.75) });
  });
}

function ticks(low, high, x) {
  const rough = (high - low) / 7, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  const found = [draw("line", { class: "axis", x1: LEFT, x2: RIGHT, y1: BASE, y2: BASE })];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) {
    const at = x(i * step);
    found.push(upright("axis", at, BASE + 4),
      draw("text", { x: at, y: BASE + 16, "text-anchor": "middle" }, number(i * step)));
  }
  return found;
}

function pointer(score, at, off) {
  const anchor = at > WIDTH * 0.8 ? "end" : at < WIDTH * 0.2 ? "start" : "middle";
  const label = { above: `${number(score)} »`, below: `« ${number(score)}` }[off] ?? number(score);
  return [upright("score", at, TOP - 4),
    draw("path", { class: "score-head", d: `M${at - 5} ${TOP - 7}h10l-5 8Z` }),
    draw("text", { class: "value", x: at, y: 14, "text-anchor": anchor }, label)];
}

function upright(kind, at, end) {
  return draw("line", { class: kind, x1: at, x2: at, y1: end, y2: BASE });
}
