// The picture of a topic: its publishers on the left, its consumers on the right, and what flows between them.

import { begin, duration, finish, keep, points, say, set, short, svg, whole } from "./words.js";

const ROW = 54;
const SPREAD = 0.12; // of the edges of a topic, where they end at its box
const MOST = 14; // boxes a side; the rest is one box

let measurer;
function fit(text, width, small, end) {
  measurer ??= document.createElement("canvas").getContext("2d");
  measurer.font = `${small ? 11.5 : 13}px ${getComputedStyle(document.body).fontFamily}`;
  if (measurer.measureText(text).width <= width) return text;
  let most = text.length;
  const head = () => (end ? most : Math.ceil(most / 2));
  const cut = () => `${text.slice(0, head())}…${text.slice(text.length - (most - head()))}`;
  while (most > 1 && measurer.measureText(cut()).width > width) most--;
  return cut();
}

export const losses = (c) => c.overrun + c.refused + c.abandoned + c.undecodable + c.rejected;
export const stateOf = (c) => (c.quarantined_ns ? `${c.state}, quarantined` : c.state);
export const isGone = (entry) => entry.state === "dead" || entry.state === "closed";
export const keyOf = (c) => `${c.kind}/${c.topic}/${c.name}`;

export function severity(entry) {
  if (entry.blocks?.length || entry.stuck || ["stalled", "stopped"].includes(entry.state)) return "bad";
  if (entry.state === "dead" && (entry.depth || entry.used)) return "bad";
  if (["slow", "idle"].includes(entry.state) && entry.depth) return "warn";
  return isGone(entry) ? "gone" : "";
}

const rank = { bad: 0, warn: 1, "": 2, gone: 3 };
export const byTrouble = (a, b) => rank[severity(a)] - rank[severity(b)] || (b.depth ?? b.used) - (a.depth ?? a.used) || (a.name < b.name ? -1 : 1);

// At most MOST of the entries, the worst first, then by name; what is left is summed up.
function chosen(entries) {
  if (entries.length <= MOST) return [entries, []];
  const sorted = [...entries].sort(byTrouble);
  return [sorted.slice(0, MOST - 1), sorted.slice(MOST - 1)];
}

export function draw(parent, view, bus) {
  begin(parent);
  const { stats, trails } = view;
  for (const topic of [...stats.topics].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const figure = keep(parent, topic.name, () => {
      const made = document.createElement("figure");
      made.className = "topic";
      made.append(svg("svg", { role: "group" }));
      return made;
    });
    const here = (e) => e.topic === topic.name;
    drawTopic(figure.firstChild, topic, stats.publishers.filter(here), stats.consumers.filter(here), trails, bus);
  }
  finish(parent);
}

function drawTopic(root, topic, publishers, consumers, trails, bus) {
  const width = Math.max(300, root.parentNode.clientWidth);
  const narrow = width < 640;
  const [left, leftRest] = chosen(publishers);
  const [right, rightRest] = chosen(consumers.filter((c) => !isGone(c)).concat(consumers.filter(isGone)));
  const rows = Math.max(left.length + !!leftRest.length, right.length + !!rightRest.length, 1);
  const box = Math.round(width * (narrow ? 0.405 : 0.27));
  const hub = narrow ? 14 : Math.round(width * 0.14);
  const top = narrow ? 24 : 4;
  const height = top + rows * ROW;
  set(root, { viewBox: `0 0 ${width} ${height}`, "aria-label": `Topic ${topic.name}: ${publishers.length} publishers, ${consumers.length} consumers` });
  begin(root);
  const middle = (width - hub) / 2;
  const place = { width, box, middle, hub, narrow, center: top + (rows * ROW) / 2, height };
  const at = (count, n) => top + (rows - count) * (ROW / 2) + n * ROW + ROW / 2;
  const sum = (list, field) => list.reduce((total, e) => total + e[field], 0);

  const leftCount = left.length + !!leftRest.length;
  left.forEach((p, n) => side(root, place, at(leftCount, n), "publisher", p, publisherWords(p), trails[`publisher/${p.id}`]));
  if (leftRest.length) rest(root, place, at(leftCount, left.length), "publisher", leftRest, `${short(sum(leftRest, "rate"))}/s`, sum(leftRest, "rate"));
  const rightCount = right.length + !!rightRest.length;
  right.forEach((c, n) => side(root, place, at(rightCount, n), "consumer", c, consumerWords(c, bus), trails[keyOf(c)]));
  if (rightRest.length) {
    const text = `${short(sum(rightRest, "rate"))}/s · ${short(sum(rightRest, "depth"))} wait`;
    rest(root, place, at(rightCount, right.length), "consumer", rightRest, text, sum(rightRest, "rate"));
  }
  const group = keep(root, "hub", () => {
    const made = svg("g");
    made.append(svg("rect", { class: "hub", rx: 8 }), svg("text", { "text-anchor": "middle" }), svg("text", { class: "small", "text-anchor": "middle" }));
    return made;
  });
  const [rect, name, type] = group.children;
  const tall = narrow ? height - top - 8 : Math.max(46, rows * ROW * SPREAD + 12);
  set(rect, { x: middle, y: place.center - tall / 2, width: hub, height: tall, rx: narrow ? 7 : 8 });
  set(name, { x: narrow ? width / 2 : middle + hub / 2, y: narrow ? 14 : place.center - 2 });
  say(name, fit(topic.name, narrow ? width - 8 : hub - 10));
  set(type, { x: middle + hub / 2, y: place.center + 14, display: narrow ? "none" : "inline" });
  say(type, fit(topic.type, hub - 10, true));
  finish(root);
}

