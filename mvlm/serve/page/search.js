"use strict";
// Search of the corpus by a sentence or a picture, and what can be done with the results.

const SHOWN = 32, MOST = 1024;
let asked = {};

const searched = asker("search", "api/search", ({ found, cut }, { skip }) => {
  const drawings = drawingsOf(found), shown = skip + found.length;
  if (!skip) at("found").replaceChildren();
  at("found").append(...found.map((each) => hit(each, drawings)));
  at("more").hidden = found.length < SHOWN || shown >= Math.min(MOST, about.images);
  say("search", `${shown} of ${about.images.toLocaleString("en")} pictures, best first. ${cut}`.trim());
});
function search(question) {
  asked = question;
  at("more").hidden = true;  // the results shown are not for this question
  searched({ top: SHOWN, skip: 0, ...question });
}
function searchPicture(picture, ofFile = false) {
  at("query").value = "";
  if (!ofFile) at("query-file").value = "";  // else choosing the same file again would do nothing
  // The address must not name a sentence that these results are not for; Back returns to it.
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  search({ picture });
}
at("more").addEventListener("click", () => searched({ top: SHOWN, skip: at("found").children.length, ...asked }));

// The corpus's drawings arrive after their pictures and replace them: they are sharp at any size.
async function drawingsOf(found) {
  const images = found.filter((each) => each.about.svg).map((each) => each.image);
  if (!images.length) return new Map();
  const { drawings } = await ask("search", "api/drawings", { images });
  return new Map(images.map((image, number) => [image, drawings[number]]));
}

// Inside an <img>, an SVG runs no scripts and loads nothing.
function sharpen(image, svg, picture) {
  if (!svg) return;
  image.addEventListener("error", () => { image.classList.remove("drawn"); image.src = picture; }, { once: true });
  image.classList.add("drawn");
  image.src = `data:image/svg+xml,${encodeURIComponent(svg)}`;
}

function hit(each, drawings) {
  const item = make("li");
  const button = make("button", "", { type: "button", title: "Try this picture below" });
  const image = picture(each.picture, each.caption);
  drawings.then((known) => sharpen(image, known.get(each.image), each.picture)).catch(() => {});
  button.append(image);
  button.addEventListener("click", () => choose({ found: each.image }, each.caption, true));
  const match = each.match === null ? "" : ` · match ${(100 * each.match).toFixed(0)} %`;
  const caption = make("p", each.caption, { className: "caption", dir: "auto", title: each.caption });
  item.append(button, caption, make("p", `${each.similarity.toFixed(3)}${match}`, { className: "number" }));
  item.append(...credits(each.about), deeds(each, drawings));
  return item;
}

// Whose picture it is, if the corpus says so.
function credits({ name, set, title, author, licence, licence_url: url }) {
  const lines = [];
  const line = (...parts) => { lines.push(make("p", "", { className: "credit" })); lines.at(-1).append(...parts); };
  if (name || set) line([set, name].filter(Boolean).join(":"));
  if (title || author) line([title, author].filter(Boolean).join(" by "));
  if (licence) line(/^https?:\/\//.test(url ?? "") ? make("a", licence, { href: url, target: "_blank", rel: "noreferrer" }) : licence);
  return lines;
}

function deeds(each, drawings) {
  const box = make("div", "", { className: "deeds" });
  const deed = (text, act) => {
    const button = make("button", text, { type: "button", ariaLabel: `${text}: ${each.caption}` });
    button.addEventListener("click", act);
    box.append(button);
  };
  deed("Similar", () => searchPicture({ found: each.image }));
  if (each.about.svg) deed("Copy SVG", () => copyDrawing(each.image, drawings));
  return box;
}

async function copyDrawing(image, drawings) {
  try {
    await copy((await drawings).get(image));
    say("search", "The SVG is copied.");
  } catch (error) {
    say("search", error.message, true);
  }
}

// Browsers deny `navigator.clipboard` to unencrypted pages, unless they come from this machine.
async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = make("textarea", "", { value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("The browser does not let this page copy: open it at 127.0.0.1, or over HTTPS.");
}

at("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const address = `#${new URLSearchParams({ find: at("query").value })}`;
  if (location.hash === address) findAddressed();
  else location.hash = address;
});

// The sentence is in the address, which can be bookmarked, shared and returned to.
function findAddressed() {
  const sentence = new URLSearchParams(location.hash.slice(1)).get("find");
  at("query").value = sentence ?? "";
  at("query-file").value = "";
  if (sentence !== null) return search({ sentence });
  at("found").replaceChildren();
  at("more").hidden = true;
  searched(null, "");
}
window.addEventListener("hashchange", findAddressed);

at("query-file").addEventListener("change", async ({ target }) => {
  if (!target.files.length) return;
  try {
    searchPicture(await upload(target.files[0]), true);
  } catch (error) {
    say("search", error.message, true);
  }
});
