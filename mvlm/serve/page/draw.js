"use strict";
// A board to draw on; the drawing is searched for as a picture, black on white whatever the page's colours.

const PEN = 18, STEP = 8; // in pixels of the board: the pen's width, and how far a key moves it
const board = at("drawing"), paper = board.getContext("2d");
const strokes = []; // each a list of points
let stroke = null; // the one being drawn
let pen = null; // where the keyboard's pen is, once a key has moved it

function place(event) {
  const box = board.getBoundingClientRect();
  return [((event.clientX - box.left) * board.width) / box.width, ((event.clientY - box.top) * board.height) / box.height];
}

function draw(withPen = true) {
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, board.width, board.height);
  Object.assign(paper, { lineWidth: PEN, lineCap: "round", lineJoin: "round", strokeStyle: "#000" });
  for (const points of strokes) {
    paper.beginPath();
    paper.moveTo(...points[0]);
    for (const point of points.length > 1 ? points.slice(1) : points) paper.lineTo(...point);
    paper.stroke();
  }
  if (withPen && pen && document.activeElement === board) {
    Object.assign(paper, { lineWidth: 2, strokeStyle: stroke ? "#000" : "#0b6b5d" });
    paper.beginPath();
    paper.arc(...pen, PEN / 2 + 3, 0, 2 * Math.PI);
    paper.stroke();
  }
  at("undo").disabled = at("wipe").disabled = !strokes.length;
}

function beginStroke(point) {
  stroke = [point];
  strokes.push(stroke);
  draw();
}

let waiting;
function drawn() {
  clearTimeout(waiting);
  if (!about.images || !strokes.length) return;
  waiting = setTimeout(() => {
    draw(false);
    const url = board.toDataURL("image/png");
    draw();
    searchPicture({ upload: url.slice(url.indexOf(",") + 1) });
  }, 150);
}

function lift() {
  if (!stroke) return;
  stroke = null;
  draw();
  drawn();
}

function undo() {
  stroke = null;
  strokes.pop();
  draw();
  drawn();
}

board.addEventListener("pointerdown", (event) => {
  if (event.button || !event.isPrimary) return;
  event.preventDefault();
  board.setPointerCapture(event.pointerId);
  pen = null;
  beginStroke(place(event));
});
board.addEventListener("pointermove", (event) => {
  if (!stroke || pen || !event.isPrimary) return;
  const passed = event.getCoalescedEvents?.() ?? [];
  stroke.push(...(passed.length ? passed : [event]).map(place));
  draw();
});
for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, lift);

board.addEventListener("keydown", (event) => {
  const moves = { ArrowUp: [0, -STEP], ArrowDown: [0, STEP], ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0] };
  const move = moves[event.key];
  if (!move && ![" ", "Backspace"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "Backspace") return undo();
  pen ??= [board.width / 2, board.height / 2];
  if (move) {
    pen = pen.map((value, axis) => Math.min(Math.max(value + move[axis], 0), board.width));
    if (stroke) stroke.push(pen);
    draw();
  } else if (stroke) {
    lift();
  } else {
    beginStroke(pen);
  }
});
for (const moment of ["focus", "blur"]) board.addEventListener(moment, () => draw());
board.addEventListener("blur", () => pen && lift());

at("undo").addEventListener("click", undo);
at("wipe").addEventListener("click", () => {
  strokes.length = 0;
  stroke = null;
  clearTimeout(waiting);
  draw();
});
draw();
