"use strict";
// Prompts and responses are untrusted: they reach the page as text nodes alone, formulas as elements on a list.
const PAGE_SIZE = 20;
const MATHML = "http://www.w3.org/1998/Math/MathML";
const SELECTS = ["run", "source", "step", "verdict", "status", "level", "subject", "truncated"];
const NUMERIC = new Set(["run", "step", "truncated"]);
const LABELS = {
  source: { training: "training", greedy: "evaluation, greedy", sampled: "evaluation, sampled" },
  verdict: { correct: "correct", incorrect: "incorrect", no_answer: "no answer" },
  truncated: { 0: "by itself", 1: "cut at the limit" },
};
const REASONS = {
  timeout: "The grader ran out of time; that counts as incorrect.",
  crash: "The grader's worker died; that counts as incorrect.",
  parse_failed: "The answer is no mathematics the grader reads; only its spelling was compared.",
};
const form = document.getElementById("filters");
const at = (id) => document.getElementById(id);

async function readSamples() {
  const bytes = Uint8Array.from(atob(at("samples").textContent.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Browser {
  constructor(data) {
    this.data = data;
    this.columns = data.columns;
    this.count = data.columns.step ? data.columns.step.length : 0;
    this.tags = new Set(data.tags);
    this.fragment = new RegExp(data.pattern, "g");
    this.lowered = new Map();
    this.byPrompt = new Map();
    for (let i = 0; i < this.count; i++) {
      const key = this.columns.prompt[i];
      this.byPrompt.set(key, (this.byPrompt.get(key) || 0) + 1);
    }
    this.prompt = null;
    this.page = 0;
    SELECTS.forEach((name) => this.fill(name));
    this.restore();
    this.listen();
    this.show();
  }

  fill(name) {
    const values = [...new Set(this.columns[name] || [])].filter((value) => value !== "");
    values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true })));
    const options = values.map((value) => new Option(this.label(name, value), value));
    form.elements[name].replaceChildren(new Option("any", ""), ...options);
    form.querySelector(`[data-for=${name}]`).hidden = values.length < 2;
  }

  label(name, value) {
    if (name === "run") return this.data.runs[value];
    return (LABELS[name] && LABELS[name][value]) || String(value);
  }

  listen() {
    let waiting = 0;
    const changed = () => {
      this.page = 0;
      this.show();
    };
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      clearTimeout(waiting);
      if (event.target.name === "text") waiting = setTimeout(changed, 150);
      else changed();
    });
    at("clear").onclick = () => {
      form.reset();
      this.prompt = null;
      changed();
    };
    at("earlier").onclick = () => this.stepBy(-1, changed);
    at("later").onclick = () => this.stepBy(1, changed);
    at("previous").onclick = () => this.turn(-1);
    at("next").onclick = () => this.turn(1);
  }

  stepBy(change, changed) {
    const select = form.elements.step;
    const index = select.selectedIndex + change;
    if (index < 1 || index >= select.options.length) return;
    select.selectedIndex = index;
    changed();
  }

  turn(change) {
    this.page += change;
    this.show();
    at("count").scrollIntoView();
  }

  lower(i) {
    const found = this.lowered.get(i);
    if (found !== undefined) return found;
    const { id, prompt, response } = this.columns;
    const text = `${id[i]}\n${this.data.prompts[prompt[i]]}\n${response[i]}`.toLowerCase();
    this.lowered.set(i, text);
    return text;
  }

  matching() {
    const tests = [];
    for (const name of SELECTS) {
      const chosen = form.elements[name].value;
      if (chosen === "") continue;
      const column = this.columns[name];
      const wanted = NUMERIC.has(name) ? Number(chosen) : chosen;
      tests.push((i) => column[i] === wanted);
    }
    const { length, prompt } = this.columns;
    const { least, most, text } = form.elements;
    if (least.value !== "") tests.push((i) => length[i] >= Number(least.value));
    if (most.value !== "") tests.push((i) => length[i] <= Number(most.value));
    if (this.prompt !== null) tests.push((i) => prompt[i] === this.prompt);
    // Last, since it costs most.
    const sought = text.value.toLowerCase();
    if (sought !== "") tests.push((i) => this.lower(i).includes(sought));
    const found = [];
    for (let i = 0; i < this.count; i++) if (tests.every((test) => test(i))) found.push(i);
    if (this.prompt !== null) found.sort((a, b) => this.columns.step[a] - this.columns.step[b] || a - b);
    return found;
  }

  show() {
    if (this.count === 0) {
      at("count").textContent = "";
      form.hidden = true;
      return;
    }
    const found = this.matching();
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    this.page = Math.min(Math.max(this.page, 0), pages - 1);
    const first = this.page * PAGE_SIZE;
    at("count").textContent = `${found.length.toLocaleString("en")} of ${this.count.toLocaleString("en")} samples`;
    at("list").replaceChildren(...found.slice(first, first + PAGE_SIZE).map((i) => this.card(i)));
    at("pages").hidden = pages === 1;
    at("page").textContent = `page ${this.page + 1} of ${pages}`;
    at("previous").disabled = this.page === 0;
    at("next").disabled = this.page === pages - 1;
    at("earlier").disabled = form.elements.step.selectedIndex < 2;
    at("later").disabled = form.elements.step.selectedIndex >= form.elements.step.options.length - 1;
    this.showSame();
    this.remember();
  }

  showSame() {
    const bar = at("same");
    bar.hidden = this.prompt === null;
    const back = element("button", "", "all prompts");
    back.type = "button";
    back.onclick = () => this.choosePrompt(null);
    bar.replaceChildren("One prompt, by step. ", back);
  }

  choosePrompt(prompt) {
    this.prompt = prompt;
    this.page = 0;
    if (prompt !== null) form.elements.step.value = "";
    this.show();
    at("count").scrollIntoView();
  }

  card(i) {
    const { columns } = this;
    const card = element("article");
    const head = element("header");
    const verdict = columns.verdict[i];
    const shade = verdict in LABELS.verdict ? verdict : "";
    head.append(element("span", `verdict ${shade}`, this.label("verdict", verdict)));
    if (this.data.runs.length > 1) head.append(element("span", "", this.label("run", columns.run[i])));
    head.append(element("span", "", `step ${columns.step[i]}, ${this.label("source", columns.source[i])}`));
    head.append(element("span", "", columns.id[i]));
    if (columns.level[i]) head.append(element("span", "", `level ${columns.level[i]}`));
    if (columns.subject[i]) head.append(element("span", "", columns.subject[i]));
    head.append(element("span", "", `${columns.length[i]} tokens${columns.truncated[i] ? ", cut at the limit" : ""}`));
    head.append(element("span", "", `reward ${columns.reward[i]}`));
    const times = this.byPrompt.get(columns.prompt[i]);
    if (times > 1 && this.prompt === null) {
      const same = element("button", "", `this prompt: ${times}`);
      same.type = "button";
      same.onclick = () => this.choosePrompt(columns.prompt[i]);
      head.append(same);
    }
    card.append(head, element("h3", "", "prompt"), this.text("text", this.data.prompts[columns.prompt[i]]));
    card.append(element("h3", "", "response"), this.text("text response", columns.response[i]), this.why(i));
    return card;
  }

  why(i) {
    const { answer, gold, status, verdict } = this.columns;
    const why = element("p", "why");
    why.append("gold ", element("code", "", gold[i]), ", found ");
    why.append(answer[i] === null ? "nothing in a box" : element("code", "", String(answer[i])));
    why.append(`, grading ${status[i]}. ${REASONS[status[i]] || ""}`);
    if (verdict[i] === "no_answer") why.append(" No complete \\boxed{...} shows an answer.");
    return why;
  }

  text(className, text) {
    const box = element("div", className);
    box.tabIndex = 0;
    if (!form.elements.math.checked) {
      box.textContent = text;
      return box;
    }
    let end = 0;
    for (const match of text.matchAll(this.fragment)) {
      const latex = match.slice(1).find(Boolean);
      const tree = Object.hasOwn(this.data.math, latex) ? this.data.math[latex] : null;
      if (!tree) continue;
      box.append(text.slice(end, match.index));
      const math = this.math(tree);
      math.setAttribute("display", match[1] || match[4] ? "block" : "inline");
      math.setAttribute("aria-label", latex);
      box.append(math);
      end = match.index + match[0].length;
    }
    box.append(text.slice(end));
    return box;
  }

  math([tag, attributes, ...children]) {
    const made = document.createElementNS(MATHML, this.tags.has(tag) ? tag : "mrow");
    for (const [name, value] of Object.entries(attributes)) {
      if (!/^(on|href|src|style)/i.test(name)) made.setAttribute(name, value);
    }
    made.append(...children.map((child) => (typeof child === "string" ? child : this.math(child))));
    return made;
  }

  // In the address, so that a view can be sent to somebody and outlives a reload.
  remember() {
    const state = new URLSearchParams();
    for (const name of [...SELECTS, "least", "most", "text"]) {
      if (form.elements[name].value !== "") state.set(name, form.elements[name].value);
    }
    if (!form.elements.math.checked) state.set("math", "0");
    if (this.prompt !== null) state.set("prompt", this.prompt);
    if (this.page) state.set("page", this.page + 1);
    const text = String(state);
    if (text !== location.hash.slice(1)) history.replaceState(null, "", text ? `#${text}` : location.pathname);
  }

  restore() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const name of [...SELECTS, "least", "most", "text"]) {
      if (state.has(name)) form.elements[name].value = state.get(name);
    }
    // A choice that this page does not have is none.
    for (const name of SELECTS) if (form.elements[name].selectedIndex < 0) form.elements[name].value = "";
    form.elements.math.checked = state.get("math") !== "0";
    this.prompt = state.has("prompt") ? Number(state.get("prompt")) : null;
    if (!this.byPrompt.has(this.prompt)) this.prompt = null;
    this.page = (Number(state.get("page")) || 1) - 1;
  }
}

function follow(version) {
  setInterval(async () => {
    try {
      const answer = await fetch("version", { cache: "no-store" });
      if (!answer.ok || (await answer.text()) === version) return;
      sessionStorage.setItem("scroll", scrollY);
      location.reload();
    } catch {
      // The report was stopped: the page stays as it is.
    }
  }, 3000);
}

readSamples()
  .then((data) => new Browser(data))
  .catch((error) => {
    at("count").textContent = `The samples cannot be shown: ${error.message}`;
  })
  .finally(() => {
    document.body.setAttribute("data-ready", "");
    if (!document.body.dataset.follow) return;
    // The samples came after the browser put the reader back to where they were.
    const scroll = sessionStorage.getItem("scroll");
    if (scroll) scrollTo(0, Number(scroll));
    sessionStorage.removeItem("scroll");
  });
if (document.body.dataset.follow) follow(document.body.dataset.follow);
