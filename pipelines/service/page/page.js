"use strict";
// What is shown follows from `state`. Events change it and call `changed`, which draws what is known at once and asks
// the service for the rest; `draw…` put the state on the page.

const NEXT = 5; // ranks shown behind the last one that is kept
const ROWS = 400; // ranks shown at most
const PAUSE = 200; // ms without a change before the service is asked
const TRIES = 4; // how often a busy service is asked
const LONG_SIDE = 1000; // pixels of the painted picture
const IDS = 500; // image ids per page of suggestions
const TOKEN = "kappaseg-token"; // in sessionStorage
const BY = { classifier: "the classifier", own: "the segmenter itself", complete: "nothing: all labels kept" };

const $ = (id) => document.getElementById(id);
const enc = encodeURIComponent;
const span = (className, textContent = "") => Object.assign(document.createElement("span"), { className, textContent });
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

const state = {
  models: null, names: [], colours: [], caches: [],
  picture: null, // {blob, name, width, height}; no size where this browser cannot read it
  row: null, // of a cache: {cache, id, source, ranking}
  view: null, // "picture" or "row"
  source: null, // who ranks the picture
  known: {}, // source → ranking of the picture, [[id, score], …], as far as it is known
  kappa: 10, off: new Set(),
  answer: null, // of /v1/segment, with `map`: u32 [H × W]
  stale: false, // whether `answer` is of earlier settings
  lit: null, // label that is picked out on the map
  at: null, // crosshair: {x, y} in pixels of the map
  pages: null, // of suggested ids: {cache, split, start, count}
};

// ------------------------------------------------------------------------------------------------- asking the service

class Problem extends Error {
  constructor(detail, passes = false) { super(detail); this.passes = passes; } // passes: may be gone at the next try
}

/** The JSON of an answer. Waits for a token where one is wanted, comes back to a busy service. Throws Problem. */
async function ask(path, { signal, headers, ...rest } = {}) {
  for (let attempt = 1; ; attempt++) {
    const token = sessionStorage.getItem(TOKEN);
    if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
    const answer = await fetch(path, { ...rest, headers, signal }).catch((error) => {
      throw signal?.aborted ? error : new Problem("the service does not answer; is it still running?", true);
    });
    if (answer.ok) return answer.json();
    const problem = await answer.json().catch(() => ({}));
    if (answer.status === 401) {
      await tokenGiven(token);
    } else if (answer.status === 503 && attempt < TRIES) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      say(`The service is busy (${problem.detail}). Asking again in ${seconds} s, try ${attempt + 1} of ${TRIES}.`);
      await new Promise((done) => setTimeout(done, 1000 * seconds));
    } else {
      throw new Problem(problem.detail ?? `the service answered ${answer.status} without a word`, answer.status >= 500);
    }
    signal?.throwIfAborted();
  }
}

let awaited = null; // that a token is given
function tokenGiven(refused) {
  if (!awaited && sessionStorage.getItem(TOKEN) !== refused) return null; // given meanwhile
  awaited ??= new Promise((done) => {
    sessionStorage.removeItem(TOKEN);
    $("token-note").textContent = refused ? "The service did not accept that token." : "This service wants a token.";
    $("token").hidden = false;
    $("token-field").value = "";
    $("token-field").focus();
    $("token").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, $("token-field").value);
      $("token").hidden = true;
      $("main").focus();
      awaited = null;
      done();
    };
  });
  return awaited;
}

let running = new AbortController(), timer = 0, job = null;

/** Do one thing that asks the service; what was under way is given up, and its answer ignored. */
async function run(work) {
  clearTimeout(timer);
  running.abort();
  const { signal } = (running = new AbortController());
  job = work;
  complain(null);
  say("");
  $("busy").hidden = false;
  try {
    const told = await work(signal);
    if (!signal.aborted) say(told);
  } catch (error) {
    if (signal.aborted) return;
    say("");
    complain(error);
    if (!(error instanceof Problem)) throw error;
  } finally {
    if (!signal.aborted) $("busy").hidden = true;
  }
}

/** The settings are others now: draw what is known, ask for the rest after a pause. */
function changed(pause = PAUSE) {
  state.stale = true;
  draw();
  clearTimeout(timer);
  timer = setTimeout(run, pause, examine);
}

function say(text) {
  $("status").textContent = text;
}

