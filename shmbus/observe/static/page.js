// The page: asks the server once a second, and shows what it says. Nothing here changes a bus.

import { byTrouble, draw, isGone, keyOf, losses, severity, stateOf } from "./flow.js";
import { drawOwn } from "./own.js";
import { begin, bytes, clock, duration, element, finish, keep, say, set, short, whole } from "./words.js";

const INTERVAL = 1000;
const FIRST = 100; // rows of a table, until all are asked for
const $ = (id) => document.getElementById(id);

let bus = "";
let view = null;
let paused = false;
let all = false;
let token = sessionStorage.getItem("shmbus-token") ?? "";

// -- asking

async function ask(path) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store" });
  if (answer.status === 401) throw new Refused();
  return [answer.status, await answer.json()];
}

class Refused extends Error {}

async function look() {
  const [, buses] = await ask("api/buses");
  choose(buses.map((stats) => stats.bus).sort());
  if (!bus) {
    view = null;
    away(buses.length ? "" : "There is no bus on this host.");
    return;
  }
  const [status, answer] = await ask(`api/buses/${encodeURIComponent(bus)}`);
  view = status === 200 ? answer : null;
  away(status === 200 ? "" : answer.error);
}

function choose(names) {
  const select = $("bus");
  const [wanted] = place();
  const next = names.includes(wanted) ? wanted : names.includes(bus) ? bus : names[0] ?? "";
  begin(select);
  for (const name of names) keep(select, name, () => element("option", name)).value = name;
  finish(select);
  bus = next;
  if (select.value !== bus) select.value = bus;
}

