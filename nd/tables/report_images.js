// The browser of all images. Tiles stand on a few sheets, which are decoded when one of their tiles comes into view.
// A card is an image: its stimulus and what each chosen row made of it, with the score by which images are ordered.

const index = JSON.parse(document.getElementById("image-index").textContent);
const sheetTexts = [...document.querySelectorAll("script.sheet")];
const { cell, side, kind } = sheetTexts[0].dataset;
const ACROSS = 16;
const PAGE = 24; // cards added at a time
const controls = document.getElementById("browser-controls");
const cards = document.getElementById("cards");
const more = document.getElementById("more");
const tip = document.getElementById("tip");
const dialog = document.getElementById("large");

// ---- tiles

const sheets = new Map();

function sheet(number) {
  if (!sheets.has(number)) {
    const image = new Image();
    image.src = `data:image/${kind};base64,${sheetTexts[number].textContent}`;
    sheets.set(number, image.decode().then(() => image));
  }
  return sheets.get(number);
}

async function drawTile(canvas) {
  const tile = Number(canvas.dataset.tile);
  const image = await sheet(Math.floor(tile / ACROSS ** 2));
  if (Number(canvas.dataset.tile) !== tile) return; // another was wanted meanwhile
  const place = tile % ACROSS ** 2;
  canvas.width = side;
  canvas.height = side;
  const from = [(place % ACROSS) * cell, Math.floor(place / ACROSS) * cell];
  canvas.getContext("2d").drawImage(image, ...from, side, side, 0, 0, side, side);
  canvas.dataset.drawn = tile;
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((one) => one.isIntersecting)) {
    inView.unobserve(entry.target);
    drawTile(entry.target);
  }
}, { rootMargin: "300px" });

// ---- what is shown

// Scores as they are written in the page's tables.
function shown(value, metric) {
  if (value === null || value === undefined) return "-";
  return metric.percent ? `${(100 * value).toFixed(Math.max(0, metric.decimals - 2))}%` : value.toFixed(metric.decimals);
}

function chosen() {
  const form = new FormData(controls);
  const number = (name) => (form.get(name) === "" ? null : Number(form.get(name)));
  return {
    subject: Number(form.get("subject")), order: form.get("order"), metric: index.metrics[Number(form.get("metric"))],
    ranked: Number(form.get("ranked")), least: number("least"), most: number("most"),
    image: (form.get("image") ?? "").trim(), methods: form.getAll("method").map(Number),
  };
}

const rowOf = (method, subject) => index.rows.find((row) => row.method === method && row.subject === subject);

// Positions of the images that fit, in the order wanted. Images without a score come last.
function ordered(wanted) {
  const scores = rowOf(wanted.ranked, wanted.subject)?.scores[wanted.metric?.key] ?? [];
  const score = (k) => scores[k] ?? null;
  const scale = wanted.metric?.percent ? 100 : 1; // limits are given as scores are shown
  const fits = (k) => {
    if (wanted.image && !wanted.image.split(/[\s,]+/).includes(String(index.images[k]))) return false;
    if (wanted.least === null && wanted.most === null) return true;
    return score(k) !== null && scale * score(k) >= (wanted.least ?? -Infinity) && scale * score(k) <= (wanted.most ?? Infinity);
  };
  const every = index.images.map((_, k) => k);
  const known = every.map(score).filter((value) => value !== null).sort((a, b) => a - b);
  const half = known.length >> 1;
  const median = known.length % 2 ? known[half] : (known[half - 1] + known[half]) / 2;
  const best = wanted.metric?.lower ? 1 : -1;
  const key = {
    best: (k) => best * score(k), worst: (k) => -best * score(k), median: (k) => Math.abs(score(k) - median), id: (k) => index.images[k],
  }[wanted.order];
  const last = (k) => (wanted.order !== "id" && score(k) === null ? 1 : 0);
  return every.filter(fits).sort((a, b) => last(a) - last(b) || key(a) - key(b) || index.images[a] - index.images[b]);
}

