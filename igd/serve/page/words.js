// How numbers, names and reasons are put for people.

const REASONS = {
  empty: "The file is empty.",
  not_image: "This file is not an image.",
  format_not_allowed: "This image format is not taken; send JPEG, PNG, WebP, BMP, TIFF or GIF.",
  truncated: "The image was cut off: its end is missing.",
  corrupt: "The image is damaged and cannot be read.",
  too_large: "The image has too many pixels.",
  too_small: "The image is too small.",
  multi_frame: "The file holds several pictures (an animation, or pages); send a single one.",
  unsupported_mode: "The image has pixels of a kind that is not taken; send 8 or 16 bits.",
  decoder_crash: "The image could not be decoded within the memory there is.",
  unreadable: "The file could not be read. A folder cannot be sent; a file may have moved.",
  body_too_large: "The file is larger than this endpoint takes.",
  body_timeout: "The image took too long to arrive.",
  timeout: "No answer came in time.",
  overloaded: "The endpoint is busy.",
  not_ready: "This category's model is not ready.",
  unavailable: "This image cannot be scored at present.",
  unknown_category: "There is no model for this category.",
  no_category: "Choose a category first.",
  unauthorized: "This endpoint asks for a token.",
  host_not_allowed: "This endpoint does not answer under this address.",
  cross_origin: "This endpoint refuses requests of other sites.",
  internal_error: "The endpoint failed.",
  unreachable: "The endpoint does not answer.",
};

/** A fault's code as a sentence. */
export function reason(code) {
  return REASONS[code] ?? "The endpoint refused.";
}

/** Four significant digits, as in the reports. */
export function number(value) {
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

export function bytes(size) {
  if (size < 1024) return `${size} B`;
  const kib = size / 1024;
  return kib < 1024 ? `${kib.toFixed(0)} KiB` : `${(kib / 1024).toFixed(1)} MiB`;
}

export function count(amount, noun, several = `${noun}s`) {
  return `${amount} ${amount === 1 ? noun : several}`;
}

/** A file's name with what is invisible written out: `gpj.exe` must not read `exe.jpg`. */
export function visible(text) {
  return text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) =>
    `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
}

export function capital(word) {
  return word.charAt(0).toUpperCase() + word.slice(1);
}
