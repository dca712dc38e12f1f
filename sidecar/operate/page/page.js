"use strict";
// Polls /status twice a second while the page is visible. An outage shows within two
// seconds; the sidecar itself may take one second to detect it.

const POLL_MS = 500;
const TIMEOUT_MS = 4000;
const NAMES = { agentex: "Agentex", sgp: "SGP" };
const LEVELS = { not_asked: "ok", up: "ok", throttled: "warn", down: "bad", unauthorized: "bad", braked: "bad" };
const byId = (id) => document.getElementById(id);

let view = null; // the widgets built for this run of the process
let uptime = Infinity;
let lastResponseAt = null;
let announced = "";

const reasons = (counts) => Object.entries(counts).filter(([, number]) => number)
  .map(([reason, number]) => `${count(number)} ${reason.replaceAll("_", " ")}`).join(", ");

const stateOf = (of) => (of.has_credential ? of.state.replace("not_asked", "not asked yet") : "no credential");

class Lane {
  constructor(sink) {
    const name = NAMES[sink] ?? sink;
    this.queue = new Box(`${name} queue`, "waiting", [["oldest", "oldest write"], ["disk", "only on disk"]], "queue join");
    this.drain = new Box("Drain", "/s", [["flight", "writes in flight"], ["limit", "request limit"], ["retries", "batches retried"]], "join");
    this.upstream = new Box(name, null, [["took", "request p50"], ["slow", "request p95"], ["delay", "delivery p95"], ["failed", "failed requests"]], "join upstream");
    this.room = new Meter();
    this.roomNote = el("p", { class: "note" });
    this.queue.root.append(this.room.root, this.roomNote);
    this.accounts = el("ul", { class: "accounts", "aria-label": `Accounts at ${name}` });
    this.upstream.root.append(this.accounts);
    this.state = el("span", { class: "state" });
    this.upstream.title.append(this.state);
    const steps = el("ol", { "aria-label": `${name} lane` }, this.queue.root, this.drain.root, this.upstream.root);
    this.root = el("li", { class: "lane" }, steps);
  }

  show(lane, eventsPerS) {
    const notUp = !["up", "not_asked"].includes(lane.state);
    setText(this.queue.number, count(lane.depth));
    this.queue.terms.show({ oldest: lane.depth ? time(lane.oldest_write_age_s) : "–", disk: count(lane.on_disk) });
    this.queue.flows(eventsPerS > 0);
    this.room.show(lane.lane_bytes, lane.lane_limit_bytes);
    setText(this.roomNote, `room ${bytes(lane.lane_bytes)} of ${bytes(lane.lane_limit_bytes)}`);
    setAttr(this.queue.note, "data-level", lane.not_taken_per_s ? "bad" : "warn");
    setText(this.queue.note, lane.not_taken ? `not taken: ${reasons(lane.not_taken_by_reason)}` : "");
    setText(this.drain.number, rate(lane.forwarded_per_s));
    this.drain.terms.show({ flight: count(lane.in_flight), limit: count(lane.concurrency_limit), retries: count(lane.retries) });
    this.drain.flows(lane.forwarded_per_s > 0);
    this.upstream.flows(lane.forwarded_per_s > 0, notUp);
    const level = lane.has_credential ? LEVELS[lane.state] : "bad";
    setAttr(this.state, "data-level", level);
    setAttr(this.upstream.root, "data-level", level);
    setText(this.state, stateOf(lane));
    const ms = (seconds) => (seconds === null ? "–" : time(seconds));
    this.upstream.terms.show({ took: ms(lane.request_p50_s), slow: ms(lane.request_p95_s), delay: ms(lane.delay_p95_s), failed: `${rate(lane.failed_requests_per_s)}/s` });
    const error = lane.last_error;
    const last = error ? `last error ${time(error.age_s)} ago: ${error.text} (${error.kind.replace("_", " ")})` : "no error so far";
    const next = lane.next_attempt_s ? `next attempt in ${time(lane.next_attempt_s)}` : "next attempt now";
    setAttr(this.upstream.note, "data-level", level);
    setText(this.upstream.note, notUp ? `${last}; ${next}` : last);
    this.showAccounts(lane.accounts.length > 1 ? lane.accounts : []);
  }