function complain(error) {
  $("problem").hidden = error === null;
  $("again").hidden = !error?.passes;
  const text = error?.message ?? "";
  $("problem-text").textContent = text.replace(/^image: /, state.picture ? `${state.picture.name}: ` : "");
}

// ------------------------------------------------------------------------------------------------- what is asked for

const source = () => (state.view === "row" ? "cache" : state.source);
const segments = () => state.view === "picture" && state.models.segmenter !== null;
const pairs = ({ ids, scores }) => ids.map((id, rank) => [id, scores[rank]]);
const most = () => (source() === "cache" ? state.row.ranking.length : state.names.length);
const kappa = () => (source() === "complete" ? most() : Math.min(state.kappa, most()));

/** [[id, score], …], best first, as far as they are known. */
function ranking() {
  if (source() === "cache") return state.row.ranking;
  if (source() === "complete") return state.names.map((_, id) => [id]);
  return state.known[source()] ?? [];
}

function body() {
  const { blob } = state.picture;
  const kind = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  return { method: "POST", body: blob, headers: { "Content-Type": kind } };
}

function path({ encoding } = {}) {
  const query = new URLSearchParams();
  if (source() !== "complete") query.set("kappa", kappa());
  if (state.view === "row") return `v1/caches/${enc(state.row.cache)}/labels/${enc(state.row.id)}?${query}`;
  if (!segments()) return `v1/rank?${query}`;
  query.set("ranking", source());
  if (source() === "cache") { query.set("cache", state.row.cache); query.set("image_id", state.row.id); }
  for (const label of state.off) query.append("without", label);
  if (encoding) query.set("encoding", encoding);
  return `v1/segment?${query}`;
}

/** Rank and segment the picture; a row is whole already. */
async function examine(signal) {
  if (state.view === "picture" && source() === "classifier" && !state.known.classifier) {
    state.known.classifier = pairs(await ask(`v1/rank?kappa=${state.names.length}`, { ...body(), signal }));
    draw();
  }
  if (segments()) {
    const answer = await ask(path({ encoding: "rgb" }), { ...body(), signal });
    answer.map = await idsOf(answer);
    signal.throwIfAborted();
    const used = new Set(answer.ranking.ids); // what is kept is what the network was given
    state.known[source()] = [...pairs(answer.ranking), ...ranking().filter(([id]) => !used.has(id))];
    state.answer = answer;
  }
  state.stale = false;
  draw();
  return summary();
}

/** The label map of an answer as u32 [H × W], by way of a canvas that changes no bit of it. */
async function idsOf({ label_map: { png, width, height }, legend }) {
  const bytes = Uint8Array.from(atob(png), (c) => c.charCodeAt(0));
  const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), exact);
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(bitmap, 0, 0);
  const { data } = pen.getImageData(0, 0, width, height);
  const ids = new Uint32Array(width * height), there = [];
  for (const label of legend) there[label.id] = true;
  for (let i = 0; i < ids.length; i++) {
    ids[i] = data[4 * i] | (data[4 * i + 1] << 8) | (data[4 * i + 2] << 16);
    if (!there[ids[i]]) {
      throw new Problem("this browser changes the pixels that a page reads, perhaps as a protection against " +
        "fingerprinting, so that the label map cannot be shown; allow it for this page");
    }
  }
  return ids;
}

function summary() {
  const { row, view, answer } = state;
  if (view === "row") return `${kappa()} of ${count(most(), "stored label")} of ${row.id} kept.`;
  const subject = state.picture.name;
  if (!answer) return `${kappa()} of ${count(most(), "label")} kept for ${subject}.`;
  return `${answer.legend.length} of ${count(answer.ranking.kappa, "kept label")} found in ${subject}.`;
}

// ----------------------------------------------------------------------------------------------------------- drawing

function draw() {
  const { view, row, picture, models, answer, known } = state;
  $("result").hidden = !(view === "row" || picture?.width || answer || known[state.source]);
  $("result").setAttribute("aria-busy", state.stale);
  if ($("result").hidden) return;
  $("subject").textContent = view === "row" ? `${row.id}, from cache ${row.cache}` : picture.name;
  $("row-note").hidden = view !== "row";
  if (view === "row") {
    $("row-text").textContent = `A label cache stores ranked labels and no pictures, so there is none to show. ` +
      `This row is ${row.source}: ${ORIGIN[row.source]}.` +
      (models.segmenter && !picture ? " Load its picture, and these labels can be used to segment it." : "");
    $("row-actions").hidden = !picture;
    $("use-row").hidden = !models.segmenter;
  }
  $("figure").hidden = view === "row" || !(picture.width || answer);
  drawKappa();
  drawBars();
  drawMap();
  $("curl").textContent = curl();
}

