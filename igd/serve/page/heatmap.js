// The heatmap, coloured where it is beyond what normal images reach.

// as igd.data.images.overlay has them, so that a report and the page look alike
const STOPS = [[255, 214, 10], [255, 132, 0], [224, 16, 16], [122, 0, 60]];
const OPAQUE_FROM = 1 / 3;

export class Heatmap {
  constructor(canvas) {
    this.canvas = canvas;
    this.reply = null;
  }

  /** Paints the heatmap of a reply; null clears it. */
  async show(reply) {
    this.reply = reply;
    this.canvas.width = 0;
    if (reply === null) return;
    const grey = Uint8Array.from(atob(reply.heatmap), (c) => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([grey], { type: "image/png" }),
      { colorSpaceConversion: "none" });
    if (this.reply === reply) this.#paint(bitmap);  // else another image is in sight meanwhile
  }

  #paint(bitmap) {
    const { width, height } = Object.assign(this.canvas,
      { width: bitmap.width, height: bitmap.height });
    const context = this.canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, width, height);
    const table = colours(this.reply);
    for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set(table[pixels.data[i]], i);
    context.putImageData(pixels, 0, 0);
  }
}

/** RGBA for each of the 256 levels of the grey PNG. */
function colours({ heatmap_min: min, heatmap_max: max, region_threshold: threshold }) {
  const low = Math.min(threshold, max), span = Math.max(max - low, 1e-12);
  return Array.from({ length: 256 }, (_, level) => {
    const value = min + level / 255 * (max - min);
    const unit = Math.min(1, Math.max(0, (value - low) / span));
    const at = unit * (STOPS.length - 1);
    const stop = Math.min(Math.floor(at), STOPS.length - 2);
    const mix = (c) => STOPS[stop][c] + (at - stop) * (STOPS[stop + 1][c] - STOPS[stop][c]);
    return [mix(0), mix(1), mix(2), 255 * Math.min(1, unit / OPAQUE_FROM)].map(Math.round);
  });
}
