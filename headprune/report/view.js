"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const percent = (share) => (share * 100).toFixed(share < 0.1 ? 1 : 0) + " %";

// Weights: little-endian whole numbers of 16 bits, 65535 being 1.
for (const map of data.maps) {
  const bytes = atob(map.weights);
  map.numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < map.numbers.length; i++)
    map.numbers[i] = (bytes.charCodeAt(2 * i) + 256 * bytes.charCodeAt(2 * i + 1)) / 65535;
  map.weights = "";
}
const weightsOf = (map, place) => {
  const [, queries, keys] = map.shape;
  return map.numbers.subarray(place * queries * keys, (place + 1) * queries * keys);
};

// Tokens: what they stand for, with spaces and line breaks made visible where there is nothing else.
const visible = (token) => token.trim() || token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "␣") || "∅";
const tokenAt = (text, index) => (data.tokens[text][index] === undefined ? "position " + index : visible(data.tokens[text][index]));

// Rows of the grid: one for each call of an attention, with all heads that it had before any was removed.
const sites = new Map();
for (const head of data.heads) {
  const [, site, index] = head.head.match(/^(.*)\.H(\d+)$/);
  if (!sites.has(site)) sites.set(site, []);
  sites.get(site).push({ ...head, index: Number(index) });
}
const rows = [...sites].flatMap(([site, heads]) => {
  const maps = data.maps.filter((map) => map.site === site);
  return (maps.length ? maps : [null]).map((map) => ({ site, heads, map }));
});
const nameOf = (row) => row.site + (row.map && row.map.calls > 1 ? ` (${row.map.call})` : "");
const ranked = data.heads.filter((head) => head.rank !== null).length;