const ORIGIN = {
  "held-out": "the classifier was not trained on this image",
  "in-sample": "the classifier was trained on this image",
  "out-of-fold": "ranked by a classifier trained on the other folds",
};

function drawKappa() {
  const rankings = segments() ? state.models.segmenter.rankings.filter((by) => by !== "cache" || state.row) : [];
  const texts = rankings.map((by) => (by === "cache" ? `cached row ${state.row.id}` : BY[by]));
  $("ranking-line").hidden = rankings.length < 2;
  if ($("ranking").textContent !== texts.join(""))
    $("ranking").replaceChildren(...rankings.map((by, i) => new Option(texts[i], by)));
  $("ranking").value = source();
  $("kappa-line").hidden = source() === "complete";
  $("unranked").hidden = source() !== "complete";
  for (const input of [$("kappa"), $("kappa-number")]) {
    input.max = most();
    if (input !== document.activeElement) input.value = kappa();
  }
  $("kappa-of").textContent = `of ${most()}${source() === "cache" ? " stored" : ""}`;
}

function drawBars() {
  const all = ranking(), kept = all.slice(0, Math.min(kappa(), ROWS));
  const next = kappa() > ROWS ? [] : all.slice(kappa(), kappa() + NEXT), hidden = kappa() - ROWS;
  fill($("kept"), kept, 0, pixelsOf);
  fill($("next"), next, kept.length, () => "");
  $("bars").hidden = all.length === 0;
  $("bars").classList.toggle("plain", !segments());
  $("bars").classList.toggle("unscored", source() === "complete");
  $("bars-note").hidden = !segments();
  $("all-on").hidden = !segments() || state.off.size === 0;
  $("cut").hidden = hidden <= 0 && next.length === 0;
  const cut = $("cut").rows[0].cells[0], rest = most() - kappa();
  cut.colSpan = source() === "complete" ? 2 : segments() ? 4 : 3;
  cut.textContent = hidden > 0 ? `and ${count(hidden, "more kept label")}`
    : `Not kept: ${next.length < rest ? `the next ${next.length} of ` : ""}${count(rest, "label")}`;
}

/** What became of a kept label in the map. */
function pixelsOf(id) {
  if (state.off.has(id)) return "off";
  if (!segments() || !state.answer || state.stale) return "";
  const found = state.answer.legend.find((label) => label.id === id);
  return found ? percent(found.share) : "not found";
}

function fill(body, ranks, first, words) {
  while (body.rows.length > ranks.length) body.lastElementChild.remove();
  while (body.rows.length < ranks.length) body.append($("row").content.cloneNode(true));
  ranks.forEach(([id, score = 0], i) => {
    const row = body.rows[i], bar = row.querySelector(".bar > span").style;
    row.dataset.id = id;
    row.classList.toggle("off", body === $("kept") && state.off.has(id));
    row.querySelector("input").checked = !state.off.has(id);
    row.querySelector(".swatch").style.background = bar.background = bar.borderColor = state.colours[id];
    bar.width = `${100 * score}%`;
    const texts = { ".rank": first + i + 1, ".name": state.names[id], ".value": score.toFixed(3), ".pixels": words(id) };
    for (const [place, text] of Object.entries(texts)) row.querySelector(place).textContent = text;
  });
}

