// The search page: what is served, the key, the keyboard, and who tells whom.

import * as about from "./about.js";
import * as asking from "./ask.js";
import * as choices from "./choices.js";
import { at, button, plural } from "./dom.js";
import * as draw from "./draw.js";
import * as labels from "./labels.js";
import { call, headline, key } from "./service.js";
import * as share from "./share.js";

const form = at("form"), query = at("query"), chips = at("chips");
let info = null;

function health(up, words) {
  at("dot").className = `dot ${up ? "up" : "down"}`;
  if (info) at("model").textContent = words ?? `${info.model.split("@")[0]} · ${plural(info.labels, "label")}`;
  else if (words) at("model").textContent = words;
}

// ---------------------------------------------------------------- what is served

async function introduce() {
  let reply;
  try {
    reply = await call("/v1/info");
  } catch {
    health(false, "not reachable");
    return void setTimeout(introduce, 3000);
  }
  if (reply.status === 401 || reply.status === 403) {
    health(false, "a key is needed");
    draw.refuse(headline(reply), "Whoever runs this service can give you one.");
    return needsKey();
  }
  if (!reply.ok) {
    health(false, reply.status === 503 ? "loading the model …" : "in trouble");
    return void setTimeout(introduce, 1000);
  }
  if (!info) draw.welcome(); // there may have been trouble before
  info = reply.document;
  health(true);
  asking.serve(info);
  choices.fit(info);
  labels.offer(info);
  about.facts(info);
  at("lead").textContent = `${plural(info.labels, "label")}, searched as you type.`;
  at("keyring").hidden = info.writes !== "key" && !info.keys;
  suggest(info.examples.slice(0, 6));
  if (query.value.trim()) asking.ask();
}

function suggest(examples) {
  const made = examples.map((text) => {
    const chip = button("", text, () => {
      query.value = text;
      asking.ask();
    });
    chip.setAttribute("aria-pressed", "false");
    return chip;
  });
  chips.replaceChildren(...made);
  chips.hidden = !made.length;
  press(query.value.trim());
}

function press(text) {
  for (const chip of chips.children) chip.setAttribute("aria-pressed", String(chip.textContent === text));
}

function onWrite(answer) {
  info = { ...info, labels: answer.labels, index_version: answer.index_version };
  asking.serve(info);
  about.facts(info);
  at("lead").textContent = `${plural(info.labels, "label")}, searched as you type.`;
  health(true);
  if (query.value.trim()) asking.ask();
}

// ---------------------------------------------------------------- the key

function needsKey() {
  chips.after(at("keyring")); // its place among the labels may be folded away
  at("keyring").hidden = false;
  at("keyring").classList.add("wanted");
  at("key").focus();
}

function drawKey() {
  at("key").value = "";
  at("key").placeholder = key.get() ? "kept until this tab is closed" : "none given";
  at("key-forget").hidden = !key.get();
}

at("keyring").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = at("key").value.trim();
  if (!/^[!-~]+$/.test(given)) return void at("key").focus(); // nothing else fits into a header
  key.set(given);
  at("keyring").classList.remove("wanted");
  drawKey();
  introduce();
});
at("key-forget").addEventListener("click", () => {
  key.set("");
  drawKey();
  introduce();
});

// ---------------------------------------------------------------- who tells whom

asking.listen({ health, needsKey, asking: press });
choices.listen((previewed) => {
  if (previewed) draw.preview(choices.temperatureNow());
  asking.later();
});
labels.listen(onWrite);
share.listen();
about.listen();

query.addEventListener("input", asking.later);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  asking.ask();
});
window.addEventListener("hashchange", () => {
  choices.recall();
  asking.ask();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=range]):not([type=radio]), textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "Escape" && event.target === query) {
    event.preventDefault();
    query.value = "";
    asking.ask();
  }
});

drawKey();
choices.recall();
if (!query.value) draw.welcome();
introduce();
