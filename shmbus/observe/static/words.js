// How figures look, and the few ways in which the page changes the document. Text goes in as text, never as markup.

export const SVG = "http://www.w3.org/2000/svg";

export function whole(number) {
  return Math.abs(number) < 1e7 ? Math.round(number).toLocaleString("en") : short(number);
}

export function short(number) {
  if (number < 9.95 && number > 0 && number % 1) return number.toFixed(1);
  for (const [size, unit] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"]]) {
    if (number >= size * 0.9995) return `${(number / size).toPrecision(3)}${unit}`;
  }
  return number >= 1e5 ? `${Math.round(number / 1e3)}k` : Math.round(number).toLocaleString("en");
}

export function bytes(number) {
  for (const [size, unit] of [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
    if (number >= size) return `${(number / size).toPrecision(number < size * 10 ? 2 : 3).replace(/\.0$/, "")} ${unit}`;
  }
  return `${number} B`;
}

export function duration(ns) {
  if (!ns) return "–";
  for (const [size, unit] of [[86400e9, "d"], [3600e9, "h"], [60e9, "min"], [1e9, "s"], [1e6, "ms"], [1e3, "µs"]]) {
    if (ns >= size) return `${ns < size * 10 ? (ns / size).toFixed(1) : Math.round(ns / size)} ${unit}`;
  }
  return `${Math.round(ns)} ns`;
}

export function clock(ns) {
  return new Date(ns / 1e6).toLocaleTimeString("en-GB");
}

// The child of `parent` with this key, made by `make` if there is none: what stays keeps its focus.
export function keep(parent, key, make) {
  parent.kept ??= new Map();
  let child = parent.kept.get(key);
  if (!child) {
    child = make();
    parent.kept.set(key, child);
    parent.append(child);
  }
  child.seen = parent.turn;
  return child;
}

// Begin and end a turn: whoever was not kept in between goes.
export function begin(parent) {
  parent.turn = (parent.turn ?? 0) + 1;
}

export function finish(parent) {
  for (const [key, child] of parent.kept ?? []) {
    if (child.seen !== parent.turn) {
      child.remove();
      parent.kept.delete(key);
    }
  }
}

export function svg(name, attributes = {}) {
  return set(document.createElementNS(SVG, name), attributes);
}

export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
  return element;
}

export function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
  return element;
}

export function points(values, width, height) {
  const most = Math.max(1, ...values);
  const step = width / Math.max(1, values.length - 1);
  return values.map((v, at) => `${(at * step).toFixed(1)},${(height - (v / most) * height).toFixed(1)}`).join(" ");
}

export function element(name, text, classes) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (classes) made.className = classes;
  return made;
}