/** Everything about the picture and its map that follows from the last answer. */
function drawMap() {
  if (state.view === "row") return;
  const { answer, picture, names } = state;
  $("map").hidden = $("map-tools").hidden = !answer;
  $("figure").classList.toggle("stale", answer !== null && state.stale);
  $("photo").hidden = !picture.width;
  const { width, height } = answer?.label_map ?? picture;
  $("stage").style.aspectRatio = `${width} / ${height}`;
  $("stage").style.maxWidth = `calc(var(--tall) * ${width / height})`;
  shade();
  if (!answer || state.stale) return;
  paint();
  read();
  $("legend").replaceChildren(...answer.legend.map(({ id, name, share }) => {
    const item = document.createElement("li");
    item.dataset.id = id;
    item.append(swatch(id), name, span("share", ` ${percent(share)}`));
    return item;
  }));
  const missing = answer.not_found.map((id) => names[id]).join(", ");
  $("missing").textContent = missing ? `Kept, not found: ${missing}.` : "Every kept label was found.";
  $("misfit").hidden = !picture.width || (picture.width === width && picture.height === height);
  $("misfit").textContent = `The service read ${width} × ${height} pixels, this browser shows ${picture.width} × ` +
    `${picture.height}: the map may not lie where it belongs.`;
}

/** The map in the colours of its labels, borders darker, on the canvas over the picture. */
function paint() {
  const { map, label_map: { width, height } } = state.answer, lit = map.includes(state.lit) ? state.lit : null;
  const scale = LONG_SIDE / Math.max(width, height);
  const W = Math.max(1, Math.round(scale * width)), H = Math.max(1, Math.round(scale * height));
  const column = Uint32Array.from({ length: W }, (_, x) => ((x + 0.5) * width) / W);
  const labels = new Uint32Array(W * H), image = new ImageData(W, H), pixels = new DataView(image.data.buffer);
  for (let y = 0, i = 0; y < H; y++) {
    const line = width * Math.floor(((y + 0.5) * height) / H);
    for (let x = 0; x < W; x++) labels[i++] = map[line + column[x]];
  }
  const paints = state.colours.map((colour) => parseInt(colour.slice(1), 16));
  const dark = paints.map((p) => [16, 8, 0].reduce((sum, bits) => sum | (0.45 * ((p >> bits) & 255)) << bits, 0));
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i];
    const edge = ((i + 1) % W && label !== labels[i + 1]) || (i + W < labels.length && label !== labels[i + W]);
    pixels.setUint32(4 * i, ((edge ? dark : paints)[label] << 8) | (lit === null || lit === label ? 255 : 50));
  }
  Object.assign($("map"), { width: W, height: H }).getContext("2d").putImageData(image, 0, 0);
}

/** The picture loses its own colours below the map: a colour in the picture is then that of a label. */
function shade() {
  const opacity = $("opacity").value / 100, covered = state.answer !== null;
  $("map").style.opacity = opacity;
  $("photo").style.filter = covered ? `grayscale(${Math.min(1, 4 * opacity)})` : "";
  $("opacity-text").textContent = `${$("opacity").value} %`;
}

function swatch(id) {
  const made = span("swatch");
  made.style.background = state.colours[id];
  return made;
}

/** What lies under the crosshair, in words. */
function read() {
  const { at, answer, names } = state;
  $("cross").hidden = at === null;
  if (at === null) { $("readout").textContent = "Point at the picture to read its labels."; return ""; }
  const { width, height } = answer.label_map;
  const id = answer.map[at.y * width + at.x], rank = answer.ranking.ids.indexOf(id);
  const found = answer.legend.find((label) => label.id === id);
  const score = answer.ranking.scores[rank].toFixed(3);
  const how = answer.ranking.source === "complete" ? "" : `rank ${rank + 1}, score ${score}, `;
  const rest = `: ${how}${percent(found.share)} of the pixels`;
  $("readout").replaceChildren(swatch(id), span("name", names[id]), rest);
  $("cross").style.left = `${(100 * (at.x + 0.5)) / width}%`;
  $("cross").style.top = `${(100 * (at.y + 0.5)) / height}%`;
  return names[id] + rest;
}

function light(id) {
  if (id === state.lit) return;
  state.lit = id;
  for (const row of document.querySelectorAll("[data-id]")) row.classList.toggle("lit", Number(row.dataset.id) === id);
  if (state.answer && !$("map").hidden) paint();
}

function curl() {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const words = ["curl"];
  if (sessionStorage.getItem(TOKEN)) words.push(`-H "Authorization: Bearer $TOKEN"`);
  if (state.view === "picture") {
    const kind = `Content-Type: ${body().headers["Content-Type"]}`, file = `@${state.picture.blob.name || "FILE"}`;
    words.push("-H", quoted(kind), "--data-binary", quoted(file));
  }
  return [...words, quoted(new URL(path(), location.href).href)].join(" ");
}

// --------------------------------------------------------------------------------------------------- pictures and rows

