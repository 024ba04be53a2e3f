// Answers, their meters, why they are there, and where the time went.

import { at, button, make, ms, percent, plural, whole } from "./dom.js";

const STAGES = ["queue", "encode", "retrieve", "rescore"];
const answers = at("answers");
const opened = new Set(); // ids of the labels whose reasons are shown, kept while one types
let shown = null; // { result, temperature } of the answers on the page

// ---------------------------------------------------------------- answers

// `lifted`: the training queries kept in the bundle have a say in the scores.
export function show(found, temperature, labels, lifted) {
  const result = found.results[0];
  shown = { result, temperature, lifted };
  at("message").hidden = true;
  summarise(found.timing_ms, result, labels);
  const rows = result.labels.map((label, place) => row(answers.children[place], label, place));
  answers.replaceChildren(...rows);
  requestAnimationFrame(() => rows.forEach((element) => element.grow()));
  if (!result.known) return welcome("No word of this text is known.", "The model learned from texts without any of these words. Try others.");
  if (!result.returned) return welcome("No label answers this.", "Try other words.");
  footnote(result);
}

function footnote(result, previewed) {
  const { kind, labels } = result.normalizer;
  const over = kind === "all" ? `all ${whole(labels)} labels` : `the ${plural(labels ?? 0, "candidate")} that were rescored`;
  const chance = kind === "calibrated" ? "how often labels that scored so were right where it was tried" : `its softmax over ${over}`;
  at("footnote").textContent =
    `Score is the cosine of query and label${shown.lifted ? ", higher where the nearest texts of the training have the label" : ""}; ` +
    `probability is ${chance}` +
    (previewed ? ", worked out on this page until the service has answered." : ".") +
    (result.labels[0].rank_score === null ? "" : " Paler is what a label’s likeness to those above took from its rank.") +
    (result.truncated ? " The text was longer than the model reads; its end was left out." : "");
  at("footnote").hidden = false;
}

function row(old, label, place) {
  const element = old ?? make("li", "answer");
  if (!old) {
    element.append(make("span", "rank", String(place + 1)), make("div", "label"), make("div", "meters"), make("div", "reasons"));
    element.children[1].append(make("p", "name"), make("p", "text"));
    element.children[2].append(meter("score", "score"), meter("chance", "probability"));
    element.children[3].id = `reasons-${place}`;
  }
  element.classList.toggle("first", place === 0);
  const [name, text] = element.children[1].children;
  const [score, chance] = element.children[2].children;
  name.textContent = label.id;
  text.textContent = label.text ?? "";
  text.hidden = !label.text || label.text === label.id;
  score.lastChild.textContent = label.score.toFixed(3);
  score.title = label.rank_score === null ? "" : `ranked as ${label.rank_score.toFixed(3)}`;
  chance.lastChild.textContent = percent(label.probability);
  explain(element, label);
  const width = (share) => `${Math.max(0, Math.min(1, share)) * 100}%`;
  const kept = Math.max(0, label.rank_score ?? label.score);
  element.grow = (probability = label.probability) => {
    score.fill.style.width = width(kept);
    score.lost.style.width = width(Math.max(0, label.score) - kept);
    chance.fill.style.width = width(probability ?? 0);
    chance.lastChild.textContent = percent(probability);
  };
  return element;
}

function meter(className, name) {
  const element = make("div", `meter ${className}`);
  const track = make("span", "track");
  element.fill = make("span", "fill");
  element.lost = make("span", "fill lost");
  track.append(element.fill, element.lost);
  element.append(make("span", "what", name), track, make("span", "value"));
  return element;
}

// ---------------------------------------------------------------- why this label

