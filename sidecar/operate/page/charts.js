"use strict";
// DOM helpers, number formats, and charts that share one cursor, so that all of them show the
// same moment.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "rect"]);
const HEIGHT = 100;
const MIN_SAMPLES = 4;
// The upstreams by sink, on or off, as the server spells them.
const NAMES = JSON.parse(document.body.dataset.titles);
const byId = (id) => document.getElementById(id);

function el(tag, attributes = {}, ...children) {
  const element = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Touches the DOM only on a change, so that a selection survives and screen readers do not repeat
// themselves.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setAttr(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

const integers = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1 });

const count = (value) => integers.format(value);
const rate = (value) => (value < 10 ? tenths : integers).format(value);
const percent = (value) => `${tenths.format(value * 100)}%`;

function bytes(value) {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= size) return `${(value / size < 100 ? tenths : integers).format(value / size)} ${unit}`;
  }
  return `${count(value)} B`;
}

function time(seconds) {
  if (seconds < 1) return `${count(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

// The samples of /status/history, extended with each response.
const past = {
  next: 0,
  kept: 180,
  step: 5,
  states: [],
  series: {},
  add(piece) {
    this.kept = piece.kept;
    this.step = piece.step_s;
    this.states = piece.states;
    const follows = piece.first > 0 && piece.first === this.next;
    for (const [name, values] of Object.entries(piece.series)) {
      this.series[name] = [...(follows ? this.series[name] ?? [] : []), ...values].slice(-this.kept);
    }
    this.next = piece.next;
  },
  // How many samples the charts are wide: while the process is young, those that there are.
  get width() {
    const lengths = Object.values(this.series).map((values) => values.length);
    return Math.max(MIN_SAMPLES, ...lengths);
  },
  get span() {
    const seconds = this.width * this.step;
    return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
  },
};

const charts = [];
let cursor = null; // how many samples back; null: now

function moveCursor(ago) {
  cursor = ago;
  for (const chart of charts) chart.show();
  const text = ago ? `${time(ago * past.step)} ago` : "hover over a chart, or focus one and press ← or →";
  setText(document.getElementById("cursor"), text);
}

class Chart {
  // `format` formats a value; `state` names the series of the upstream's states; `limit` returns
  // the value that must not be reached; `missing` stands for a value that there is not.
  constructor(title, name, series, format, { state = null, limit = () => null, missing = "–" } = {}) {
    Object.assign(this, { title, name, series, state, limit });
    this.format = (value) => (value === undefined || value === null ? missing : format(value));
    this.highest = null;
    this.now = el("b");
    this.svg = el("svg", { preserveAspectRatio: "none", tabindex: "0", role: "slider", "aria-valuemin": "0" });
    this.max = el("span");
    this.span = el("span");
    this.root = el("figure", {}, el("figcaption", {}, el("span", {}, title), this.now), this.svg, el("p", {}, this.span, this.max));
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => moveCursor(null));
    this.svg.addEventListener("blur", () => moveCursor(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    charts.push(this);
  }

  get values() {
    return past.series[this.series] ?? [];
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const ago = Math.round((1 - (event.clientX - box.left) / box.width) * (past.width - 1));
    moveCursor(Math.min(Math.max(ago, 0), Math.max(0, this.values.length - 1)));
  }

  key(event) {
    const last = Math.max(0, this.values.length - 1);
    const ago = { ArrowLeft: (cursor ?? 0) + 1, ArrowRight: (cursor ?? 0) - 1, Home: last, End: 0 }[event.key];
    if (ago === undefined) return;
    event.preventDefault();
    moveCursor(Math.min(Math.max(ago, 0), last));
  }

  draw() {
    const { values } = this;
    const known = values.filter((value) => value !== null);
    const limit = this.limit();
    this.highest = known.length ? Math.max(...known) : null;
    // A limit far above the values would flatten the curve.
    const shown = limit !== null && limit < 2 * this.highest;
    const top = Math.max(this.highest ?? 0, shown ? limit : 0) * 1.08 || 1;
    const right = past.width - 1;
    const left = past.width - values.length;
    const y = (value) => (HEIGHT * (1 - value / top)).toFixed(1);
    let curve = "";
    let area = "";
    let begun = null;
    values.forEach((value, i) => {
      const x = left + i;
      if (value === null) {
        if (begun !== null) area += `L${x - 1} ${HEIGHT}Z`;
        begun = null;
        return;
      }
      if (begun === null) {
        begun = x;
        // Start slightly to the left, so that a single sample between gaps is visible.
        curve += `M${x - right / 450} ${y(value)}`;
        area += `M${x} ${HEIGHT}`;
      }
      curve += `L${x} ${y(value)}`;
      area += `L${x} ${y(value)}`;
    });
    if (begun !== null) area += `L${right} ${HEIGHT}Z`;
    setAttr(this.svg, "viewBox", `0 0 ${right} ${HEIGHT}`);
    this.hair = el("line", { class: "hair", y1: -4, y2: HEIGHT, visibility: "hidden" });
    const parts = [
      el("path", { class: "area", d: area || "M0 0" }),
      el("line", { class: "base", x1: 0, x2: right, y1: HEIGHT, y2: HEIGHT }),
      el("path", { class: "curve", d: curve || "M0 0" }),
      ...this.outages(left),
      this.hair,
    ];
    if (shown) parts.push(el("line", { class: "limit", x1: 0, x2: right, y1: y(limit), y2: y(limit) }));
    this.svg.replaceChildren(...parts);
    setText(this.span, `−${past.span}`);
    setText(this.max, `max ${this.format(this.highest)}`);
    this.show();
  }

  // A bar under the curve for each sample in which the upstream was not up.
  outages(left) {
    const states = past.series[this.state] ?? [];
    return states.flatMap((state, i) => {
      const name = past.states[state] ?? "up";
      if (name === "up" || name === "not_asked") return [];
      const kind = name === "throttled" ? "paused" : "away";
      const from = Math.max(0, left + i - 0.5);
      const to = Math.min(past.width - 1, left + i + 0.5);
      return [el("rect", { class: kind, x: from, y: HEIGHT, width: to - from, height: 8 })];
    });
  }

  show() {
    const { values } = this;
    const at = values.length - 1 - (cursor ?? 0);
    const value = values[at];
    const text = this.format(value);
    setText(this.now, text);
    if (this.hair) {
      const x = past.width - 1 - (cursor ?? 0);
      setAttr(this.hair, "x1", String(x));
      setAttr(this.hair, "x2", String(x));
      setAttr(this.hair, "visibility", cursor === null || at < 0 ? "hidden" : "visible");
    }
    const when = cursor ? `${time(cursor * past.step)} ago` : "now";
    setAttr(this.svg, "aria-label", `${this.name}, the last ${past.span}`);
    setAttr(this.svg, "aria-valuemax", String(Math.max(0, values.length - 1)));
    setAttr(this.svg, "aria-valuenow", String(Math.max(0, at)));
    setAttr(this.svg, "aria-valuetext", `${when} ${text}, highest ${this.format(this.highest)}`);
  }
}
