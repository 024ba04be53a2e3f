// What is set beside the text: how many labels, temperature, what probabilities sum over, diversity. The address keeps it all.

import { at, digits, whole } from "./dom.js";

const ALL_LABELS_UP_TO = 200_000; // a softmax over every label is one more scan of them; beyond this, over candidates
const query = at("query"), count = at("k"), temperature = at("temperature"), diversity = at("diversity");
const radios = [...at("normalizer").querySelectorAll("input")];

// null is the default: the model's own temperature, all labels where that is affordable, no diversity.
// "calibrated" is offered where the service has a calibration.
export const chosen = { temperature: null, normalize: null, diversity: null };
let info = null;

const modelTemperature = () => info?.bundle.temperature ?? 0.05;
const within = (value, low, high) => Math.min(high, Math.max(low, value));

// The dials go by ratios: ten steps of the one double the temperature, three of the other halve σ.
const temperatureAt = (step) => Number(digits(within(modelTemperature() * 2 ** (step / 10), 1e-4, 100), 3));
const sigmaAt = (step) => Number(digits(4 * 2 ** ((1 - step) / 3), 2));

export const temperatureNow = () => chosen.temperature ?? modelTemperature();
export const countNow = () => Number(count.value);

function whyNotAll() {
  if (!info) return "";
  if (!info.exact) return "This index sees a part of the labels, so the sum over all is not at hand.";
  if (info.labels > ALL_LABELS_UP_TO) return `Over all is one more scan of every label; this page asks for it up to ${whole(ALL_LABELS_UP_TO)}.`;
  return "";
}

const calibrated = () => chosen.normalize === "calibrated" && Boolean(info?.bundle.calibration);

export function normalizeNow() {
  if (calibrated()) return "calibrated";
  return chosen.normalize === "topk" || !info || whyNotAll() ? "topk" : "all";
}

export function request(text) {
  const body = { queries: [text], top_k: countNow(), normalize: normalizeNow() };
  if (chosen.temperature !== null && !calibrated()) body.temperature = chosen.temperature;
  if (chosen.diversity !== null) body.diversity = chosen.diversity;
  return body;
}

export function fault() {
  const limit = Math.min(info?.limits.top_k ?? 1000, (chosen.diversity !== null && info?.limits.diversified) || Infinity);
  const wanted = countNow();
  if (Number.isInteger(wanted) && wanted >= 1 && wanted <= limit) return "";
  const diverse = limit < (info?.limits.top_k ?? 1000) ? ", with diversity" : "";
  return `The number beside “top” must be a whole number from 1 to ${whole(limit)}${diverse}.`;
}

// ---------------------------------------------------------------- what the controls show

function fill(dial) {
  const share = (Number(dial.value) - Number(dial.min)) / (Number(dial.max) - Number(dial.min));
  dial.style.setProperty("--at", `${share * 100}%`);
}

function draw() {
  const own = chosen.temperature === null;
  at("temperature-value").textContent = digits(temperatureNow(), 3);
  temperature.setAttribute("aria-valuetext", `${digits(temperatureNow(), 3)}${own ? ", the model’s own" : ""}`);
  const off = chosen.diversity === null;
  at("diversity-value").textContent = off ? "off" : `σ ${digits(chosen.diversity, 2)}`;
  diversity.setAttribute("aria-valuetext", off ? "off" : `sigma ${digits(chosen.diversity, 2)}`);
  const reason = whyNotAll();
  for (const radio of radios) {
    radio.checked = radio.value === normalizeNow();
    radio.disabled = radio.value === "all" && reason !== "";
    if (radio.value === "calibrated") radio.closest("label").hidden = !info?.bundle.calibration;
  }
  temperature.disabled = calibrated(); // it has its own
  at("why-not-all").textContent = reason;
  at("why-not-all").hidden = !reason;
  [temperature, diversity].forEach(fill);
  at("reset").hidden = own && off && chosen.normalize === null;
}

function place() {
  const steps = chosen.temperature === null ? 0 : 10 * Math.log2(chosen.temperature / modelTemperature());
  temperature.value = String(Math.round(steps));
  diversity.value = chosen.diversity === null ? "0" : String(within(Math.round(1 - 3 * Math.log2(chosen.diversity / 4)), 1, 24));
  draw();
}

export function fit(served) {
  info = served;
  count.max = String(info.limits.top_k);
  place();
}

// `changed(previewed)`: the temperature's changes can be previewed from the answers at hand.
export function listen(changed) {
  count.addEventListener("input", () => changed(false));
  temperature.addEventListener("input", () => {
    chosen.temperature = temperature.value === "0" ? null : temperatureAt(Number(temperature.value));
    draw();
    changed(true);
  });
  diversity.addEventListener("input", () => {
    chosen.diversity = diversity.value === "0" ? null : sigmaAt(Number(diversity.value));
    draw();
    changed(false);
  });
  for (const radio of radios) {
    radio.addEventListener("change", () => {
      chosen.normalize = radio.value === "all" ? null : radio.value;
      draw();
      changed(false);
    });
  }
  at("reset").addEventListener("click", () => {
    Object.assign(chosen, { temperature: null, normalize: null, diversity: null });
    place();
    temperature.focus(); // the button is gone
    changed(false);
  });
}

// ---------------------------------------------------------------- the address

export function remember(text) {
  const address = new URLSearchParams();
  if (text) {
    address.set("q", text);
    address.set("k", count.value);
  }
  if (chosen.temperature !== null) address.set("t", String(chosen.temperature));
  if (chosen.normalize !== null) address.set("n", chosen.normalize);
  if (chosen.diversity !== null) address.set("d", String(chosen.diversity));
  history.replaceState(null, "", String(address) ? `#${address}` : location.pathname);
}

function number(written, low, high) {
  const value = Number(written);
  return written && value >= low && value <= high ? value : null;
}

export function recall() {
  const address = new URLSearchParams(location.hash.slice(1));
  query.value = address.get("q") ?? "";
  if (/^[0-9]{1,4}$/.test(address.get("k") ?? "")) count.value = address.get("k");
  chosen.temperature = number(address.get("t"), 1e-4, 100);
  chosen.diversity = number(address.get("d"), 1e-3, 1e3);
  chosen.normalize = ["topk", "calibrated"].includes(address.get("n")) ? address.get("n") : null;
  place();
}
