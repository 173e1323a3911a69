// The explorer: z of the original, all its latents; the small model gets those it kept.

import { ask, describe, Refused, useToken } from "./api.js";
import { normal, slider } from "./latents.js";
import { draw, rowOf, sizeOf } from "./picture.js";

const $ = (id) => document.getElementById(id);
let model; // what /model says
let positions; // numbers in one latent: 1, or those of a map
let z; // Float32Array, original_latent_size × positions
let posterior = null; // { mean, logvar } of the picture that was dropped, for the kept latents
let sliders = new Map();
let pictures = null; // the last { shrunk, original } that was drawn

start();

async function start() {
  try {
    model = await describe();
  } catch (error) {
    if (!(error instanceof Refused && error.status === 401)) throw say(error);
    $("token-form").hidden = false;
    $("about").textContent = "";
    return;
  }
  $("token-form").hidden = true;
  $("main").hidden = false;
  positions = model.latent_shape.slice(1).reduce((a, b) => a * b, 1);
  z = new Float32Array(model.original_latent_size * positions);
  layOut();
  rest();
}

function layOut() {
  const kept = model.latents.filter((latent) => latent.place !== null);
  const gone = model.latents.filter((latent) => latent.place === null);
  document.title = `${model.name}: latents`;
  $("title").textContent = model.name;
  const before = gone.length ? ` of the original's ${model.original_latent_size}` : "";
  $("about").textContent = `${kept.length} latents${before}; x has shape ${model.row_shape.join(" × ")}`;
  $("shrunk-name").textContent = gone.length ? `shrunk, ${kept.length} latents` : `${kept.length} latents`;
  const by = model.kl_from === "analysis.json" ? "measured on data by the analysis before the cut" : `from ${model.kl_from}`;
  $("order").textContent = `By number in the original, the most informative first. KL in nats per row, ${by}. Arrow keys move a slider.`;
  for (const element of document.querySelectorAll(".against")) element.hidden = !model.against;
  for (const latent of kept) add($("sliders"), latent, false);
  $("idle").hidden = !gone.length;
  $("idle-about").textContent = model.against
    ? "Moving one changes the original alone, if anything."
    : "They can be moved where the service was started with --against ORIGINAL.";
  for (const latent of gone) add($("idle-sliders"), latent, true);
  const size = sizeOf(model.row_shape);
  const takesPictures = !size.curve && (size.colour || size.channels === 1);
  $("drop").hidden = !takesPictures;
  for (const id of ["posterior", "mean"]) $(id).hidden = !takesPictures;
  $("size").textContent = `${size.width} × ${size.height}`;
}

function add(parent, latent, idle) {
  const made = slider(latent, move, idle);
  made.input.disabled = idle && !model.against;
  sliders.set(latent.number, made);
  parent.append(made.row);
}

// ---- z

const part = (number) => z.subarray(number * positions, (number + 1) * positions);
const average = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function move(number, value) {
  const change = value - average(part(number));
  part(number).forEach((_, i, values) => { values[i] += change; });
  sliders.get(number).show(value);
  decode();
}

// Give every kept latent value(place, position), and put the idle ones back to what the small model takes them for
function set(value) {
  for (const latent of model.latents) {
    const values = part(latent.number);
    values.forEach((_, i) => { values[i] = latent.place === null ? latent.constant ?? 0 : value(latent.place, i); });
    sliders.get(latent.number).show(average(values));
  }
  decode();
}

const rest = () => set(() => 0);

function small() {
  const values = new Float32Array(model.latent_shape[0] * positions);
  for (const latent of model.latents) {
    if (latent.place !== null) values.set(part(latent.number), latent.place * positions);
  }
  return values;
}

// ---- pictures: one request at a time, always for the newest z

let wanted = 0, drawn = 0, running = false;

async function decode() {
  wanted++;
  if (running) return;
  running = true;
  try {
    while (drawn !== wanted) {
      const now = wanted;
      const asked = [ask("/decode", model.latent_shape, small(), "shrunk")];
      if (model.against) {
        asked.push(ask("/decode", [model.original_latent_size, ...model.latent_shape.slice(1)], z.slice(), "original"));
      }
      const [shrunk, original] = await Promise.all(asked);
      pictures = { shrunk: shrunk.values, original: original?.values };
      show();
      drawn = now;
      document.body.dataset.drawn = now;
      say("");
    }
  } catch (error) {
    drawn = wanted;
    say(error);
  } finally {
    running = false;
  }
}

function show() {
  if (!pictures) return;
  draw($("shrunk"), model.row_shape, pictures.shrunk, model.shown_range);
  if (!pictures.original) return;
  draw($("original"), model.row_shape, pictures.original, model.shown_range);
  const [low, high] = model.shown_range;
  const gain = 10 ** Number($("gain").value);
  const middle = (low + high) / 2;
  let most = 0;
  const difference = pictures.shrunk.map((value, i) => {
    const d = value - pictures.original[i];
    most = Math.max(most, Math.abs(d));
    return middle + (gain * d) / 2;
  });
  draw($("difference"), model.row_shape, difference, model.shown_range);
  const text = gain < 10 ? gain.toFixed(1) : gain.toFixed(0);
  $("gain-value").textContent = text;
  $("amount").textContent = `difference × ${text}, at most ${most.toPrecision(2)}`;
}

// ---- draws

async function encode(file) {
  try {
    const row = await rowOf(file, model.row_shape, model.shown_range, $("invert").checked);
    const { values } = await ask("/encode", model.row_shape, row, "shrunk");
    posterior = { mean: values.slice(0, values.length / 2), logvar: values.slice(values.length / 2) };
    $("input-figure").hidden = false;
    draw($("input"), model.row_shape, row, model.shown_range);
    for (const id of ["posterior", "mean"]) $(id).disabled = false;
    atMean();
  } catch (error) {
    say(error);
  }
}

const atMean = () => set((place, i) => posterior.mean[place * positions + i]);
const fromPosterior = () => set((place, i) => {
  const at = place * positions + i;
  return posterior.mean[at] + Math.exp(0.5 * posterior.logvar[at]) * normal();
});

let file = null;
function take(found) {
  if (!found) return;
  file = found;
  encode(file);
}

$("prior").addEventListener("click", () => set(normal));
$("zero").addEventListener("click", rest);
$("mean").addEventListener("click", atMean);
$("posterior").addEventListener("click", fromPosterior);
$("gain").addEventListener("input", show);
$("file").addEventListener("change", (event) => take(event.target.files[0]));
$("invert").addEventListener("change", () => take(file));
document.addEventListener("paste", (event) => take([...event.clipboardData.files].find((f) => f.type.startsWith("image/"))));
document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken($("token").value);
  start();
});

function say(error) {
  const text = error instanceof Error ? error.message : error;
  $("status").textContent = text;
  $("status").classList.toggle("bad", error instanceof Error);
  if ($("main").hidden && text) $("about").textContent = text;
  return error;
}
