// The search page: asks /v1/search as you type, draws answers with textContent only, drops answers that come too late.

const DEBOUNCE_MS = 120;
const STAGES = ["queue", "encode", "retrieve", "rescore"];
const ALL_LABELS_UP_TO = 200_000; // a softmax over every label is one more scan of them; beyond this, over candidates

const at = (id) => document.getElementById(id);
const form = at("form"), query = at("query"), count = at("k"), answers = at("answers");

const state = { asked: 0, shown: 0, timer: 0, controller: null, info: null, retries: 0 };

// ---------------------------------------------------------------- small makers

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const whole = (number) => number.toLocaleString("en");
const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const plural = (number, word) => `${whole(number)} ${word}${number === 1 ? "" : "s"}`;

function percent(value) {
  if (value === null) return "–";
  const hundred = value * 100;
  if (hundred > 0 && hundred < 0.01) return "<0.01%";
  return `${hundred >= 99.95 || hundred === 0 ? hundred.toFixed(0) : hundred >= 10 ? hundred.toFixed(1) : hundred.toFixed(2)}%`;
}

// ---------------------------------------------------------------- asking

function later() {
  clearTimeout(state.timer);
  state.timer = setTimeout(ask, DEBOUNCE_MS);
}

async function ask() {
  clearTimeout(state.timer);
  const text = query.value.trim();
  remember(text);
  press(text);
  state.controller?.abort();
  const turn = ++state.asked;
  if (!text) return welcome();
  const limit = state.info?.limits.top_k ?? 1000;
  const wanted = Number(count.value);
  if (!Number.isInteger(wanted) || wanted < 1 || wanted > limit) {
    return refuse("How many labels?", `The number beside “top” must be a whole number from 1 to ${whole(limit)}.`);
  }
  state.controller = new AbortController();
  const late = setTimeout(() => answers.classList.add("stale"), 300);
  try {
    const everything = (state.info?.labels ?? Infinity) <= ALL_LABELS_UP_TO && state.info?.exact;
    const reply = await fetch("/v1/search", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ queries: [text], top_k: wanted, normalize: everything ? "all" : "topk" }),
      signal: state.controller.signal,
    });
    const found = await reply.json();
    if (turn < state.asked) return;
    if (!reply.ok) return fail(reply, found);
    state.retries = 0;
    show(found);
  } catch (error) {
    if (error.name === "AbortError" || turn < state.asked) return;
    health(false, "not reachable");
    refuse("The service does not answer.", "Is it still running? This page asks again with your next keystroke.");
  } finally {
    clearTimeout(late);
    if (turn === state.asked) answers.classList.remove("stale");
  }
}

function fail(reply, problem) {
  const wait = Number(reply.headers.get("Retry-After")) || 0;
  if (wait && state.retries < 5) {
    state.retries += 1;
    state.timer = setTimeout(ask, wait * 1000);
  }
  const again = wait ? ` Trying again in ${plural(wait, "second")}.` : "";
  const words = {
    overloaded: "The service is busy.",
    not_ready: "The model is still loading.",
    draining: "The service is shutting down.",
    deadline_exceeded: "The answer took too long.",
  };
  refuse(words[problem.error?.code] ?? `${problem.title ?? "Something went wrong"}.`, `${problem.detail ?? ""}${again}`);
}

// ---------------------------------------------------------------- drawing

function show(found) {
  const result = found.results[0];
  at("message").hidden = true;
  health(true);
  summarise(found.timing_ms, result);
  const rows = result.labels.map((label, place) => row(answers.children[place], label, place));
  answers.replaceChildren(...rows);
  requestAnimationFrame(() => rows.forEach((element) => element.grow()));
  if (!result.known) return welcome("No word of this text is known.", "The model learned from texts without any of these words. Try others.");
  if (!result.returned) return welcome("No label answers this.", "Try other words.");
  const { kind, labels } = result.normalizer;
  const over = kind === "all" ? `all ${whole(labels)} labels` : `the ${plural(labels ?? 0, "candidate")} that were rescored`;
  at("footnote").textContent =
    `Score is the cosine of query and label; probability is its softmax over ${over}.` +
    (result.truncated ? " The text was longer than the model reads; its end was left out." : "");
  at("footnote").hidden = false;
}