function paint(canvas, map, place, colour) {
  const [, queries, keys] = map.shape;
  canvas.width = keys;
  canvas.height = queries;
  canvas.style.imageRendering = keys < 40 ? "pixelated" : "auto"; // a small square must not lose thin lines
  const image = new ImageData(keys, queries);
  const pixels = image.data;
  const [red, green, blue] = colour;
  const weights = weightsOf(map, place);
  for (let i = 0; i < weights.length; i++) {
    pixels[4 * i] = red;
    pixels[4 * i + 1] = green;
    pixels[4 * i + 2] = blue;
    pixels[4 * i + 3] = 255 * Math.sqrt(weights[i]);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
function ink() {
  const hex = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

const describe = (row, head) => {
  const words = [`${nameOf(row)}.H${head.index}`];
  if (head.is_removed) words.push("removed");
  if (head.rank !== null) words.push(`importance ${head.importance.toPrecision(3)}, place ${head.rank} of ${ranked}`);
  if (head.roles.length) words.push(head.roles.join(", "));
  return words.join("; ");
};

const across = Math.max(...rows.map((row) => row.heads.length));
const cells = rows.map((row, y) =>
  row.heads.map((head, x) => {
    const cell = make("button", { className: "cell", type: "button", tabIndex: -1, title: describe(row, head) });
    cell.setAttribute("aria-label", describe(row, head));
    cell.dataset.head = head.head;
    if (head.is_removed) {
      cell.classList.add("removed");
      cell.append("×");
    } else {
      cell.append(make("canvas"));
    }
    cell.addEventListener("click", () => choose(y, x));
    cell.addEventListener("focus", () => choose(y, x));
    return cell;
  }),
);
function buildGrid() {
  const grid = at("grid");
  grid.style.setProperty("--across", across);
  const numbers = Array.from({ length: across }, (_, x) => make("th", { scope: "col", textContent: "H" + x }));
  grid.append(make("thead", {}, make("tr", {}, make("td"), ...numbers)));
  const body = make("tbody");
  rows.forEach((row, y) => {
    const line = make("tr", {}, make("th", { scope: "row", textContent: nameOf(row) }));
    row.heads.forEach((head, x) => line.append(make("td", {}, cells[y][x], ...bar(head), make("div", { className: "signs", textContent: signsOf(head) }))));
    body.append(line);
  });
  grid.append(body);
  grid.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const y = Math.min(rows.length - 1, Math.max(0, state.y + step[0]));
    const x = Math.min(cells[y].length - 1, Math.max(0, state.x + step[1]));
    cells[y][x].focus();
  });
  const used = Object.entries(data.signs).filter(([role]) => data.heads.some((head) => head.roles.includes(role)));
  at("legend").textContent =
    (ranked ? `Bars: the longer, the more important (${data.scores.method}). ` : "") +
    (used.length ? `Letters: ${used.map(([role, row]) => `${row.sign} ${role}`).join(", ")}. ` : "") +
    (data.heads.some((head) => head.is_removed) ? "×: removed." : "");
}
const signsOf = (head) => head.roles.map((role) => (data.signs[role] ? data.signs[role].sign : "")).join("").slice(0, 3);
function bar(head) {
  if (head.rank === null) return [];
  const share = 1 - (head.rank - 1) / ranked;
  const inner = make("i");
  inner.style.width = 100 * share + "%";
  inner.style.background = data.colours[Math.min(data.colours.length - 1, Math.floor(share * data.colours.length))];
  return [make("div", { className: "bar" }, inner)];
}

// What is chosen: a head, and a token that asks or is looked at.
const state = { y: 0, x: 0, side: "asks", index: 0 };
const chosen = () => {
  const row = rows[state.y];
  const head = row.heads[state.x];
  return { row, head, map: row.map, place: head.is_removed ? -1 : row.map.heads.indexOf(head.index) };
};

function choose(y, x) {
  cells[state.y][state.x].setAttribute("aria-pressed", "false");
  cells[state.y][state.x].tabIndex = -1;
  Object.assign(state, { y, x });
  cells[y][x].setAttribute("aria-pressed", "true");
  cells[y][x].tabIndex = 0;
  const { row, head, map, place } = chosen();
  at("title").textContent = `${nameOf(row)}.H${head.index}`;
  const badges = [];
  if (head.is_removed) badges.push("removed");
  else if (map.queries !== map.keys) badges.push("the target looks at the source");
  else badges.push(map.is_causal ? "looks back only (causal)" : "looks both ways");
  if (head.rank !== null) badges.push(`importance ${head.importance.toPrecision(3)}: place ${head.rank} of ${ranked}`);
  head.roles.forEach((role) => badges.push(data.signs[role] ? `${role}: ${data.signs[role].help}` : role));
  at("about").replaceChildren(...badges.map((text) => make("span", { className: "badge", textContent: text })));
  at("look").hidden = head.is_removed;
  if (head.is_removed) {
    at("readout").textContent = "This head was pruned: the model computes it no more.";
    return;
  }
  const [, queries, keys] = map.shape;
  const limit = state.side === "asks" ? queries : keys;
  state.index = Math.min(state.index, limit - 1);
  at("asks-title").textContent = map.queries === map.keys ? "Asks" : `Asks (${map.queries})`;
  at("seen-title").textContent = map.queries === map.keys ? "Is looked at" : `Is looked at (${map.keys})`;
  fill("asks", map.queries, queries);
  fill("seen", map.keys, keys);
  paint(at("weights"), map, place, ink());
  at("weights").style.imageRendering = "pixelated";
  at("weights").style.aspectRatio = `${keys} / ${queries}`;
  look(state.side, state.index);
}

function fill(side, text, count) {
  const box = at(side);
  if (box.dataset.text === text && box.children.length === count) return;
  box.dataset.text = text;
  box.replaceChildren(
    ...Array.from({ length: count }, (_, i) => {
      const button = make("button", { type: "button", textContent: tokenAt(text, i), title: "position " + i, tabIndex: -1 });
      button.dataset.index = i;
      return button;
    }),
  );
}

function look(side, index) {
  Object.assign(state, { side, index });
  const { row, head, map, place } = chosen();
  const weights = weightsOf(map, place);
  const [, queries, keys] = map.shape;
  const isAsking = side === "asks";
  const shares = isAsking
    ? weights.subarray(index * keys, (index + 1) * keys)
    : Float32Array.from({ length: queries }, (_, query) => weights[query * keys + index]);
  const mark = (button, share, isChosen) => {
    button.setAttribute("aria-pressed", String(isChosen));
    button.tabIndex = isChosen ? 0 : -1;
    button.style.background =
      share === null ? "" : `color-mix(in srgb, var(--mark) ${(100 * Math.sqrt(share)).toFixed(1)}%, var(--panel))`;
  };
  const [own, other] = isAsking ? ["asks", "seen"] : ["seen", "asks"];
  [...at(own).children].forEach((button, i) => mark(button, null, i === index));
  [...at(other).children].forEach((button, i) => mark(button, shares[i], false));
  if (![...at(other).children].some((button) => button.tabIndex === 0)) at(other).children[0].tabIndex = 0;
  const texts = isAsking ? [map.queries, map.keys] : [map.keys, map.queries];
  const top = [...shares.keys()].sort((a, b) => shares[b] - shares[a]).slice(0, 4).filter((i) => shares[i] > 0.005);
  const list = top.map((i) => `“${tokenAt(texts[1], i)}” (${i}) ${percent(shares[i])}`).join(", ") || "nothing much";
  at("readout").textContent = `“${tokenAt(texts[0], index)}” (${index}) ${isAsking ? "looks at" : "is looked at by"}: ${list}`;
  at("weights").setAttribute("aria-label", `Weights of ${nameOf(row)}.H${head.index}: ${queries} that ask down, ${keys} looked at across`);
}

for (const side of ["asks", "seen"]) {
  const box = at(side);
  for (const kind of ["mouseover", "focusin", "click"])
    box.addEventListener(kind, (event) => {
      if (event.target.dataset.index !== undefined) look(side, Number(event.target.dataset.index));
    });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = step && box.children[Number(event.target.dataset.index) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}
at("weights").addEventListener("mousemove", (event) => {
  const { map } = chosen();
  const box = event.target.getBoundingClientRect();
  const query = Math.floor(((event.clientY - box.top) / box.height) * map.shape[1]);
  look("asks", Math.min(map.shape[1] - 1, Math.max(0, query)));
});

function paintAll() {
  const colour = ink();
  rows.forEach((row, y) =>
    row.heads.forEach((head, x) => {
      if (!head.is_removed) paint(cells[y][x].querySelector("canvas"), row.map, row.map.heads.indexOf(head.index), colour);
    }),
  );
  choose(state.y, state.x);
}
buildGrid();
const start = rows.findIndex((row) => row.heads.some((head) => !head.is_removed));
if (start >= 0) {
  Object.assign(state, { y: start, x: rows[start].heads.findIndex((head) => !head.is_removed) });
  state.index = rows[start].map.shape[1] - 1;
}
paintAll();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