function publisherWords(p) {
  const blocked = p.waiting && p.blocked_by.length;
  const state = blocked ? `waits for ${p.blocked_by.join(", ")}` : isGone(p) ? `${p.state}, ring not drained` : p.state;
  const long = `Publisher ${p.name}: ${whole(p.published)} published, ${short(p.rate)} a second, ring ${Math.round((100 * p.used) / (p.capacity || 1))}% full, ${state}`;
  return { state, long, label: `${short(p.rate)}/s`, share: p.used / (p.capacity || 1), bar: true, tone: blocked ? "bad" : severity(p) };
}

function consumerWords(c, bus) {
  const state = c.blocks.length ? `blocks ${c.blocks.join(", ")}` : stateOf(c);
  const lost = losses(c);
  const kind = c.kind === "group" ? `group of ${c.workers.length}` : c.mode;
  const label = `${short(c.rate)}/s${c.depth ? ` · ${short(c.depth)} wait` : ""}`;
  const long = `${c.kind === "group" ? "Group" : "Subscriber"} ${c.name}: ${whole(c.delivered)} delivered, ${short(c.rate)} a second, ${whole(c.depth)} wait, lag ${duration(c.lag_ns)}, ${whole(lost)} lost, ${state}`;
  const told = lost ? `${state} · ${short(lost)} lost` : state === "ok" ? kind : c.blocks.length ? state : `${state} · ${kind}`;
  return { state: told, long, label, href: `#/${[bus, c.kind, c.topic, c.name].map(encodeURIComponent).join("/")}`, tone: severity(c) };
}

function boxAt(root, place, y, which, key, href) {
  const group = keep(root, key, () => {
    const made = svg("g");
    const link = svg(href ? "a" : "g", href ? { href, tabindex: 0 } : { tabindex: 0, role: "img" });
    link.append(
      svg("title"), svg("rect", { class: "box", rx: 7 }), svg("text"), svg("text", { class: "small state" }),
      svg("polyline", { class: "spark" }), svg("rect", { class: "rail", height: 3, rx: 1.5 }), svg("rect", { class: "bar", height: 3, rx: 1.5 }),
    );
    made.append(svg("path", { class: "line" }), svg("path", { class: "line" }), link, svg("text", { class: "label" }));
    return made;
  });
  const x = which === "publisher" ? 1 : place.width - place.box - 1;
  const [under, over, link, label] = group.children;
  const [title, rect, name, state, spark, rail, bar] = link.children;
  set(rect, { x, y: y - ROW / 2 + 4, width: place.box, height: ROW - 10 });
  set(name, { x: x + 9, y: y - 5 });
  set(state, { x: x + 9, y: y + 11 });
  const from = which === "publisher" ? x + place.box : place.middle + place.hub;
  const to = which === "publisher" ? place.middle : x;
  const bend = (to - from) / 2;
  const end = place.narrow ? y : place.center + (y - place.center) * SPREAD;
  const [a, b] = which === "publisher" ? [y, end] : [end, y];
  const d = `M${from} ${a}C${from + bend} ${a} ${to - bend} ${b} ${to} ${b}`;
  set(under, { d });
  set(over, { d });
  const near = which === "publisher" ? from + 8 : to - 8;
  set(label, { x: near, y: y - 9, "text-anchor": which === "publisher" ? "start" : "end", display: place.narrow ? "none" : "inline" });
  return { x, group, link, under, over, label, title, name, state, spark, rail, bar };
}

function paint(parts, place, words, rate) {
  set(parts.group, { class: words.tone });
  set(parts.link, { "aria-label": words.long });
  say(parts.title, words.long);
  const wide = 1.5 + Math.min(5, Math.log10(1 + rate));
  set(parts.under, { "stroke-width": wide, class: words.tone === "bad" ? "line bad" : "line" });
  set(parts.over, { "stroke-width": wide, class: `line flowing${words.tone === "bad" ? " bad" : ""}`, display: rate > 0 ? "inline" : "none" });
  say(parts.label, words.label);
  set(parts.label, { class: words.tone === "bad" ? "label bad" : "label" });
}

function side(root, place, y, which, entry, words, trail) {
  const parts = boxAt(root, place, y, which, which === "publisher" ? `p${entry.id}` : keyOf(entry), words.href);
  const spark = place.narrow ? 40 : 64;
  paint(parts, place, words, entry.rate);
  say(parts.name, fit(entry.name, place.box - spark - 24));
  const told = !place.narrow ? words.state : words.tone === "bad" ? `${words.state} · ${words.label}` : `${words.label} · ${words.state}`;
  say(parts.state, fit(told, place.box - 18, true, true));
  const values = trail ? (which === "publisher" ? trail.rate : trail.depth) : [];
  set(parts.spark, {
    points: points(values, spark, 12), class: which === "publisher" ? "spark" : "spark depth",
    transform: `translate(${parts.x + place.box - spark - 9} ${y - 17})`,
  });
  const length = place.box - 18;
  const shown = words.bar ? "inline" : "none";
  set(parts.rail, { x: parts.x + 9, y: y + 15, width: length, display: shown });
  set(parts.bar, { x: parts.x + 9, y: y + 15, width: Math.max(0, length * Math.min(1, words.share ?? 0)).toFixed(1), display: shown });
}

function rest(root, place, y, which, entries, label, rate) {
  const tone = entries.some((e) => severity(e) === "bad") ? "bad" : "";
  const plural = `${entries.length} more ${which}s`;
  const parts = boxAt(root, place, y, which, `rest-${which}`, "");
  paint(parts, place, { tone, label, long: `${plural}: ${label}` }, rate);
  say(parts.name, plural);
  say(parts.state, fit(place.narrow ? label : tone ? "some in trouble" : "none in trouble", place.box - 18, true));
  set(parts.spark, { points: "" });
  set(parts.rail, { display: "none" });
  set(parts.bar, { display: "none" });
}
