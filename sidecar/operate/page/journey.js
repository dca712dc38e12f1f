"use strict";
// A span's journey: the listener, the open spans, and a lane for each upstream.

// For how long what happened is a warning, as in the answers.
const RECENT_S = 900;
const LEVELS = { not_asked: "none", up: "ok", throttled: "warn", down: "bad", unauthorized: "bad", braked: "bad" };

const reasons = (counts) => Object.entries(counts).filter(([, number]) => number)
  .map(([reason, number]) => `${count(number)} ${reason.replaceAll("_", " ")}`).join(", ");

const stateOf = (of) => (of.has_credential ? of.state.replace("not_asked", "not asked yet") : "no credential");
// Not asked is no health. But why no connection could be opened at the start is worth a look.
const levelOf = ({ has_credential: hasKey, state, last_error: error }) => (!hasKey ? "bad" : state === "not_asked" && error ? "warn" : LEVELS[state]);
const isRecent = (age) => age !== null && age < RECENT_S;
const fullIn = (seconds) => (seconds === null ? "" : `, full in ${time(seconds)} at this rate`);

class Lane {
  constructor(sink) {
    const name = NAMES[sink] ?? sink;
    this.queue = new Box(`${name} queue`, "waiting", [["oldest", "oldest write"], ["disk", "only on disk"]], "queue join");
    this.drain = new Box("Drain", "/s", [["sending", "being sent"], ["retrying", "to be retried"], ["requests", "requests"]], "join");
    this.upstream = new Box(name, null, [["took", "request p50"], ["slow", "request p95"], ["delay", "delivery p95"], ["failed", "failed requests"]], "join upstream");
    this.room = new Meter();
    this.roomNote = el("p", { class: "note" });
    this.pace = el("p", { class: "note" });
    this.queue.root.append(this.room.root, this.roomNote, this.pace);
    this.accounts = el("ul", { class: "accounts", "aria-label": `Accounts at ${name}` });
    this.upstream.root.append(this.accounts);
    this.state = el("span", { class: "state" });
    this.upstream.title.append(this.state);
    const steps = el("ol", { "aria-label": `${name} lane` }, this.queue.root, this.drain.root, this.upstream.root);
    this.root = el("li", { class: "lane" }, steps);
  }

  show(lane, eventsPerS) {
    const notUp = !lane.has_credential || !["up", "not_asked"].includes(lane.state);
    setText(this.queue.number, count(lane.depth));
    this.queue.terms.show({ oldest: lane.depth ? time(lane.oldest_write_age_s) : "–", disk: count(lane.on_disk) });
    this.queue.flows(eventsPerS > 0);
    this.room.show(lane.lane_bytes, lane.lane_limit_bytes);
    setText(this.roomNote, `room ${bytes(lane.lane_bytes)} of ${bytes(lane.lane_limit_bytes)}${fullIn(lane.full_in_s)}`);
    setText(this.pace, lane.caught_up_in_s === null ? "" : `caught up in ${time(lane.caught_up_in_s)} at this rate`);
    setAttr(this.queue.note, "data-level", lane.not_taken_per_s ? "bad" : isRecent(lane.not_taken_age_s) ? "warn" : "none");
    setText(this.queue.note, lane.not_taken ? `not taken so far: ${reasons(lane.not_taken_by_reason)}` : "");
    setText(this.drain.number, rate(lane.forwarded_per_s));
    this.drain.terms.show({
      sending: count(lane.in_flight - lane.retrying),
      retrying: count(lane.retrying),
      requests: `${count(lane.requests_in_flight)} of ${count(lane.concurrency_limit)}`,
    });
    this.drain.flows(lane.forwarded_per_s > 0);
    this.upstream.flows(lane.forwarded_per_s > 0, notUp);
    const level = levelOf(lane);
    setAttr(this.state, "data-level", level);
    setAttr(this.upstream.root, "data-level", level);
    setText(this.state, stateOf(lane));
    const ms = (seconds) => (seconds === null ? "–" : time(seconds));
    this.upstream.terms.show({ took: ms(lane.request_p50_s), slow: ms(lane.request_p95_s), delay: ms(lane.delay_p95_s), failed: `${rate(lane.failed_requests_per_s)}/s` });
    const error = lane.last_error;
    const last = error ? `last error ${error.age_s < 1 ? "just now" : `${time(error.age_s)} ago`}: ${error.text} (${error.kind.replace("_", " ")})` : "no error so far";
    setAttr(this.upstream.note, "data-level", level);
    setText(this.upstream.note, lane.next_attempt ? `${last}; ${lane.next_attempt}` : last);
    this.showAccounts(lane.accounts.length > 1 ? lane.accounts : []);
  }

  showAccounts(accounts) {
    while (this.accounts.children.length < accounts.length) this.accounts.append(el("li"));
    accounts.forEach((account, i) => {
      const item = this.accounts.children[i];
      setAttr(item, "data-level", levelOf(account));
      setText(item, `account ${account.id ?? "–"}: ${stateOf(account)}, ${count(account.depth)} waiting`);
    });
  }
}

class Journey {
  constructor(status) {
    this.listener = new Box("Listener", "events/s", [["accepted", "accepted"], ["refused", "refused"], ["durability", "kept in"]]);
    this.open = new Box("Open spans", "running", [["held", "held STARTs"], ["joined", "joined events"]], "join");
    // Memory that is nearly full is no fault of its own: what it means is in the answers.
    this.memory = new Meter("warn");
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
    const use = (part) => `${bytes(part.bytes)} of ${bytes(part.limit_bytes)}${fullIn(part.full_in_s)}`;
    const disk = spool ? `; spool ${use(spool)}${spool.degraded ? "; its disk can’t be used" : ""}` : "";
    setText(this.open.note, `span memory ${use(queue)}${disk}`);
    this.memory.show(queue.bytes, queue.limit_bytes);
    for (const [sink, lane] of Object.entries(this.lanes)) lane.show(status.sinks[sink], intake.events_per_s);
  }

  refusals(counts) {
    const counted = reasons(counts);
    return counted ? `refused so far: ${counted}` : "no event refused so far";
  }
}
