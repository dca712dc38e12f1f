"use strict";
// Polls /status twice a second while the page is visible. An outage shows within two
// seconds; the sidecar itself may take one second to detect it.

const POLL_MS = 500;
const TIMEOUT_MS = 4000;

let view = null; // the widgets built for this run of the process
let uptime = Infinity;
let lastResponseAt = null;
let announced = "";

// `rows`: [text, key, level of a number other than 0, as long as `isOpen(key, column)`].
class AccountingTable {
  constructor(caption, columns, rows) {
    this.cells = [];
    const body = el("tbody");
    for (const [text, key, level] of rows) {
      const cells = columns.map(() => el("td"));
      this.cells.push([key, level, cells]);
      body.append(el("tr", {}, el("th", { scope: "row" }, text), ...cells));
    }
    const heads = columns.map((column) => el("th", { scope: "col" }, column));
    const head = el("thead", {}, el("tr", {}, el("th", { scope: "col" }, columns.length > 1 ? "writes" : "events"), ...heads));
    this.root = el("table", {}, el("caption", {}, caption), head, body);
  }

  show(columns, isOpen = () => true) {
    for (const [key, level, cells] of this.cells) {
      cells.forEach((cell, i) => {
        const number = columns[i][key];
        setText(cell, key === "imbalance" && !number ? "0 ✓" : count(number));
        setAttr(cell, "data-level", number ? (isOpen(key, columns[i]) ? level : "none") : key === "imbalance" ? "ok" : "none");
      });
    }
  }
}

class Accounting {
  constructor(status) {
    const names = Object.keys(status.sinks).map((sink) => NAMES[sink] ?? sink);
    this.events = new AccountingTable("Events: received + replayed from the spool = joined + held + written", ["count"], [
      ["received", "received", ""], ["replayed from the spool", "replayed", ""], ["joined", "joined", ""], ["held", "held", ""], ["written", "written", ""], ["difference", "imbalance", "bad"],
    ]);
    this.writes = new AccountingTable("Writes: offered = not taken + written; written = the sum of their outcomes and what is in the lane", names, [
      ["offered", "offered", ""], ["not taken", "not_taken", "bad"], ["written", "written", ""], ["forwarded", "forwarded", ""], ["superseded", "superseded", ""], ["skipped", "skipped", ""], ["dead letters", "dead_lettered", "warn"], ["lost", "lost", "bad"], ["in the lane", "depth", ""], ["difference", "imbalance", "bad"],
    ]);
    byId("accounting").replaceChildren(this.events.root, this.writes.root);
  }

  show(status) {
    this.events.show([status.events]);
    // What is over is a number, not an alarm: the same times as in the answers.
    const { kept } = status.dead_letters;
    const isOpen = (key, sink) => {
      if (key === "dead_lettered" && kept !== null) return kept > 0;
      return key === "imbalance" || isRecent(sink[`${key}_age_s`]);
    };
    this.writes.show(Object.values(status.sinks), isOpen);
  }
}

function buildCharts(limits) {
  charts.length = 0;
  const group = (title, ...row) => el("div", { class: "group" }, el("h3", {}, title), el("div", { class: "row" }, ...row.map((chart) => chart.root)));
  const groups = [group("Process",
    new Chart("Events accepted", "Events accepted per second", "events_per_s", (value) => `${rate(value)}/s`),
    new Chart("RSS", "Resident memory", "rss_bytes", bytes, { limit: () => limits.rss, missing: "unknown" }),
    new Chart("Span memory", "Memory for spans", "queue_bytes", bytes, { limit: () => limits.queue }),
    new Chart("CPU", "Share of one CPU core", "cpu", percent))];
  for (const sink of limits.sinks) {
    const name = NAMES[sink] ?? sink;
    const chart = (title, what, format) => new Chart(title, `${name}: ${title}`, `${sink}.${what}`, format, { state: `${sink}.state` });
    groups.push(group(name,
      chart("Depth", "depth", count),
      chart("Oldest write", "age_s", time),
      chart("Forwarded", "forwarded_per_s", (value) => `${rate(value)}/s`),
      chart("Request p50", "request_s", time)));
  }
  byId("charts").replaceChildren(...groups);
}

// What to do while no event was ever received, in place of the first answer's advice.
class FirstSpan {
  constructor() {
    this.shown = null;
  }

  // Returns whether it is shown.
  show({ answers: [{ hint }] }) {
    const command = commandOf(hint);
    const now = command?.startsWith("curl ") ? command : null;
    byId("first").hidden = now === null;
    if (now === this.shown || now === null) return now !== null;
    this.shown = now;
    const [, id] = /"id":"([^"]+)"/.exec(now) ?? [];
    byId("first").replaceChildren(
      el("h2", { id: "first-title" }, "Send the first span"),
      el("p", {}, "An agent’s first span shows here within a second. To try it without one, run this in the pod:"),
      commandLine(now),
      el("p", {}, "Then ask for it: ", idLink(id ?? "")),
    );
    return true;
  }
}

