// An agent that traces itself with fetch: `node agent.js`. Node 18 or newer, no packages.
//
// To trace an agent of your own, copy everything above `search`.

import { AsyncLocalStorage } from "node:async_hooks";
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

const url = `${process.env.TRACE_SIDECAR_URL ?? "http://127.0.0.1:8318"}/v1/spans`;
const giveUpMs = 20_000; // for one request, and at exit for all that is left
const most = 1000; // events that wait; what does not fit is dropped
const current = new AsyncLocalStorage();
const waiting = [];
let delivering;

// Sends events. For a while, tries again what may pass: no sidecar yet, 408, 429, 503.
async function post(events) {
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: `[${events.join(",")}]`,
  };
  const giveUp = performance.now() + giveUpMs;
  for (let pause = 100; ; pause = Math.min(2 * pause, 2000)) {
    let wait = pause;
    try {
      const reply = await fetch(url, { ...request, signal: AbortSignal.timeout(5000) });
      const text = await reply.text();
      if (reply.status === 202) {
        for (const { error } of JSON.parse(text).rejected) console.error("event rejected:", error);
        return;
      }
      if (![408, 429, 503].includes(reply.status)) {
        return console.error("events refused:", text);
      }
      wait = Math.max(pause, 1000 * (Number(reply.headers.get("Retry-After")) || 0));
    } catch {
      // Nothing listens yet, or the connection broke. Sending twice is harmless.
    }
    if (performance.now() + wait > giveUp) {
      return console.error(`${events.length} events dropped: no sidecar at ${url}`);
    }
    await sleep(wait);
  }
}

async function deliver() {
  while (waiting.length) await post(waiting.splice(0, 100));
  delivering = undefined;
}

// Never waits: the events are posted while the agent does something else.
function send(event_type, span) {
  if (waiting.length >= most) return;
  waiting.push(JSON.stringify({ event_type, span }));
  delivering ??= deliver();
}

// Waits until everything is delivered, but not for long.
function finish() {
  return Promise.race([delivering, sleep(giveUpMs, undefined, { ref: false })]);
}

// Traces a function: its START, and however it ends, its END. The function sets `span.output`.
async function traced(name, input, work) {
  const parent = current.getStore();
  const start = Date.now();
  const span = {
    id: randomUUID(),
    trace_id: parent?.trace_id ?? randomUUID(),
    parent_id: parent?.id ?? null,
    name,
    start_time: new Date(start).toISOString(),
    input,
  };
  send("start", span);
  try {
    return await current.run(span, () => work(span));
  } catch (error) {
    const { name: type, message } = error;
    span.data = { __error__: { type, message, category: "unknown" } };
    throw error;
  } finally {
    span.end_time = new Date(Math.max(start, Date.now())).toISOString();
    send("end", span);
  }
}

const search = (question) =>
  traced("search", { query: question }, async (span) => {
    span.output = { parcels: [{ number: 7, status: "delivered" }] };
    return "delivered";
  });

// A tool that fails: its span ends all the same, with the error.
const notify = (number) =>
  traced("notify", { parcel: number }, async () => {
    throw new Error("the mail server gives no answer");
  });

const answer = (question) =>
  traced("turn", { question }, async (turn) => {
    const [status] = await Promise.allSettled([search(question), notify(7)]);
    const messages = [{ role: "user", content: `${question} Its status is: ${status.value}.` }];
    const content = await traced("model", { messages }, async (model) => {
      model.output = { role: "assistant", content: "It was delivered." };
      return model.output.content;
    });
    turn.output = { answer: content };
    return content;
  });

process.once("SIGTERM", () => finish().then(() => process.exit(0)));
console.log(await answer("Where is my parcel?"));
await finish();
