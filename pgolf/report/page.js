"use strict";
// what hovering and arrow keys show; without it the page still has everything but that

const root = document.documentElement;

// light or dark, remembered where the browser allows it
const remembered = (() => { try { return localStorage.getItem("pgolf-theme"); } catch { return null; } })();
for (const input of document.querySelectorAll("input[name=theme]")) {
  if (input.value === remembered) { input.checked = true; root.style.colorScheme = remembered; }
  input.addEventListener("change", () => {
    root.style.colorScheme = input.value;
    try { localStorage.setItem("pgolf-theme", input.value); } catch { /* a page from a file may not remember */ }
  });
}

function told(figure) { return JSON.parse(figure.querySelector('script[type="application/json"]').textContent); }

function number(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e4) return Math.round(value).toLocaleString("en");
  return size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

// ---- curves: a line through all of them, and their values in the legend

for (const figure of document.querySelectorAll("figure.curves")) {
  const { x, s } = told(figure), [low, high, log] = x.s;
  const area = figure.querySelector(".area"), cursor = figure.querySelector(".cursor");
  const readout = figure.querySelector(".readout"), outputs = [...figure.querySelectorAll(".legend output")];
  const places = [...new Set(s.flatMap((one) => one.f).filter((f) => f !== null))].sort((a, b) => a - b);
  let at = -1;

  const nearest = (list, place) => {
    let best = -1;
    list.forEach((f, i) => { if (f !== null && (best < 0 || Math.abs(f - place) < Math.abs(list[best] - place))) best = i; });
    return best;
  };
  const show = (i) => {
    at = Math.max(0, Math.min(i, places.length - 1));
    const place = places[at], value = log ? low * (high / low) ** place : low + (high - low) * place;
    cursor.style.left = `${100 * place}%`;
    cursor.classList.add("on");
    const words = s.map((one, k) => {
      const near = nearest(one.f, place), value = near < 0 ? null : one.y[near];
      outputs[k].textContent = number(value);
      return `${one.n} ${number(value)}`;
    });
    const shown = Math.abs(value) >= 1000 ? Math.round(value) : value;
    readout.textContent = `${x.n}: ${number(Number(shown.toPrecision(5)))} ${x.u}`;
    const unseen = document.createElement("span");
    unseen.className = "unseen";
    unseen.textContent = `; ${words.join(", ")}`;
    readout.append(unseen);
  };
  const hide = () => {
    at = -1;
    cursor.classList.remove("on");
    readout.textContent = "";
    for (const output of outputs) output.textContent = "";
  };
  const follow = (event) => {
    const box = area.getBoundingClientRect();
    show(nearest(places, (event.clientX - box.left) / box.width));
  };
  area.addEventListener("pointermove", follow);
  area.addEventListener("pointerdown", follow);
  area.addEventListener("pointerleave", () => { if (document.activeElement !== figure) hide(); });
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const step = Math.max(1, Math.round(places.length / 60));
    const moves = { ArrowRight: at + step, ArrowLeft: at < 0 ? places.length - 1 : at - step, Home: 0, End: places.length - 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
}

// ---- excerpts: what a token cost, and what was predicted there

const pieces = {};
const excerpts = [...document.querySelectorAll("figure.excerpt")].map((figure) => [figure, told(figure)]);
for (const [, facts] of excerpts) Object.assign(pieces, facts.p);

// a space alone could not be seen
const seen = (piece) => (piece ?? "?").replaceAll(" ", "␣");

function element(name, text, kind) {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

for (const [figure, facts] of excerpts) {
  const text = figure.querySelector(".text"), panel = figure.querySelector(".panel-of-token");
  const tokens = [...text.querySelectorAll("i")];
  let at = -1;

  const show = (i) => {
    if (i < 0 || i >= tokens.length) return;
    tokens[at]?.classList.remove("on");
    at = i;
    tokens[at].classList.add("on");
    const costs = element("dl", "");
    facts.r.forEach((name, k) => {
      costs.append(element("dt", name), element("dd", `${facts.b[k][at].toFixed(2)} bits`, k === facts.m ? "came" : ""));
    });
    const parts = [element("h5", seen(tokens[at].textContent)), costs];
    for (const [name, places] of Object.entries(facts.g)) {
      if (!places[at]) continue;
      const list = element("dl", "");
      for (const [token, share] of places[at]) {
        const came = token === facts.t[at] ? " came" : "";
        list.append(element("dt", seen(pieces[token]), `guess${came}`), element("dd", `${(100 * share).toFixed(1)} %`, came.trim()));
      }
      parts.push(element("h6", `${name} predicted`), list);
    }
    panel.replaceChildren(...parts);
  };
  text.addEventListener("pointerover", (event) => { const i = tokens.indexOf(event.target); if (i >= 0) show(i); });
  text.addEventListener("click", (event) => { const i = tokens.indexOf(event.target); if (i >= 0) show(i); });
  // to begin with, of the tokens with a letter, the one at which the most was gained
  const letters = /\p{L}/u;
  const gained = tokens.map((token, i) => (letters.test(token.textContent) ? facts.b[0][i] - facts.b[facts.m][i] : -Infinity));
  show(gained.indexOf(Math.max(...gained)));
  text.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 12, ArrowUp: at - 12, Home: 0, End: tokens.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(Math.max(0, Math.min(moves[event.key], tokens.length - 1)));
    tokens[at].scrollIntoView({ block: "nearest" });
  });
}

// ---- a page that is served while the run goes on asks whether there is more, and keeps its place

if (root.dataset.refresh) {
  let known = null;
  setInterval(async () => {
    try {
      const now = await (await fetch(root.dataset.refresh, { cache: "no-store" })).text();
      if (known !== null && now !== known) location.reload();
      known = now;
    } catch { /* the server has gone; the page stays */ }
  }, 2000);
}