async function show(blob) {
  const { limits, segmenter } = state.models, name = blob.name || "the pasted picture";
  if (blob.size > limits.image_bytes) {
    const bytes = [blob.size, limits.image_bytes].map((n) => n.toLocaleString("en"));
    return complain(new Problem(`${name} has ${bytes[0]} bytes, the limit is ${bytes[1]}; shrink it`));
  }
  const picture = { blob, name };
  Object.assign(state, { picture, view: "picture", known: {}, answer: null, at: null });
  state.source = segmenter ? segmenter.default ?? "complete" : "classifier";
  state.off.clear();
  changed(0);
  const bitmap = await createImageBitmap(blob).catch(() => null); // the service says what is wrong with it
  if (bitmap === null || state.picture !== picture) return;
  Object.assign(picture, { width: bitmap.width, height: bitmap.height });
  const scale = LONG_SIDE / Math.max(bitmap.width, bitmap.height), size = (n) => Math.max(1, Math.round(scale * n));
  const photo = Object.assign($("photo"), { width: size(bitmap.width), height: size(bitmap.height) });
  const pen = Object.assign(photo.getContext("2d"), { imageSmoothingQuality: "high" });
  pen.drawImage(bitmap, 0, 0, photo.width, photo.height);
  photo.setAttribute("aria-label", `The picture ${name}`);
  bitmap.close();
  draw();
}

/** Show the one file of a drop or paste. */
function only(files, what) {
  if (files.length === 1) return show(files[0]);
  complain(new Problem(files.length ? `${files.length} files were ${what}; take one at a time` :
    `no file was ${what}; save the picture as a file first`));
}

function lookUp(cache, id) {
  return run(async (signal) => {
    const row = await ask(`v1/caches/${enc(cache)}/labels/${enc(id)}`, { signal });
    state.row = { cache, id, source: row.source, ranking: pairs(row) };
    if (state.source === "cache") state.source = state.models.segmenter.default ?? "complete"; // the row was another
    state.view = "row";
    return examine(signal);
  });
}

async function suggest() {
  const pages = state.pages, { name, ready, splits, images } = state.caches.find((cache) => cache.name === pages.cache);
  $("more").hidden = true;
  if (!ready || !splits) return;
  const wanted = pages.count + IDS;
  while (pages.count < wanted && pages.split < splits.length) {
    const query = new URLSearchParams({ split: splits[pages.split], start: pages.start, limit: wanted - pages.count });
    const page = await ask(`v1/caches/${enc(name)}/images?${query}`);
    if (pages !== state.pages) return; // another cache was chosen meanwhile
    $("ids").append(...page.image_ids.map((id) => Object.assign(document.createElement("option"), { value: id })));
    pages.count += page.image_ids.length;
    pages.start = page.next ?? 0;
    if (page.next === null) pages.split++;
  }
  $("more").hidden = pages.split >= splits.length;
  const some = $("more").hidden ? "all" : pages.count.toLocaleString("en");
  $("suggested").textContent = `Suggested as you type: ${some} of ${count(images, "id")}.`;
}

function chooseCache(name) {
  state.pages = { cache: name, split: 0, start: 0, count: 0 };
  $("ids").replaceChildren();
  $("suggested").textContent = "";
  suggest().catch(complain);
}

// ------------------------------------------------------------------------------------------------------------- events

