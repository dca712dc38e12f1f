"use strict";
// The search: what became of a span, or of the spans of a trace. `#id=ID` in the address is a
// link to the answer. It is as of one moment, and says so: it does not poll.

// The sidecar may take 5 s for its disk, besides its turn.
const EXPLAIN_MS = 12000;
// A trace with more spans than this shows one line for each of them, to be opened.
const MAX_OPEN = 3;
const OUTCOMES = { forwarded: "ok", "partly kept": "bad", "not accepted": "warn", "not taken": "bad", "dead letter": "bad", lost: "bad" };

let asked = null; // the id whose answer is shown or on its way

function wantedId() {
  const [, id] = /^#id=(.+)$/s.exec(location.hash) ?? [];
  try {
    return id ? decodeURIComponent(id) : null;
  } catch {
    return id;
  }
}

function timelineOf(span, today) {
  const entries = span.timeline.map(({ at, ago_s: ago, what, text }) =>
    el("li", { "data-level": OUTCOMES[what] ?? "none" }, el("span", { class: "at" }, when(at, today), ` · ${time(ago)} ago`), el("span", {}, text)));
  const list = el("ol", { class: "timeline" }, ...entries);
  if (!span.left_off) return [list];
  return [list, el("p", { class: "note" }, `${count(span.left_off)} more in the middle are left off.`)];
}

function letterLine({ time: at, sink, reason, status, kind, replayed }, today) {
  const answered = status ? `HTTP ${status}` : "no response";
  return el("li", {}, when(at, today), `: ${NAMES[sink] ?? sink}, ${words(reason)} (${answered}), its ${kind} write${replayed ? ", replayed since" : ""}`);
}

// What is known of a span, below its id.
function aboutSpan(span, today) {
  const about = [];
  if (span.trace_id) about.push("Trace ", idLink(span.trace_id));
  if (span.account) about.push(`${about.length ? " · account " : "Account "}${span.account}`);
  const letters = span.dead_letters.map((letter) => letterLine(letter, today));
  return [
    el("p", { class: "about" }, ...about, about.length ? " " : "", copyButton("Copy id", span.id, () => span.id)),
    ...(span.timeline.length ? timelineOf(span, today) : [el("p", { class: "note" }, "None of its decisions are remembered.")]),
    ...(letters.length ? [el("p", { class: "note" }, "Among the dead letters:"), el("ul", { class: "kept" }, ...letters)] : []),
  ];
}

const nowOf = (span) => el("p", { class: "summary" }, el("b", {}, "Now: "), span.summary);

function listOf(spans, today) {
  const items = spans.map((span) => {
    const item = el("details", { class: "span" }, el("summary", {}, el("h3", {}, span.id), nowOf(span)), ...aboutSpan(span, today));
    item.open = spans.length <= MAX_OPEN;
    return item;
  });
  return el("div", { class: "spans", role: "region", tabindex: 0, "aria-label": "The spans" }, ...items);
}

function searchedWords({ remembered, searched }, today) {
  const start = clock(remembered.since.replace(/\.\d+/, ""), today);
  const since = `the last ${count(remembered.decisions)} decisions, back to ${start} UTC`;
  const all = `all decisions since the start at ${start} UTC`;
  const places = [!remembered.decisions ? "no decisions, because admin.decisions is 0" : remembered.all ? all : since];
  const others = [["spool", "the spool", "no spool is configured"], ["dead_letters", "the dead letters", "no dead letters are kept"]];
  for (const [key, name, none] of others) {
    if (searched[key] === null) places.push(none);
    else places.push(searched[key] ? name : `not all of ${name}: they could not be read in time`.replace("spool: they", "spool: it"));
  }
  return `Searched: ${places.join("; ")}.`;
}

function titleOf({ id, found_by: by, spans, left_off: leftOff }) {
  const code = el("code", {}, id);
  if (!spans.length) return ["Nothing is known of ", code];
  const total = spans.length + leftOff;
  return by === "trace" ? ["Trace ", code, `: ${count(total)} ${total === 1 ? "span" : "spans"}`] : ["What became of ", code];
}

function showAnswer(id, title, parts, tools = []) {
  const again = el("button", { type: "button" }, "Look again");
  again.addEventListener("click", () => explain(id));
  const close = el("button", { type: "button", "aria-keyshortcuts": "Escape" }, "Close");
  close.addEventListener("click", closeAnswer);
  const heading = el("h2", { id: "found-title", tabindex: -1 }, ...title);
  byId("found").replaceChildren(el("div", { class: "head" }, heading, el("div", { class: "tools" }, ...tools, again, close)), ...parts);
  byId("found").hidden = false;
  return heading;
}

function showFound(answer) {
  const now = new Date().toISOString();
  const json = JSON.stringify(answer, null, 2);
  const { spans, left_off: leftOff } = answer;
  const isOne = spans.length === 1 && answer.found_by === "span";
  const asJson = el("details", { class: "json" }, el("summary", {}, "As JSON"), el("pre", { tabindex: 0 }, json));
  const parts = [
    el("p", { class: "note" }, `As of ${now.slice(11, 19)} UTC. ${searchedWords(answer, now)}`),
    ...(spans.length ? [] : [el("p", { class: "unknown" }, `${answer.text[0].toUpperCase()}${answer.text.slice(1)}.`)]),
    ...(isOne ? [nowOf(spans[0]), ...aboutSpan(spans[0], now)] : spans.length ? [listOf(spans, now)] : []),
    ...(leftOff ? [el("p", { class: "note" }, `${count(leftOff)} older spans of the trace are not shown.`)] : []),
    asJson,
  ];
  return showAnswer(answer.id, titleOf(answer), parts, [copyButton("Copy JSON", "", () => json)]);
}

async function explain(id) {
  asked = id;
  byId("wanted").value = id;
  byId("found").setAttribute("aria-busy", "true");
  if (byId("found").hidden) showAnswer(id, ["Looking for ", el("code", {}, id)], []);
  let heading;
  try {
    const answer = await get(`explain?id=${encodeURIComponent(id)}`, EXPLAIN_MS);
    if (asked !== id) return; // another one was asked for meanwhile
    heading = showFound(answer);
  } catch (error) {
    if (asked !== id) return;
    const why = error.name === "TimeoutError" ? `it took longer than ${EXPLAIN_MS / 1000} s` : error.message;
    heading = showAnswer(id, ["The sidecar did not answer about ", el("code", {}, id)], [el("p", { class: "unknown" }, `${why}.`)]);
  }
  byId("found").removeAttribute("aria-busy");
  heading.focus();
}

function closeAnswer() {
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  hideAnswer();
  byId("wanted").focus();
}

function hideAnswer() {
  asked = null;
  byId("found").hidden = true;
  byId("found").replaceChildren();
}

function followLink() {
  const id = wantedId();
  if (id === null) hideAnswer();
  else explain(id);
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const id = byId("wanted").value.trim();
  if (!id) return;
  const link = `#id=${encodeURIComponent(id)}`;
  if (location.hash === link) explain(id);
  else location.hash = link;
});
window.addEventListener("hashchange", followLink);
window.addEventListener("popstate", () => location.hash || hideAnswer());
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("input, textarea");
  if (event.key === "Escape" && !byId("found").hidden) closeAnswer();
  if (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  byId("wanted").select();
});