function row(old, label, place) {
  const element = old ?? make("li", "answer");
  if (!old) {
    element.append(make("span", "rank", String(place + 1)), make("div", "label"), make("div", "meters"));
    element.children[1].append(make("p", "name"), make("p", "text"));
    element.children[2].append(meter("score", "score"), meter("chance", "probability"));
  }
  element.classList.toggle("first", place === 0);
  const [name, text] = element.children[1].children;
  const [score, chance] = element.children[2].children;
  name.textContent = label.id;
  text.textContent = label.text ?? "";
  text.hidden = !label.text || label.text === label.id;
  score.lastChild.textContent = label.score.toFixed(3);
  chance.lastChild.textContent = percent(label.probability);
  element.grow = () => {
    score.fill.style.width = `${Math.max(0, Math.min(1, label.score)) * 100}%`;
    chance.fill.style.width = `${(label.probability ?? 0) * 100}%`;
  };
  return element;
}

function meter(className, name) {
  const element = make("div", `meter ${className}`);
  const track = make("span", "track");
  element.fill = make("span", "fill");
  track.append(element.fill);
  element.append(make("span", "what", name), track, make("span", "value"));
  return element;
}

function summarise(timing, result) {
  const status = at("status");
  const total = state.info ? ` of ${whole(state.info.labels)} labels` : "";
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

function welcome(headline = "Nothing asked yet.", reason = "A sentence, a few words or a question will do. Press / to reach the box, Esc to clear it.") {
  answers.replaceChildren();
  at("footnote").hidden = true;
  at("summary").hidden = headline === "Nothing asked yet.";
  say(headline, reason, false);
}

const refuse = (headline, reason) => say(headline, reason, true); // earlier answers stay readable below

function health(up, words) {
  at("dot").className = `dot ${up ? "up" : "down"}`;
  if (state.info) at("model").textContent = words ?? `${state.info.model.split("@")[0]} · ${plural(state.info.labels, "label")}`;
  else if (words) at("model").textContent = words;
}

// ---------------------------------------------------------------- what is served

async function introduce() {
  try {
    const reply = await fetch("/v1/info");
    if (reply.status === 503) {
      health(false, "loading the model …");
      return void setTimeout(introduce, 1000);
    }
    state.info = await reply.json();
  } catch {
    health(false, "not reachable");
    return void setTimeout(introduce, 3000);
  }
  const info = state.info;
  health(true);
  count.max = String(info.limits.top_k);
  at("lead").textContent = `${plural(info.labels, "label")}, searched as you type.`;
  for (const text of info.examples.slice(0, 6)) {
    const chip = make("button", "", text);
    chip.type = "button";
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      query.value = text;
      ask();
    });
    at("chips").append(chip);
  }
  at("chips").hidden = !info.examples.length;
  const facts = { model: info.model, labels: info.labels, dimension: info.dimension, "index version": info.index_version, ...info.bundle };
  for (const [name, value] of Object.entries(facts)) {
    if (name === "examples" || value === null) continue;
    at("facts").append(make("dt", "", name.replaceAll("_", " ")), make("dd", "", words(value)));
  }
  at("about").hidden = false;
  press(query.value.trim());
  if (query.value.trim()) ask();
}

function words(value) {
  if (Array.isArray(value)) return value.map(words).join(", ");
  if (value && typeof value === "object") {
    return Object.entries(value).map(([name, inner]) => `${name} ${words(inner)}`).join(" · ");
  }
  return typeof value === "number" ? whole(value) : String(value);
}

// ---------------------------------------------------------------- memory, keys

function remember(text) {
  const place = new URLSearchParams();
  if (text) {
    place.set("q", text);
    place.set("k", count.value);
  }
  history.replaceState(null, "", text ? `#${place}` : location.pathname);
}

function recall() {
  const place = new URLSearchParams(location.hash.slice(1));
  query.value = place.get("q") ?? "";
  if (/^[0-9]{1,4}$/.test(place.get("k") ?? "")) count.value = place.get("k");
}

function press(text) {
  for (const chip of at("chips").children) chip.setAttribute("aria-pressed", String(chip.textContent === text));
}

query.addEventListener("input", later);
count.addEventListener("input", later);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
window.addEventListener("hashchange", () => {
  recall();
  ask();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "Escape" && event.target === query) {
    event.preventDefault();
    query.value = "";
    ask();
  }
});

recall();
if (!query.value) welcome();
introduce();
