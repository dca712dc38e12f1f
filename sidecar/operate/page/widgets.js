"use strict";
// The boxes, meters and answers that the page is made of. They show values; they fetch nothing.

const COPIED_MS = 1500;
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
  constructor(nearlyFull = "bad") {
    this.nearlyFull = nearlyFull;
    this.bar = el("i");
    this.root = el("div", { class: "meter", "aria-hidden": "true" }, this.bar);
  }

  show(part, whole) {
    this.bar.style.width = `${Math.min(100, (100 * part) / whole)}%`;
    setAttr(this.root, "data-level", part >= 0.8 * whole ? this.nearlyFull : "ok");
  }
}

// Returns whether it worked. The clipboard needs HTTPS or localhost; elsewhere, a selection in the
// page can still be copied.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "unseen", "aria-hidden": "true", tabindex: -1 });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// `text` returns what it copies. The button says for a moment whether that worked.
function copyButton(label, what, text) {
  const button = el("button", { type: "button", class: "copy" });
  const say = (verb) => {
    setText(button, verb);
    setAttr(button, "aria-label", `${verb} ${what}`.trim());
  };
  button.addEventListener("click", async () => {
    const done = await copied(text());
    button.focus();
    say(done ? "Copied" : "Not copied");
    setText(byId("spoken"), done ? "Copied." : "The browser did not allow to copy.");
    setTimeout(say, COPIED_MS, label);
  });
  say(label);
  return button;
}

// The command at the end of a hint, or null.
const commandOf = (hint) => /: ((?:curl|sidecar) .+)$/s.exec(hint ?? "")?.[1] ?? null;

function commandLine(command) {
  return el("div", { class: "command" }, el("code", {}, command), copyButton("Copy", "the command", () => command));
}

// What to do about a finding. A hint rarely changes, so it is rebuilt when it does.
class Advice {
  constructor() {
    this.root = el("div", { class: "advice" });
    this.shown = "";
    this.root.hidden = true;
  }

  show({ hint, runbook }) {
    const now = `${hint ?? ""} ${runbook ?? ""}`;
    if (now === this.shown) return;
    this.shown = now;
    this.root.hidden = !hint;
    if (!hint) return;
    const command = commandOf(hint);
    const before = command ? hint.slice(0, -command.length) : hint;
    // What is between backticks is code.
    const words = before.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
    const parts = [el("p", {}, el("b", {}, "What to do: "), ...words)];
    if (command) parts.push(commandLine(command));
    if (runbook) parts.push(el("p", { class: "runbook" }, "More: ", el("code", {}, runbook)));
    this.root.replaceChildren(...parts);
  }
}

const NO_ADVICE = { hint: null, runbook: null };

class Finding {
  constructor(text, root) {
    this.text = text;
    this.detail = el("p");
    this.advice = new Advice();
    this.root = root;
    this.root.append(this.text, this.detail, this.advice.root);
  }

  show({ level, text, detail, ...advice }, hasAdvice) {
    setAttr(this.root, "data-level", level);
    setText(this.text, `${MARKS[level]} ${text}`);
    setText(this.detail, detail);
    this.advice.show(hasAdvice ? advice : NO_ADVICE);
  }
}

// The worst finding is the answer; the others are a list below it.
class Answer {
  constructor(question) {
    this.root = el("div", { class: "answer" }, el("h2", {}, question));
    this.first = new Finding(el("strong"), this.root);
    this.list = el("ul", { "aria-label": `${question} Also` });
    this.list.hidden = true;
    this.root.append(this.list);
    this.others = [];
  }

  show({ level, answer, detail, hint, runbook, findings }, hasAdvice) {
    const all = findings.length ? findings : [{ level, text: answer, detail, hint, runbook }];
    while (this.others.length < all.length - 1) {
      this.others.push(new Finding(el("b"), el("li")));
      this.list.append(this.others.at(-1).root);
    }
    while (this.others.length > all.length - 1) this.others.pop().root.remove();
    this.list.hidden = all.length === 1;
    // The same advice for several findings in a row is given once, after the last of them.
    const isLast = (i) => all[i].hint !== all[i + 1]?.hint || all[i].runbook !== all[i + 1]?.runbook;
    [this.first, ...this.others].forEach((each, i) => each.show(all[i], hasAdvice && isLast(i)));
  }
}
