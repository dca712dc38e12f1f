"use strict";
// The boxes, meters and answers that the page is made of. They show values; they fetch nothing.

const MARKS = { ok: "✓", warn: "!", bad: "✕" };

// A definition list whose values change. `terms`: [key, text].
class Terms {
  constructor(terms) {
    this.values = {};
    this.root = el("dl");
    for (const [key, text] of terms) {
      this.values[key] = el("dd");
      this.root.append(el("dt", {}, text), this.values[key]);
    }
  }

  show(values) {
    for (const [key, text] of Object.entries(values)) setText(this.values[key], text);
  }
}

class Box {
  constructor(title, unit, terms, className = "") {
    this.title = el("h3", {}, title);
    this.number = el("span");
    this.terms = new Terms(terms);
    this.note = el("p", { class: "note" });
    this.root = el("li", { class: `box ${className}` }, this.title);
    if (unit !== null) this.root.append(el("p", { class: "big" }, this.number, el("small", {}, unit)));
    this.root.append(this.terms.root, this.note);
  }

  flows(moving, cut = false) {
    this.root.classList.toggle("flows", moving && !cut);
    this.root.classList.toggle("cut", cut);
  }
}

class Meter {
  constructor() {
    this.bar = el("i");
    this.root = el("div", { class: "meter", "aria-hidden": "true" }, this.bar);
  }

  show(part, whole) {
    this.bar.style.width = `${Math.min(100, (100 * part) / whole)}%`;
    setAttr(this.root, "data-level", part >= 0.8 * whole ? "bad" : "ok");
  }
}

class Answer {
  constructor(question) {
    this.answer = el("strong");
    this.detail = el("p");
    this.root = el("div", { class: "answer" }, el("h2", {}, question), this.answer, this.detail);
  }

  show({ level, answer, detail }) {
    setAttr(this.root, "data-level", level);
    setText(this.answer, `${MARKS[level]} ${answer}`);
    setText(this.detail, detail);
  }
}