// What is said of a tile: the row's label, the image, and its scores, one or all.
function wordsFor(method, image, subject, metrics) {
  if (method < 0) return `stimulus, image ${index.images[image]}`;
  const row = rowOf(method, subject);
  const scores = metrics.map((metric) => `${metric.title} ${shown(row.scores[metric.key]?.[image], metric)}`);
  return [`${index.methods[method].label}, image ${index.images[image]}`, ...scores].join(metrics.length > 1 ? "\n" : ": ");
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function tileButton(method, image, wanted) {
  const row = method < 0 ? null : rowOf(method, wanted.subject);
  const canvas = element("canvas", { width: 1, height: 1 });
  canvas.dataset.tile = row ? row.tiles[image] : index.stimuli[image];
  canvas.setAttribute("aria-hidden", "true");
  const score = row && wanted.metric ? shown(row.scores[wanted.metric.key]?.[image], wanted.metric) : "";
  const button = element("button", { type: "button", className: "tile", tabIndex: -1 }, canvas,
    row ? `${index.methods[method].label} ` : "stimulus", element("small", { textContent: score }));
  // Begins with what is seen, so that who speaks to a computer can name it.
  const seen = row ? `${index.methods[method].label} ${score}${wanted.metric ? `: ${wanted.metric.title}` : ""}` : "stimulus";
  button.setAttribute("aria-label", `${seen}, image ${index.images[image]}`);
  Object.assign(button.dataset, { method, image });
  inView.observe(canvas);
  return button;
}

function card(image, rank, wanted, methods) {
  const made = element("div", { className: "card" }, element("h3", { textContent: `image ${index.images[image]}` }, element("small", { textContent: rank })));
  made.append(element("div", { className: "tiles" }, ...[-1, ...methods].map((method) => tileButton(method, image, wanted))));
  return made;
}

let state = { wanted: null, images: [], ranks: new Map(), count: 0 };

function show() {
  const wanted = chosen();
  inView.disconnect();
  cards.replaceChildren();
  const everything = { ...wanted, least: null, most: null, image: "", order: "best" };
  const ranks = new Map(ordered(everything).map((image, k) => [image, k + 1]));
  state = { wanted, images: ordered(wanted), ranks, count: 0 };
  addCards();
  document.getElementById("image-count").textContent = `${state.images.length} of ${index.images.length} images.`;
}

function addCards() {
  const { wanted, images, ranks } = state;
  const methods = wanted.methods.filter((method) => rowOf(method, wanted.subject));
  const next = images.slice(state.count, state.count + PAGE);
  cards.append(...next.map((image) => card(image, `rank ${ranks.get(image)} of ${index.images.length}`, wanted, methods)));
  state.count += next.length;
  more.hidden = state.count >= images.length;
  more.textContent = `${Math.min(PAGE, images.length - state.count)} more`;
  const first = cards.querySelector(".tile[tabindex='0']") ?? cards.querySelector(".tile");
  if (first) first.tabIndex = 0;
}

// ---- keys: one tile can be reached by Tab, arrows go on from there

function step(tile, key) {
  const tiles = [...cards.querySelectorAll(".tile")];
  const across = [...tile.parentElement.children].indexOf(tile);
  const width = tile.parentElement.children.length;
  const place = tiles.indexOf(tile);
  const to = { ArrowLeft: place - 1, ArrowRight: place + 1, ArrowUp: place - width, ArrowDown: place + width, Home: place - across, End: place - across + width - 1 }[key];
  return tiles[to];
}

cards.addEventListener("keydown", (event) => {
  const tile = event.target.closest(".tile");
  if (event.key === "Escape") tip.hidden = true;
  const next = tile && step(tile, event.key);
  if (!next) return;
  event.preventDefault();
  next.focus();
});

cards.addEventListener("focusin", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  for (const one of cards.querySelectorAll(".tile[tabindex='0']")) one.tabIndex = -1;
  tile.tabIndex = 0;
  if (tile.matches(":focus-visible")) showTip(tile);
});

// ---- all scores of a tile, on hover and focus

function showTip(tile) {
  tip.textContent = wordsFor(Number(tile.dataset.method), Number(tile.dataset.image), state.wanted.subject, index.metrics);
  tip.hidden = false;
  const box = tile.getBoundingClientRect();
  const own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(4, box.left), document.documentElement.clientWidth - own.width - 4);
  const below = box.bottom + 4;
  tip.style.left = `${left}px`;
  tip.style.top = `${below + own.height > document.documentElement.clientHeight ? Math.max(4, box.top - own.height - 4) : below}px`;
}

cards.addEventListener("pointerover", (event) => {
  const tile = event.pointerType === "mouse" && event.target.closest(".tile");
  if (tile) showTip(tile);
});
cards.addEventListener("pointerout", () => { tip.hidden = true; });
cards.addEventListener("focusout", () => { tip.hidden = true; });
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// ---- one image large

let large = { image: 0, method: 0 };

function showLarge() {
  const { image, method } = large;
  const row = rowOf(method, state.wanted.subject);
  const label = index.methods[method].label;
  const canvases = { "large-stimulus": [index.stimuli[image], -1], "large-made": [row.tiles[image], method] };
  for (const [id, [tile, of]] of Object.entries(canvases)) {
    const canvas = document.getElementById(id);
    canvas.dataset.tile = tile;
    canvas.setAttribute("aria-label", wordsFor(of, image, state.wanted.subject, index.metrics).replaceAll("\n", ", "));
    drawTile(canvas);
  }
  document.getElementById("large-title").textContent = `image ${index.images[image]}, rank ${state.ranks.get(image)} of ${index.images.length}`;
  document.getElementById("large-label").textContent = label;
  document.getElementById("large-command").textContent = `nd show ${row.run} image=${index.images[image]}`;
  document.getElementById("large-scores").replaceChildren(...index.metrics.map((metric) => element("tr", {},
    element("th", { scope: "row", textContent: metric.title }), element("td", { textContent: shown(row.scores[metric.key]?.[image], metric) }))));
}

function stepLarge(way) {
  const methods = index.methods.map((_, k) => k).filter((method) => rowOf(method, state.wanted.subject));
  const at = { image: state.images.indexOf(large.image), method: methods.indexOf(large.method) };
  const by = { left: [-1, 0], right: [1, 0], up: [0, -1], down: [0, 1] }[way];
  large.image = state.images[at.image + by[0]] ?? large.image;
  large.method = methods[at.method + by[1]] ?? large.method;
  showLarge();
}

cards.addEventListener("click", (event) => {
  const tile = event.target.closest(".tile");
  if (!tile) return;
  const method = Number(tile.dataset.method);
  large = { image: Number(tile.dataset.image), method: method < 0 ? state.wanted.ranked : method };
  tip.hidden = true;
  showLarge();
  dialog.showModal();
});
dialog.addEventListener("click", (event) => {
  const { do: way } = event.target.closest("[data-do]")?.dataset ?? {};
  if (way === "close" || event.target === dialog) dialog.close();
  else if (way) stepLarge(way);
});
dialog.addEventListener("keydown", (event) => {
  const way = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" }[event.key];
  if (!way) return;
  event.preventDefault();
  stepLarge(way);
});

controls.addEventListener("input", show);
controls.addEventListener("reset", () => setTimeout(show)); // when the fields have their first values again
controls.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => {
  const next = state.count;
  addCards();
  cards.children[next]?.querySelector(".tile").focus();
});
show();
