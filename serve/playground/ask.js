// Asks /v1/search as you type, and drops answers that come too late.

import * as choices from "./choices.js";
import { at } from "./dom.js";
import * as draw from "./draw.js";
import { call, detail, headline } from "./service.js";
import * as share from "./share.js";

const DEBOUNCE_MS = 120;
const query = at("query"), answers = at("answers");
const state = { asked: 0, timer: 0, controller: null, retries: 0, info: null };
let health = () => {}, needsKey = () => {}, asking = () => {};

export function serve(info) {
  state.info = info;
}

export function listen(hooks) {
  ({ health, needsKey, asking } = hooks);
}

export function later() {
  clearTimeout(state.timer);
  state.timer = setTimeout(ask, DEBOUNCE_MS);
}

export async function ask() {
  clearTimeout(state.timer);
  const text = query.value.trim();
  choices.remember(text);
  asking(text);
  state.controller?.abort();
  const turn = ++state.asked;
  if (!text) return draw.welcome();
  const fault = choices.fault();
  if (fault) return draw.refuse("How many labels?", fault);
  state.controller = new AbortController();
  const late = setTimeout(() => answers.classList.add("stale"), 300);
  const body = choices.request(text), temperature = choices.temperatureNow();
  share.offer(body);
  try {
    const include = state.info?.bundle.memory > 0 ? { include: ["text", "probability", "why"] } : {};
    const reply = await call("/v1/search", { method: "POST", body: { ...body, ...include }, signal: state.controller.signal });
    if (turn < state.asked) return;
    if (!reply.ok) return fail(reply);
    state.retries = 0;
    health(true);
    draw.show(reply.document, temperature, state.info?.labels ?? null, state.info?.bundle.recall?.weight > 0);
  } catch (error) {
    if (error.name === "AbortError" || turn < state.asked) return;
    health(false, "not reachable");
    draw.refuse("The service does not answer.", "Is it still running? This page asks again with your next keystroke.");
  } finally {
    clearTimeout(late);
    if (turn === state.asked) answers.classList.remove("stale");
  }
}

function fail(reply) {
  const again = reply.wait > 0 && state.retries < 5;
  if (again) {
    state.retries += 1;
    state.timer = setTimeout(ask, reply.wait * 1000);
  }
  if (reply.status === 401) needsKey();
  draw.refuse(headline(reply), detail(reply, again));
}
