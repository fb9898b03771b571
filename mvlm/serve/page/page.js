"use strict";
// Text reaches the page only by textContent: sentences, file names and a model's words must not act as markup.

const PICTURE_LIMIT = 10_000_000;
const at = (id) => document.getElementById(id);
const pair = { picture: null, other: null, hidden: new Set(), hiddenWords: new Set() };
let about = { squares: [1, 1], samples: [], images: 0, hidden_share: 0.5 };

function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text) element.textContent = text;
  return element;
}

function picture(source, alt) {
  return sharp(make("img", "", { alt, src: source }));
}

// A picture with few pixels is shown pixelated, not blurred.
function sharp(image) {
  image.addEventListener("load", () => image.classList.toggle("fine", image.naturalWidth < 128));
  return image;
}

function say(panel, sentence, wrong = false) {
  const status = at(`${panel}-status`);
  status.textContent = sentence;
  status.classList.toggle("wrong", wrong);
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function ask(panel, path, question, signal) {
  for (let attempt = 0; ; attempt += 1) {
    let response;
    try {
      const body = JSON.stringify(question);
      response = await fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The server does not answer: is `mvlm serve` still running?");
    }
    const answer = await response.json().catch(() => ({ error: "Too many are asking at the moment." }));
    if (response.ok) return answer;
    if (response.status !== 503 || attempt === 4) throw new Error(answer.error);
    say(panel, answer.error);
    await pause(1000 * Number(response.headers.get("retry-after") || 2));
  }
}

// A panel shows the answer to its newest question; the previous one is aborted, even if there is nothing to ask.
function asker(panel, path, show) {
  let running = null;
  return async (question, unasked) => {
    running?.abort();
    const mine = (running = new AbortController());
    if (!question) {
      at(panel).removeAttribute("aria-busy");
      return say(panel, unasked);
    }
    at(panel).setAttribute("aria-busy", "true");
    say(panel, "Looking…");
    try {
      const answer = await ask(panel, path, question, mine.signal);
      if (mine !== running) return;
      say(panel, "");
      show(answer, question);
    } catch (error) {
      if (mine === running) say(panel, error.message, true);
    } finally {
      if (mine === running) at(panel).removeAttribute("aria-busy");
    }
  };
}

async function upload(file) {
  if (file.size > PICTURE_LIMIT) throw new Error("That is too large: a picture may have at most 10 MB.");
  const url = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error("This file cannot be read: choose another."));
    reader.readAsDataURL(file);
  });
  return { upload: url.slice(url.indexOf(",") + 1) };
}

// --- the pair of the lower panels

const view = asker("pair", "api/view", (answer, { picture: chosen }) => {
  pair.picture = chosen;
  press("samples", chosen.sample ?? -1);
  at("view").src = answer.picture;
  restore();
  guess();
});

function choose(chosen, sentence, scroll = false) {
  if (!chosen.upload) at("file").value = "";  // else choosing the same file again would do nothing
  if (sentence !== null) at("sentence").value = [...sentence].slice(0, at("sentence").maxLength).join("");
  split();
  view({ picture: chosen });
  if (scroll) at("pair").scrollIntoView({ behavior: "smooth" });
}

const press = (group, number) => [...at(group).children].forEach((button, n) => button.setAttribute("aria-pressed", n === number));

function samples(group, chosen) {
  at(group).replaceChildren(...about.samples.map((sample, number) => {
    const button = make("button", "", { type: "button", title: sample.caption });
    button.append(picture(sample.picture, sample.caption));
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => chosen(number, sample));
    return button;
  }));
}

at("file").addEventListener("change", async ({ target }) => {
  if (!target.files.length) return;
  try {
    choose(await upload(target.files[0]), null);
  } catch (error) {
    say("pair", error.message, true);
  }
});

let typed;
at("sentence").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => { split(); restore(); guess(); }, 400);
});

// --- hidden squares