function place() {
  return location.hash.replace(/^#\//, "").split("/").map(decodeURIComponent);
}

function away(text) {
  $("away").hidden = !text;
  say($("away"), text);
  for (const section of document.querySelectorAll("main > section:not(#own)")) section.hidden = Boolean(text);
}

async function turn() {
  try {
    if (!paused && !document.hidden) {
      await look();
      login(false);
      show();
    }
  } catch (error) {
    if (error instanceof Refused) login(true);
    else if (error instanceof TypeError && /fetch|network/i.test(error.message)) away("The server does not answer; trying again.");
    else throw error;
  } finally {
    setTimeout(turn, INTERVAL);
  }
}

function login(asked) {
  if ($("login").hidden === asked) {
    $("login").hidden = !asked;
    $("main").hidden = asked;
    if (asked) $("token").focus();
  }
  say($("refused"), asked && token ? "That is not the token." : "");
}

// -- showing

function show() {
  say($("headline"), view ? headline(view.stats) : "");
  document.title = view?.problems.some((p) => p.severity === "critical") ? `(!) ${bus} – shmbus` : bus ? `${bus} – shmbus` : "shmbus";
  if (!view) return;
  const stuck = new Set(view.problems.filter((p) => p.kind === "blocked").map((p) => `${p.topic}/${p.who}`));
  for (const p of view.stats.publishers) p.stuck = stuck.has(`${p.topic}/${p.name}`);
  showTrouble(view.problems);
  draw($("flow"), view, bus);
  drawOwn($("own"), view, place());
  showConsumers();
  table($("publishers"), PUBLISHERS, [...view.stats.publishers].sort(byTrouble), (p) => p.id, "No publisher.");
  table($("losses"), LOSSES, view.losses, (l) => [l.topic, l.consumer, l.publisher, l.cause, l.first].join("/"), "Nothing was lost.");
  table($("letters"), LETTERS, view.letters, (l) => [l.topic, l.group, l.publisher, l.sequence, l.written_ns].join("/"), "No dead letters.");
  table($("processes"), PROCESSES, view.stats.participants, (p) => p.id, "No process takes part.");
}

function headline(stats) {
  const supervisor = stats.supervisor.state === "ok" ? `supervisor ${stats.supervisor.pid}` : stats.supervisor.state === "none" ? "no supervisor" : "supervisor stalled";
  const deaths = stats.deaths ? ` · ${stats.deaths} died` : "";
  return `${stats.participants.length} handles · ${supervisor}${deaths} · ${bytes(stats.bytes)} · up ${duration(stats.time_ns - stats.created_ns)}`;
}

function showTrouble(problems) {
  const list = $("trouble");
  begin(list);
  for (const problem of problems.slice(0, 12)) {
    const item = keep(list, [problem.kind, problem.topic, problem.who].join("/"), () => {
      const made = element("li");
      made.append(element("b"), " ", element("span"));
      return made;
    });
    item.className = problem.severity;
    say(item.children[0], problem.kind);
    say(item.children[1], problem.topic ? `${problem.topic}: ${problem.why}` : problem.why);
  }
  if (problems.length > 12) say(keep(list, "more", () => element("li")), `${problems.length - 12} more`).className = "warning";
  if (!problems.length) keep(list, "fine", () => element("li", "Nothing is wrong.", "fine"));
  finish(list);
}

const SORTS = {
  trouble: byTrouble,
  name: (a, b) => (`${a.topic}/${a.name}` < `${b.topic}/${b.name}` ? -1 : 1),
  rate: (a, b) => b.rate - a.rate,
  depth: (a, b) => b.depth - a.depth,
  lag: (a, b) => b.lag_ns - a.lag_ns,
  lost: (a, b) => losses(b) - losses(a),
};

function showConsumers() {
  const wanted = $("filter").value.toLowerCase();
  const words = (c) => `${c.topic}/${c.name} ${c.kind} ${c.mode} ${stateOf(c)}`.toLowerCase();
  const found = view.stats.consumers.filter((c) => words(c).includes(wanted)).sort(SORTS[$("sort").value]);
  $("all").hidden = found.length <= FIRST;
  say($("all"), all ? `Show the first ${FIRST}` : `Show all ${found.length}`);
  table($("consumers"), CONSUMERS, all ? found : found.slice(0, FIRST), keyOf, wanted ? "None like that." : "No consumer.");
}

const CONSUMERS = [
  ["Consumer", (c) => `${c.topic}/${c.name}`, "link"],
  ["Kind", (c) => (c.kind === "group" ? `group of ${c.workers.length}` : c.mode)],
  ["Delivered", (c) => whole(c.delivered), "n"],
  ["Rate/s", (c) => short(c.rate), "n"],
  ["Depth", (c) => whole(c.depth), "n"],
  ["Lag", (c) => duration(c.lag_ns), "n"],
  ["p50", (c) => duration(c.latency?.p50_ns), "n"],
  ["p99", (c) => duration(c.latency?.p99_ns), "n"],
  ["Lost", (c) => whole(losses(c)), "n"],
  ["State", (c) => (c.blocks.length ? `blocks ${c.blocks.join(", ")}` : stateOf(c)), "state"],
];
const PUBLISHERS = [
  ["Publisher", (p) => `${p.topic}/${p.name}`],
  ["PID", (p) => p.pid || "–", "n"],
  ["Published", (p) => whole(p.published), "n"],
  ["Rate/s", (p) => short(p.rate), "n"],
  ["Ring", (p) => bytes(p.capacity), "n"],
  ["Used", (p) => `${Math.round((100 * p.used) / (p.capacity || 1))}%`, "n"],
  ["Unrouted", (p) => whole(p.unrouted), "n"],
  ["Refused", (p) => whole(p.refused), "n"],
  ["State", (p) => (p.waiting && p.blocked_by.length ? `waits for ${p.blocked_by.join(", ")}` : p.state), "state"],
];
const LOSSES = [
  ["When", (l) => clock(l.last_ns)],
  ["Consumer", (l) => `${l.topic}/${l.consumer}`],
  ["Cause", (l) => l.cause],
  ["Events", (l) => whole(l.count), "n"],
  ["Publisher", (l) => l.publisher],
  ["Sequences", (l) => (l.first === l.last ? `#${l.first}` : `#${l.first} to #${l.last}`)],
];
const LETTERS = [
  ["When", (l) => clock(l.written_ns)],
  ["Group", (l) => `${l.topic}/${l.group}`],
  ["Event", (l) => `#${l.sequence} of ${l.publisher}`],
  ["Attempts", (l) => l.attempts, "n"],
  ["Reason", (l) => l.reason, "wide"],
];
const PROCESSES = [
  ["PID", (p) => p.pid, "n"],
  ["State", (p) => p.state, "state"],
  ["Command", (p) => p.command, "wide"],
];

function table(root, columns, rows, key, nothing) {
  if (!root.tHead) {
    const head = root.createTHead().insertRow();
    for (const [name, , kind] of columns) {
      const cell = element("th", name, kind);
      cell.scope = "col";
      head.append(cell);
    }
    root.append(element("tbody"));
  }
  const body = root.tBodies[0];
  begin(body);
  let before = null;
  for (const row of rows) {
    const line = keep(body, String(key(row)), () => {
      const made = element("tr");
      for (const [, , kind] of columns) {
        const cell = element("td", undefined, kind);
        if (kind === "link") {
          const link = element("a");
          link.href = `#/${[bus, row.kind, row.topic, row.name].map(encodeURIComponent).join("/")}`;
          cell.append(link);
        }
        made.append(cell);
      }
      return made;
    });
    line.className = row.stuck ? "bad" : row.state ? severity(row) : "";
    columns.forEach(([, text], at) => say(line.cells[at].firstElementChild ?? line.cells[at], text(row)));
    if (line.previousElementSibling !== before) body.insertBefore(line, before ? before.nextSibling : body.firstChild);
    before = line;
  }
  if (!rows.length) {
    const line = keep(body, "nothing", () => {
      const made = element("tr");
      made.append(set(element("td", nothing, "nothing"), { colspan: columns.length }));
      return made;
    });
    say(line.firstChild, nothing);
  }
  finish(body);
}

// -- what the reader does

$("bus").addEventListener("change", () => {
  bus = $("bus").value;
  location.hash = `#/${encodeURIComponent(bus)}`;
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  set($("pause"), { "aria-pressed": paused });
  say($("pause"), paused ? "Go on" : "Pause");
  document.body.classList.toggle("paused", paused);
});
const dark = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  return document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : dark.matches;
}
function nameTheme() {
  say($("theme"), isDark() ? "Light" : "Dark");
}
$("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
});
dark.addEventListener("change", nameTheme);
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("shmbus-token", token);
});
$("all").addEventListener("click", () => {
  all = !all;
  showConsumers();
});
for (const id of ["filter", "sort"]) $(id).addEventListener("input", () => view && showConsumers());
addEventListener("hashchange", () => {
  if (!view) return;
  show();
  if (!$("own").hidden) $("own-title").focus();
});
addEventListener("resize", () => view && show());
nameTheme();
turn();
