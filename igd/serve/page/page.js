// The page: images in, one after the other; the last one in sight.

import { Endpoint, Fault } from "./endpoint.js";
import { onFiles } from "./files.js";
import { History } from "./history.js";
import { Picker } from "./picker.js";
import { Picture, sizeShown } from "./picture.js";
import { Verdict, told } from "./verdict.js";
import { bytes, reason, visible } from "./words.js";

const LOOK_AGAIN_MS = 2000;
const PASTED = "pasted image";

const get = (id) => document.getElementById(id);
const limit = Number(document.querySelector("meta[name=max-body-bytes]").content);
const live = get("live"), fault = get("fault");
const endpoint = new Endpoint(askForToken);
const picker = new Picker(get("category"), get("categories"), get("model"), picked);
const picture = new Picture(get("picture"));
const verdict = new Verdict(get("decision"), get("verdict"));
const history = new History(get("history"), (shot) => show(shot));

const waiting = [], uncategorised = [];
let working = false, current = null, again = () => {}, timer = 0;

onFiles((files) => enqueue(files.map((file) => shotOf(file))));
fault.querySelector("button").addEventListener("click", () => again());
get("forget").addEventListener("click", forget);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();

/** A shot is an image and what came of it: a reply, or a fault. */
function shotOf(file, category = picker.value) {
  return { file, category, name: file.name || PASTED, size: file.size,
    url: URL.createObjectURL(file), shown: null, reply: null, detail: null, fault: null };
}

function enqueue(shots) {
  waiting.push(...shots);
  work();
}

async function work() {
  if (working) return;
  working = true;
  document.body.classList.add("working");
  try {
    while (waiting.length) await scoreNext(waiting.shift());
  } finally {
    document.body.classList.remove("working");
    working = false;
  }
}

async function scoreNext(shot) {
  const left = waiting.length ? `; ${waiting.length} more to come` : "";
  current = shot;
  shot.category ??= picker.value;
  shot.shown = await sizeShown(shot.url);
  show(shot);
  live.textContent = `Scoring ${visible(shot.name)}${left} …`;
  try {
    Object.assign(shot, await scored(shot));
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    shot.fault = error;
    if (error.code === "unauthorized") waiting.length = 0;  // or it would be asked for each
  }
  if (shot.fault?.code === "no_category") uncategorised.push(shot);
  else history.add(shot);
  get("forget").hidden = endpoint.token === null;
  if (shot.reply) shot.detail = await detailOf(shot.reply);
  show(shot);
  live.textContent = shot.reply ? told(shot) : "";  // a fault is an alert already
}

async function scored(shot) {
  if (!shot.category) throw new Fault({ code: "no_category", lasting: true });
  if (shot.size > limit) {
    throw new Fault({ code: "body_too_large", lasting: true,
      detail: `${bytes(shot.size)}; at most ${bytes(limit)}` });
  }
  const body = await shot.file.arrayBuffer().catch(() => {
    throw new Fault({ code: "unreadable" });
  });
  return endpoint.score(shot.category, body, shot.shown ? "png" : "overlay", (seconds) => {
    live.textContent = `The endpoint is busy; trying again in ${seconds} s …`;
  });
}

/** What is known of the version that answered; null where it has been replaced since. */
async function detailOf({ category, model_version: version }) {
  const find = () => picker.details.find((detail) =>
    detail.category === category && detail.model_version === version);
  if (!find()) await look();
  return find() ?? null;
}

function show(shot) {
  current = shot;
  picture.show(shot);
  verdict.show(shot);
  history.mark(shot);
  complain(shot.fault, () => enqueue([shotOf(shot.file, shot.category)]),
    visible(shot.name));
}

/** A category was chosen: what came before it, or the image in sight, is scored with it. */
function picked(category) {
  location.replace(`#${category}`);  // an address to keep for a station
  if (uncategorised.length) {
    enqueue(uncategorised.splice(0).map((shot) => Object.assign(shot, { category, fault: null })));
  } else if (current && !working && current.reply?.category !== category) {
    enqueue([shotOf(current.file)]);
  }
}

/** Asks what there is to choose from; again and again while models are being loaded. */
async function look() {
  clearTimeout(timer);
  try {
    picker.update(await endpoint.categories(), location.hash.slice(1));
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    if (!current) complain(error, look);
    return;
  }
  get("forget").hidden = endpoint.token === null;
  if (!current) complain(null);
  clearTimeout(timer);
  if (!picker.details.length || picker.details.some((detail) => detail.state === "loading")) {
    timer = setTimeout(look, LOOK_AGAIN_MS);
  }
}

function complain(error, then = () => {}, about = "") {
  const [what, details] = fault.querySelectorAll("p");
  fault.hidden = !error;
  what.textContent = error ? reason(error.code) : "";
  details.textContent = !error ? "" : [about, error.detail,
    error.requestId && `request ${error.requestId}`].filter(Boolean).join(" · ");
  fault.querySelector("button").hidden = Boolean(error?.lasting);
  again = then;
}

function forget() {
  endpoint.forget();
  get("forget").hidden = true;
}

/** Asks a person for a token; null where there is none to be had. */
function askForToken(wrong) {
  const dialog = get("token"), input = get("token-input");
  dialog.querySelector(".wrong").hidden = !wrong;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "send" ? input.value : null);
      input.value = "";
    }, { once: true });
  });
}
