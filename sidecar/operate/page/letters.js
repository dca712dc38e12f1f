"use strict";
// Dead letters: the last of them, and the command that sends those that are kept again.

// Of ISO 8601 in UTC: the time of day, with the date unless it is `today` (ISO 8601, too).
function clock(at, today) {
  const [date, rest] = at.split("T");
  const text = rest.replace(/Z|\+00:00$/, "");
  return today.startsWith(date) ? text : `${date} ${text}`;
}

const when = (at, today) => el("time", { datetime: at }, clock(at, today));
const idLink = (id) => el("a", { href: `#id=${encodeURIComponent(id)}` }, id);
const words = (reason) => reason.replaceAll("_", " ");

class Letters {
  constructor() {
    this.shown = "";
    this.command = null;
    this.note = el("p", { class: "note" });
    this.replay = el("div");
    this.rows = el("tbody");
    const heads = ["time (UTC)", "span", "upstream", "reason", "status", "event", "account"];
    const head = el("thead", {}, el("tr", {}, ...heads.map((text) => el("th", { scope: "col" }, text))));
    const table = el("table", {}, el("caption", { class: "unseen" }, "The last dead letters, newest first"), head, this.rows);
    this.scroll = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The last dead letters" }, table);
    const title = el("h2", { id: "letters-title" }, "Dead letters ", el("small", {}, "the last 20, newest first"));
    byId("letters").replaceChildren(title, this.note, this.replay, this.scroll);
  }

  show(letters, today) {
    const { last, kept, not_kept: notKept } = letters;
    byId("letters").hidden = !(last.length || kept || notKept);
    setText(this.note, this.where(letters));
    this.showReplay(kept ? letters.replay : null);
    const now = JSON.stringify([last, today.slice(0, 10)]);
    if (now === this.shown) return;
    this.shown = now;
    this.scroll.hidden = !last.length;
    this.rows.replaceChildren(...last.map((letter) => this.row(letter, today)));
  }

  // Rebuilt only when the command changes, so that its button keeps the focus while letters arrive.
  showReplay(command) {
    if (command === this.command) return;
    this.command = command;
    this.replay.replaceChildren(...(command ? [el("p", { class: "note" }, "Fix the cause, then send them again. In the pod, run:"), commandLine(command)] : []));
  }

  where({ path, kept, not_kept: notKept }) {
    const parts = [];
    if (path === null) parts.push("They are not kept, because dead_letters.path is not set");
    else if (kept === null) parts.push(`How many wait in ${path} is not known`);
    else if (kept) parts.push(`${count(kept)} ${kept === 1 ? "waits" : "wait"} for a replay in ${path}`);
    else parts.push(`None waits for a replay: ${path} has none that was not delivered since`);
    if (path !== null && notKept) parts.push(`${count(notKept)} ${notKept === 1 ? "is" : "are"} not in the file`);
    return `${parts.join("; ")}.`;
  }

  row({ time: at, id, sink, reason, status, kind, account }, today) {
    const cells = [NAMES[sink] ?? sink, words(reason), status || "no response", kind === "end" ? "END" : "START", account ?? "–"];
    return el("tr", {}, el("td", {}, when(at, today)), el("td", { class: "id" }, idLink(id)), ...cells.map((text) => el("td", {}, String(text))));
  }
}
