// Drawings.

const SVG = "http://www.w3.org/2000/svg";

export function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** One of the symbols that index.html holds: a decision's, or `error`. */
export function icon(kind) {
  return draw("svg", { class: "icon", "aria-hidden": "true" },
    draw("use", { href: `#icon-${kind}` }));
}