function showConfig(config) {
  const list = (value) => (Array.isArray(value) ? value : Object.entries(value).map((pair) => pair.join(": "))).join(", ");
  const text = (value) => (typeof value === "object" ? list(value) : String(value)) || "–";
  const sections = Object.entries(config).map(([section, values]) => {
    const terms = new Terms(Object.keys(values).map((key) => [key, key]));
    terms.show(Object.fromEntries(Object.entries(values).map(([key, value]) => [key, text(value)])));
    return el("div", { class: "config" }, el("h3", {}, section), terms.root);
  });
  byId("config").replaceChildren(...sections);
}

function build(status) {
  view = {
    limits: { sinks: Object.keys(status.sinks) },
    answers: status.answers.map(({ question }) => new Answer(question)),
    journey: new Journey(status),
    accounting: new Accounting(status),
    letters: new Letters(),
    first: new FirstSpan(),
  };
  byId("answers").replaceChildren(...view.answers.map((answer) => answer.root));
  buildCharts(view.limits);
  showConfig(status.config);
}

const worst = (answers) => ["bad", "warn", "ok"].find((level) => answers.some((answer) => answer.level === level));

function announce(status) {
  const level = worst(status.answers);
  const { answer } = status.answers.filter((each) => each.level === level).at(-1);
  document.title = `${MARKS[level]} ${answer} · ${status.host}`;
  icon(level);
  // For screen readers: announce a change of a level, not every change of a number.
  const levels = status.answers.map((each) => each.level).join();
  if (levels !== announced) setText(byId("spoken"), status.answers.map((each) => `${each.question} ${each.answer}.`).join(" "));
  announced = levels;
}

function icon(level) {
  const color = { ok: "%231a8f48", warn: "%23c77f00", bad: "%23d0342a" }[level];
  const image = `data:image/svg+xml,<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><circle cx="8" cy="8" r="7" fill="${color}"/></svg>`;
  setAttr(document.querySelector("link[rel=icon]"), "href", image);
}

function whereOf({ host, pod }) {
  return `${pod.namespace ? `${pod.namespace}/` : ""}${pod.name ?? host}${pod.node ? ` on ${pod.node}` : ""}`;
}

function show(status) {
  view.limits.rss = status.memory.limit_bytes;
  view.limits.queue = status.queue.limit_bytes;
  const { memory } = status;
  const rss = memory.rss_bytes === null ? " · memory unknown" : ` · ${bytes(memory.rss_bytes)}${memory.limit_bytes ? ` of ${bytes(memory.limit_bytes)}` : ""} memory`;
  setText(byId("process"), `${whereOf(status)} · version ${status.version} · up ${time(status.uptime_s)}${rss} · ${percent(status.cpu)} CPU`);
  const isEmpty = view.first.show(status);
  status.answers.forEach((answer, i) => view.answers[i].show(answer, !(isEmpty && i === 0)));
  view.letters.show(status.dead_letters, status.time);
  view.journey.show(status);
  view.accounting.show(status);
  announce(status);
}

async function get(path, timeoutMs = TIMEOUT_MS) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(timeoutMs) });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response.json();
}

function showUnreachable() {
  const since = lastResponseAt === null ? "" : ` since ${lastResponseAt.toISOString().slice(11, 19)} UTC. Its state at that time is shown below`;
  setText(byId("gone"), `The sidecar has not responded${since}. Trying again.`);
  byId("gone").hidden = false;
  document.body.classList.add("stale");
  setAttr(byId("live"), "data-level", "bad");
  setText(byId("live"), "not responding");
  document.title = "✕ The sidecar does not respond";
  icon("bad");
}

function showLive() {
  lastResponseAt = new Date();
  byId("gone").hidden = true;
  document.body.classList.remove("stale");
  setAttr(byId("live"), "data-level", "ok");
  setText(byId("live"), "live");
}

async function refresh() {
  let status;
  let fresh;
  let piece = null;
  try {
    status = await get("status");
    fresh = status.uptime_s < uptime;
    if (fresh || status.samples !== past.next) {
      piece = await get(`status/history?after=${fresh ? 0 : past.next}`);
    }
  } catch {
    showUnreachable();
    return;
  }
  showLive();
  // A new process on the same port: rebuild the widgets and drop the old history.
  if (fresh) build(status);
  uptime = status.uptime_s;
  show(status);
  if (piece !== null) {
    past.add(piece);
    setText(byId("span"), `The last ${past.span}`);
    for (const chart of charts) chart.draw();
  }
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, POLL_MS);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
followLink();
run();