const showRestored = asker("patches", "api/patches", (answer) => {
  for (const way of ["with", "without"]) {
    const image = at(`${way}-sentence`);
    image.src = answer[`${way}_sentence`];
    at(`l1-${way}`).textContent = `L1 ${answer[`l1_${way}`].toFixed(3)}`;
  }
  const errors = ["with", "without"].map((way) => answer[`l1_${way}`].toFixed(3));
  say("patches", `L1 is ${errors[0]} with the sentence and ${errors[1]} without it. ${answer.cut}`.trim());
});

let painted;
function restore() {
  clearTimeout(painted);
  if (!pair.picture) return;
  if (!pair.hidden.size) return showRestored(null, "Nothing is hidden yet.");
  painted = setTimeout(() => {
    showRestored({ picture: pair.picture, sentence: at("sentence").value, hidden: [...pair.hidden] });
  }, 200);
}

function hide(square, hidden) {
  const cell = cells[square], columns = about.squares[1];
  hidden ? pair.hidden.add(square) : pair.hidden.delete(square);
  const place = `row ${Math.floor(square / columns) + 1}, column ${(square % columns) + 1}`;
  cell.setAttribute("aria-selected", hidden);
  cell.setAttribute("aria-label", `${place}, ${hidden ? "hidden" : "shown"}`);
}

let cells = [], cursor = 0, painting = null;

function moveTo(square, focus = true) {
  cells[cursor].tabIndex = -1;
  cursor = square;
  cells[cursor].tabIndex = 0;
  if (focus) cells[cursor].focus();
}

function drawGrid() {
  const [rows, columns] = about.squares;
  at("grid").replaceChildren(...Array.from({ length: rows }, () => {
    const row = make("div");
    row.setAttribute("role", "row");
    for (let column = 0; column < columns; column += 1) {
      const cell = make("div", "", { tabIndex: -1 });
      cell.setAttribute("role", "gridcell");
      row.append(cell);
    }
    return row;
  }));
  cells = [...at("grid").querySelectorAll("[role=gridcell]")];
  cells.forEach((cell, square) => hide(square, false));
  moveTo(0, false);
}

function paint(event) {
  const square = cells.indexOf(document.elementFromPoint(event.clientX, event.clientY));
  if (square < 0 || pair.hidden.has(square) === painting) return;
  hide(square, painting);
  restore();
}

at("grid").addEventListener("pointerdown", (event) => {
  const square = cells.indexOf(event.target);
  if (square < 0 || event.button) return;
  event.preventDefault();
  at("grid").setPointerCapture(event.pointerId);
  painting = !pair.hidden.has(square);
  moveTo(square);
  paint(event);
});
at("grid").addEventListener("pointermove", (event) => painting === null || paint(event));
for (const end of ["pointerup", "pointercancel"]) at("grid").addEventListener(end, () => { painting = null; });

at("grid").addEventListener("keydown", (event) => {
  const [rows, columns] = about.squares, row = Math.floor(cursor / columns), column = cursor % columns;
  const moves = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    Home: [row, 0], End: [row, columns - 1],
  };
  if (event.key === " " || event.key === "Enter") {
    hide(cursor, !pair.hidden.has(cursor));
    restore();
  } else if (moves[event.key]) {
    const [toRow, toColumn] = moves[event.key];
    moveTo(Math.min(Math.max(toRow, 0), rows - 1) * columns + Math.min(Math.max(toColumn, 0), columns - 1));
  } else {
    return;
  }
  event.preventDefault();
});

function hideAtRandom() {
  const count = Math.max(1, Math.min(cells.length - 1, Math.round(about.hidden_share * cells.length)));
  const order = cells.map((_, square) => [Math.random(), square]).sort((a, b) => a[0] - b[0]);
  order.forEach(([, square], place) => hide(square, place < count));
  restore();
}
at("random").addEventListener("click", hideAtRandom);
at("clear").addEventListener("click", () => {
  cells.forEach((_, square) => hide(square, false));
  restore();
});