  showAccounts(accounts) {
    while (this.accounts.children.length < accounts.length) this.accounts.append(el("li"));
    accounts.forEach(({ id, state, depth, has_credential: hasKey }, i) => {
      const item = this.accounts.children[i];
      setAttr(item, "data-level", hasKey ? LEVELS[state] : "bad");
      setText(item, `account ${id ?? "–"}: ${stateOf({ state, has_credential: hasKey })}, ${count(depth)} waiting`);
    });
  }
}

class Journey {
  constructor(status) {
    this.listener = new Box("Listener", "events/s", [["accepted", "accepted"], ["refused", "refused"], ["durability", "kept in"]]);
    this.open = new Box("Open spans", "running", [["held", "held STARTs"], ["joined", "joined events"]], "join");
    this.memory = new Meter();
    this.open.root.append(this.memory.root);
    this.lanes = Object.fromEntries(Object.keys(status.sinks).map((sink) => [sink, new Lane(sink)]));
    const lanes = el("ol", { "aria-label": "Lanes", class: "lanes" }, ...Object.values(this.lanes).map((lane) => lane.root));
    byId("journey").replaceChildren(this.listener.root, this.open.root, el("li", { class: "lanes" }, lanes));
  }

  show(status) {
    const { intake, events, queue, spool } = status;
    setText(this.listener.number, rate(intake.events_per_s));
    this.listener.terms.show({ accepted: count(events.received), refused: `${rate(intake.rejected_per_s)}/s`, durability: status.durability === "disk" ? "the spool" : "memory" });
    setText(this.listener.note, this.refusals(intake.rejected_by_reason));
    setText(this.open.number, count(status.open_spans));
    this.open.terms.show({ held: count(events.held), joined: count(events.joined) });
    this.open.flows(intake.events_per_s > 0);
    const disk = spool ? `; spool ${bytes(spool.bytes)} of ${bytes(spool.limit_bytes)}${spool.degraded ? ", its disk can’t be used" : ""}` : "";
    setText(this.open.note, `span memory ${bytes(queue.bytes)} of ${bytes(queue.limit_bytes)}${disk}`);
    this.memory.show(queue.bytes, queue.limit_bytes);
    for (const [sink, lane] of Object.entries(this.lanes)) lane.show(status.sinks[sink], intake.events_per_s);
  }

  refusals(counts) {
    const counted = reasons(counts);
    return counted ? `refused so far: ${counted}` : "nothing refused so far";
  }
}

// `rows`: [text, key, level of a number other than 0].
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

  show(columns) {
    for (const [key, level, cells] of this.cells) {
      cells.forEach((cell, i) => {
        const number = columns[i][key];
        setText(cell, key === "imbalance" && !number ? "0 ✓" : count(number));
        setAttr(cell, "data-level", number ? level : key === "imbalance" ? "ok" : "none");
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
    this.writes.show(Object.values(status.sinks));
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

function showConfig(config) {
  const text = (value) => (value === "" ? "–" : Array.isArray(value) ? value.join(", ") : String(value));
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
  status.answers.forEach((answer, i) => view.answers[i].show(answer));
  view.journey.show(status);
  view.accounting.show(status);
  announce(status);
}

async function get(path) {
  const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  return response.json();
}

function showUnreachable() {
  const since = lastResponseAt === null ? "" : ` since ${lastResponseAt.toLocaleTimeString()}. Its state at that time is shown below`;
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
    for (const chart of charts) chart.draw();
  }
}

async function run() {
  if (!document.hidden) await refresh();
  setTimeout(run, POLL_MS);
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
run();
