// A consumer's own view: its books, its rate, depth and latencies, its publishers, its workers and what it lost.

import { keyOf, losses, stateOf } from "./flow.js";
import { duration, element, points, say, set, short, svg, whole } from "./words.js";

const TERMS = ["delivered", "depth", "overrun", "refused", "abandoned", "undecodable", "rejected"];
const FIRST_NS = 1024;

export function drawOwn(root, view, [bus, kind, topic, name]) {
  const found = view.stats.consumers.find((c) => c.kind === kind && c.topic === topic && c.name === name);
  root.hidden = !name;
  if (!name) return;
  const key = [bus, kind, topic, name].join("/");
  if (root.dataset.key !== key) {
    root.dataset.key = key;
    root.replaceChildren(...frame(bus, `${topic}/${name}`));
  }
  const part = (which) => root.querySelector(`[data-part="${which}"]`);
  if (!found) {
    say(part("what"), "It is not on this bus, or has been merged with others that are gone.");
    part("rest").hidden = true;
    return;
  }
  part("rest").hidden = false;
  say(part("what"), what(found));
  sums(part("sums"), found);
  const trail = view.trails[keyOf(found)] ?? { rate: [], depth: [] };
  chart(part("rate"), trail.rate, `delivered: ${short(found.rate)} a second`, "spark");
  chart(part("depth"), trail.depth, `waiting: ${whole(found.depth)}, the oldest for ${duration(found.lag_ns)}`, "spark depth");
  histogram(part("latency"), found);
  list(part("publishers"), found.publishers.map((s) => `${s.publisher}: ${whole(s.delivered)} delivered, ${whole(s.depth)} wait, ${whole(losses(s))} lost`));
  list(part("workers"), found.workers.map((w) => `${w.name} (pid ${w.pid}): holds ${whole(w.held)}, ${w.state}`));
  const lost = view.losses.filter((l) => l.topic === topic && l.consumer === name);
  list(part("losses"), lost.map((l) => `${whole(l.count)} ${l.cause} of ${l.publisher}, #${l.first} to #${l.last}`));
}

function frame(bus, title) {
  const back = element("a", "Close this view");
  back.href = `#/${encodeURIComponent(bus)}`;
  const heading = element("h2", title);
  heading.id = "own-title";
  heading.tabIndex = -1;
  const rest = part("div", "rest");
  const charts = element("div", undefined, "charts");
  for (const name of ["rate", "depth", "latency"]) {
    const figure = part("figure", name);
    figure.append(svg("svg", { viewBox: "0 0 240 70", preserveAspectRatio: "none", role: "img" }), element("figcaption"));
    charts.append(figure);
  }
  const sumsList = part("ul", "sums");
  sumsList.className = "sums";
  rest.append(sumsList, charts);
  for (const name of ["publishers", "workers", "losses"]) {
    rest.append(element("h3", name[0].toUpperCase() + name.slice(1)), part("ul", name));
  }
  return [heading, back, part("p", "what"), rest];
}

function part(name, which) {
  const made = element(name);
  made.dataset.part = which;
  return made;
}

function what(c) {
  const kind = c.kind === "group" ? `Group of ${c.workers.length} workers` : `${c.mode[0].toUpperCase()}${c.mode.slice(1)} subscriber`;
  const pid = c.pid ? `, pid ${c.pid}` : "";
  const state = c.blocks.length ? `${c.state}; it leaves no room to ${c.blocks.join(", ")}` : stateOf(c);
  return `${kind}${pid}: ${state}.`;
}

function sums(root, c) {
  const items = [["offered", c.offered], ...TERMS.map((term) => [term, c[term]])];
  if (root.children.length !== items.length) {
    root.replaceChildren(...items.map(([term], at) => {
      const item = element("li", at === 0 ? "" : at === 1 ? "= " : "+ ", at > 2 ? "" : undefined);
      item.append(element("b"), ` ${term}`);
      return item;
    }));
  }
  items.forEach(([, count], at) => {
    say(root.children[at].querySelector("b"), whole(count));
    root.children[at].className = at > 2 && count ? "lost" : "";
  });
}

function chart(figure, values, caption, classes) {
  const [root, words] = figure.children;
  if (!root.firstChild) root.append(svg("polyline"));
  set(root, { "aria-label": caption });
  set(root.firstChild, { class: classes, points: points(values, 240, 66), transform: "translate(0 2)" });
  say(words, `${caption} (most: ${short(Math.max(0, ...values))})`);
}

function histogram(figure, c) {
  const [root, words] = figure.children;
  const counts = c.latencies;
  const most = Math.max(1, ...counts);
  while (root.children.length < counts.length) root.append(svg("rect", { class: "bar" }));
  const step = 240 / Math.max(1, counts.length);
  counts.forEach((count, at) => {
    const height = count ? Math.max(1.5, (66 * Math.log1p(count)) / Math.log1p(most)) : 0;
    set(root.children[at], { x: (at * step).toFixed(1), width: (step - 1).toFixed(1), y: (70 - height).toFixed(1), height: height.toFixed(1) });
  });
  const l = c.latency;
  const range = counts.length ? `, ${duration(FIRST_NS)} to ${duration(FIRST_NS * 2 ** (counts.length - 2))}, logarithmic` : "";
  const caption = l ? `latency: half in ${duration(l.p50_ns)}, 99% in ${duration(l.p99_ns)}, at most ${duration(l.max_ns)}${range}` : "latency: nothing sampled yet";
  set(root, { "aria-label": caption });
  say(words, caption);
}

function list(root, texts) {
  const shown = texts.length ? texts.slice(0, 50) : ["none"];
  while (root.children.length > shown.length) root.lastChild.remove();
  while (root.children.length < shown.length) root.append(element("li"));
  shown.forEach((text, at) => say(root.children[at], text));
}