// --- hidden words

const words = () => at("sentence").value.split(/\s+/).filter(Boolean);

function split() {
  pair.hiddenWords = new Set([...pair.hiddenWords].filter((place) => place < words().length));
  at("chips").replaceChildren(...words().map((word, place) => {
    const chip = make("button", word, { type: "button" });
    chip.setAttribute("aria-pressed", pair.hiddenWords.has(place));
    chip.addEventListener("click", () => {
      const hidden = !pair.hiddenWords.has(place);
      hidden ? pair.hiddenWords.add(place) : pair.hiddenWords.delete(place);
      chip.setAttribute("aria-pressed", hidden);
      guess();
    });
    return chip;
  }));
}

const WAYS = { with_image: "with the picture", without_image: "without one", other_image: "with the other" };

const showGuesses = asker("words", "api/words", (answer) => {
  at("guesses").replaceChildren(...answer.words.map((hidden) => {
    const ways = Object.keys(WAYS).filter((way) => hidden[way]);
    const table = make("table"), head = make("tr"), body = make("tbody");
    ways.forEach((way) => head.append(make("th", WAYS[way], { scope: "col" })));
    hidden[ways[0]].forEach((_, rank) => {
      const row = make("tr");
      for (const way of ways) {
        const { word, probability } = hidden[way][rank];
        const cell = make("td", `${word || "∅"} `, { className: rank ? "" : "best" });
        const bar = make("span", "", { className: "bar" });
        bar.style.width = `${Math.max(1, 100 * probability)}%`;
        cell.append(make("span", `${(100 * probability).toFixed(probability < 0.1 ? 1 : 0)} %`, { className: "number" }), bar);
        row.append(cell);
      }
      body.append(row);
    });
    const thead = make("thead");
    thead.append(head);
    table.append(make("caption", `Guesses for “${hidden.word}”`), thead, body);
    return table;
  }));
  const best = answer.words.map((hidden) => `“${hidden.with_image[0].word || "∅"}”`).join(", ");
  say("words", `Likeliest with the picture: ${best}. ${answer.cut}`.trim());
});

function guess() {
  if (!pair.picture) return;
  if (!pair.hiddenWords.size) {
    at("guesses").replaceChildren();
    return showGuesses(null, "No word is hidden yet.");
  }
  const question = { picture: pair.picture, words: words(), hidden: [...pair.hiddenWords] };
  if (pair.other !== null) question.other = { sample: pair.other };
  showGuesses(question);
}

// --- the beginning

async function begin() {
  ["view", "with-sentence", "without-sentence"].forEach((id) => sharp(at(id)));
  try {
    about = await (await fetch("api/about")).json();
  } catch {
    return say("pair", "The server does not answer: is `mvlm serve` still running?", true);
  }
  at("run").textContent += ` Weights of step ${about.step.toLocaleString("en")}.`;
  at("search-form").hidden = at("found").hidden = !about.images;
  at("no-index").hidden = Boolean(about.images);
  for (const [panel, sentence] of Object.entries(about.untrained)) {
    if (sentence) at(`${panel}-title`).after(make("p", sentence, { className: "status wrong" }));
  }
  drawGrid();
  samples("samples", (number, sample) => choose({ sample: number }, sample.caption));
  samples("others", (number) => {
    pair.other = pair.other === number ? null : number;
    press("others", pair.other ?? -1);
    guess();
  });
  at("other-label").hidden = at("others").hidden = !about.samples.length;
  if (about.images && location.hash) findAddressed();
  if (!about.samples.length) return say("pair", "Choose a picture of your own.");
  hideAtRandom();
  pair.hiddenWords.add(0);
  choose({ sample: 0 }, about.samples[0].caption);
}
// Wait for the other scripts, which the first answer may need.
document.addEventListener("DOMContentLoaded", begin);