function listen() {
  const on = (id, event, does) => $(id).addEventListener(event, does);
  on("file", "change", () => { if ($("file").files.length) show($("file").files[0]); $("file").value = ""; });
  on("lookup", "submit", (event) => { event.preventDefault(); lookUp(state.pages.cache, $("image-id").value.trim()); });
  on("cache", "change", () => chooseCache($("cache").value));
  on("more", "click", () => { $("image-id").focus(); suggest().catch(complain); });
  on("again", "click", () => job && run(job));
  on("use-row", "click", () => toPicture("cache"));
  on("back", "click", () => toPicture(state.source));
  on("ranking", "change", () => { state.source = $("ranking").value; changed(0); });
  on("all-on", "click", () => { state.off.clear(); changed(0); $("kappa").focus(); });
  for (const id of ["kappa", "kappa-number"]) {
    on(id, "input", () => { if ($(id).value && $(id).validity.valid) { state.kappa = $(id).valueAsNumber; changed(); } });
    on(id, "change", () => { if ($(id).reportValidity()) $(id).value = kappa(); });
  }
  on("kept", "change", (event) => {
    const id = Number(event.target.closest("tr").dataset.id);
    if (event.target.checked) state.off.delete(id); else state.off.add(id);
    changed();
  });
  const labelOf = (event) => event.target.closest?.("[data-id]")?.dataset.id;
  for (const id of ["bars", "legend"]) {
    for (const event of ["pointerover", "focusin"])
      on(id, event, (e) => light(labelOf(e) === undefined ? null : Number(labelOf(e))));
    for (const event of ["pointerleave", "focusout"]) on(id, event, () => light(null));
  }
  on("opacity", "input", shade);
  for (const event of ["pointermove", "pointerdown"]) on("map", event, pointed);
  on("map", "keydown", moved);
  on("map", "focus", () => {
    const { width, height } = state.answer.label_map;
    state.at ??= { x: width >> 1, y: height >> 1 };
    tell(read());
  });
  on("copy", "click", async () => { await navigator.clipboard.writeText($("curl").textContent); say("Copied."); });
  $("copy").hidden = !navigator.clipboard; // only there on https and on this machine
  if ($("drop").hidden) return;
  document.addEventListener("paste", ({ clipboardData: { files } }) => { if (files.length) only(files, "pasted"); });
  const dragging = (is) => (event) => { event.preventDefault(); document.body.classList.toggle("dragging", is); };
  document.addEventListener("dragover", dragging(true));
  document.addEventListener("dragleave", dragging(false));
  document.addEventListener("drop", (event) => { dragging(false)(event); only(event.dataTransfer.files, "dropped"); });
}

function toPicture(source) {
  Object.assign(state, { view: "picture", source });
  $("main").focus({ preventScroll: true }); // the button that had it is gone
  changed(0);
}

function pointed(event) {
  const box = $("map").getBoundingClientRect(), { width, height } = state.answer.label_map;
  const pixel = (along, length, size) => Math.max(0, Math.min(size - 1, Math.floor((along * size) / length)));
  state.at = {
    x: pixel(event.clientX - box.left, box.width, width), y: pixel(event.clientY - box.top, box.height, height),
  };
  read();
}

function moved(event) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
  if (dx === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const { width, height } = state.answer.label_map;
  const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 50));
  const inside = (n, size) => Math.max(0, Math.min(size - 1, n));
  state.at = { x: inside(state.at.x + dx * step, width), y: inside(state.at.y + dy * step, height) };
  tell(read());
}

/** To screen readers, once the crosshair rests, and only where the words change. */
let telling = 0;
function tell(text) {
  clearTimeout(telling);
  telling = setTimeout(() => { if ($("spoken").textContent !== text) $("spoken").textContent = text; }, 300);
}

// -------------------------------------------------------------------------------------------------------------- start

async function start(signal) {
  const models = await ask("v1/models", { signal }), { classifier, segmenter } = models;
  const { names, colours } = await ask("v1/vocabulary", { signal });
  const caches = models.caches.length ? (await ask("v1/caches", { signal })).caches : [];
  Object.assign(state, { models, names, colours, caches, kappa: Math.min(segmenter?.kappa ?? 10, names.length) });
  const has = { classifier, segmenter, picture: classifier || segmenter, cache: caches.length, caches: caches.length > 1 };
  has.incomplete = !(classifier && segmenter && has.cache);
  for (const part of document.querySelectorAll("[data-if]"))
    part.hidden = !part.dataset.if.split(" ").every((word) => (word[0] === "!" ? !has[word.slice(1)] : has[word]));
  const versions = [["classifier", classifier], ["segmenter", segmenter]].filter(([, part]) => part);
  $("versions").textContent = [models.service, count(names.length, "label"),
    ...versions.map(([name, part]) => `${name} ${part.version.slice(0, 8)} (${part.backbone})`),
    ...caches.map((cache) => `cache ${cache.name} (${count(cache.images ?? 0, "image")})`)].join(" · ");
  if (has.cache) {
    const told = ({ name, ready, reason }) => new Option(ready ? name : `${name} (not ready: ${reason})`, name);
    $("cache").replaceChildren(...caches.map(told));
    chooseCache(caches[0].name);
  }
  listen();
  job = null;
  return "";
}

run(start);