function explain(element, label) {
  const [, words, , reasons] = element.children;
  words.querySelector(".why")?.remove();
  reasons.replaceChildren();
  reasons.hidden = true;
  if (!label.why) return;
  const open = button("why", "why", () => {
    if (opened.has(label.id)) opened.delete(label.id);
    else opened.add(label.id);
    settle();
  });
  open.setAttribute("aria-label", `why ${label.id}`);
  open.setAttribute("aria-controls", reasons.id);
  words.firstChild.append(" ", open);
  const list = make("ul");
  for (const { text, similarity } of label.why) {
    const item = make("li");
    const track = make("span", "track"), fill = make("span", "fill");
    track.append(fill);
    fill.style.width = `${Math.max(0, Math.min(1, similarity)) * 100}%`;
    item.append(make("q", "", text), track, make("span", "value", similarity.toFixed(3)));
    list.append(item);
  }
  const nearest = "Texts of the training that had this label, nearest to yours first";
  reasons.append(make("p", "", label.why.length ? nearest : "No text of the training that had this label is kept."), list);
  const settle = () => {
    open.setAttribute("aria-expanded", String(opened.has(label.id)));
    reasons.hidden = !opened.has(label.id);
  };
  settle();
}

// ---------------------------------------------------------------- another temperature, before the service has answered

// The softmax at `temperature` from answers that were given at another, `asked`. Labels that were not returned are taken as
// alike: as many of one score as make up the rest of Z. So it is exact where all were returned, at `asked`, and at ∞, unless a memory lifted
// scores: by how much depends on the temperature too.
export function renormalized({ labels, normalizer }, asked, temperature) {
  const scores = labels.map((label) => label.score);
  const top = Math.max(...scores);
  const sum = (tau) => scores.reduce((total, score) => total + Math.exp((score - top) / tau), 0);
  const others = normalizer.labels - scores.length;
  const rest = Math.max(0, Math.exp(normalizer.log_z - top / asked) - sum(asked));
  const z = sum(temperature) + (others > 0 && rest > 0 ? others * (rest / others) ** (asked / temperature) : 0);
  return scores.map((score) => Math.exp((score - top) / temperature) / z);
}

export function preview(temperature) {
  if (!shown?.result.returned || shown.result.normalizer.log_z === null) return;
  const chances = renormalized(shown.result, shown.temperature, temperature);
  [...answers.children].forEach((element, place) => element.grow(chances[place]));
  footnote(shown.result, true);
}

// ---------------------------------------------------------------- time and words

function summarise(timing, result, labels) {
  const status = at("status");
  const total = labels === null ? "" : ` of ${whole(labels)} labels`;
  status.replaceChildren(make("strong", "", String(result.returned)), `${total} in `, make("strong", "", ms(timing.total)));
  const stack = at("stack"), stages = at("stages");
  if (!stack.children.length) {
    for (const stage of STAGES) {
      stack.append(make("span", stage));
      const item = make("li");
      item.append(make("i", stage), make("span"));
      stages.append(item);
    }
  }
  const whole_ms = Math.max(timing.total, STAGES.reduce((sum, stage) => sum + timing[stage], 0), 1e-9);
  STAGES.forEach((stage, place) => {
    stack.children[place].style.width = `${(timing[stage] / whole_ms) * 100}%`;
    stages.children[place].lastChild.textContent = `${stage} ${ms(timing[stage])}`;
  });
  at("latency").setAttribute("aria-label", `Latency: ${STAGES.map((stage) => `${stage} ${ms(timing[stage])}`).join(", ")}`);
  at("summary").hidden = false;
}

function say(headline, reason, wrong) {
  at("headline").textContent = headline;
  at("reason").textContent = reason;
  at("message").classList.toggle("wrong", wrong);
  at("message").setAttribute("role", wrong ? "alert" : "status");
  at("message").hidden = false;
}

export function welcome(headline = "Nothing asked yet.", reason = "A sentence, a few words or a question will do. Press / to reach the box, Esc to clear it.") {
  answers.replaceChildren();
  at("footnote").hidden = true;
  at("summary").hidden = headline === "Nothing asked yet.";
  say(headline, reason, false);
}

export const refuse = (headline, reason) => say(headline, reason, true); // earlier answers stay readable below
