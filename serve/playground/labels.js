// Labels: looked through, added, replaced and deleted, where the service takes writes.

import { at, button, make, plural, whole } from "./dom.js";
import { call, detail, headline } from "./service.js";

const SHOWN = 10; // labels a press of “more” shows
const LOOKED = 5; // pages of 1,000 it looks through, at most, for a text
const form = at("label-form"), id = at("label-id"), text = at("label-text"), list = at("label-rows");

let cursor = null; // of what follows the labels that were looked at; null: from the start
let spare = []; // matches of those that are not shown yet
let looked = 0;
let turn = 0; // of the list; an older one's pages come too late
let editing = false;
let total = 0;
let written = () => {};

function told(words, wrong = false) {
  at("label-status").textContent = words;
  at("label-status").classList.toggle("wrong", wrong);
}

const failed = (reply) => told(`${headline(reply)} ${detail(reply)}`, true);
const unreachable = () => told("The service does not answer; nothing is known of this write.", true);

// ---------------------------------------------------------------- looking

async function begin() {
  turn += 1;
  [cursor, spare, looked] = [null, [], 0];
  list.replaceChildren();
  await more();
}

async function more() {
  const mine = turn, wanted = at("label-find").value.trim().toLowerCase();
  let ended = looked > 0 && cursor === null;
  for (let page = 0; page < LOOKED && spare.length < SHOWN && !ended; page++) {
    const after = cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`;
    const reply = await call(`/v1/labels?limit=${wanted ? 1000 : SHOWN}${after}`);
    if (mine !== turn) return;
    if (reply.status === 422 && cursor !== null) return begin(); // another version answers: its cursors are others
    if (!reply.ok) return failed(reply);
    const { labels, next } = reply.document;
    spare.push(...labels.filter((label) => `${label.id}\n${label.text}`.toLowerCase().includes(wanted)));
    looked += labels.length;
    cursor = next;
    ended = next === null;
  }
  list.append(...spare.splice(0, SHOWN).map(entry));
  at("label-more").hidden = ended && !spare.length;
  at("label-more").textContent = wanted ? "Look further" : "More";
  const found = list.children.length + spare.length;
  told(wanted ? `${plural(found, "label")} found in the ${ended ? "" : "first "}${whole(looked)} of ${whole(total)}.` : "");
}

function entry(label) {
  const row = make("li");
  const words = make("div");
  words.append(make("span", "name", label.id), make("span", "text", label.text === label.id ? "" : label.text));
  const edit = button("quiet", "Edit", () => start(label));
  edit.setAttribute("aria-label", `edit ${label.id}`);
  const remove = button("quiet", "Delete", () => {
    if (remove.dataset.sure) return void erase(label).catch(unreachable);
    remove.dataset.sure = "yes";
    remove.textContent = "Really?";
  });
  remove.setAttribute("aria-label", `delete ${label.id}`);
  remove.addEventListener("blur", () => {
    delete remove.dataset.sure;
    remove.textContent = "Delete";
  });
  row.append(words, edit, remove);
  return row;
}

// ---------------------------------------------------------------- writing

function start(label) {
  editing = true;
  id.value = label.id;
  text.value = label.text;
  id.readOnly = true;
  draw();
  text.focus();
}

function stop() {
  editing = false;
  id.readOnly = false;
  id.value = text.value = "";
  at("label-replace").hidden = true;
  draw();
}

function draw() {
  at("label-save").textContent = editing ? "Save" : "Add";
  at("label-cancel").hidden = !editing;
}

async function save(replace) {
  const label = { id: id.value.trim(), text: text.value.trim() || id.value.trim() };
  at("label-replace").hidden = true;
  const body = { labels: [label], if_exists: replace ? "replace" : "error" };
  const reply = await call("/v1/labels", { method: "POST", body });
  if (reply.status === 409) {
    at("label-replace").hidden = false;
    return told(`There is a label ${label.id} already.`, true);
  }
  if (!reply.ok) return failed(reply);
  const was = reply.document.replaced ? "replaced" : "added";
  stop();
  await after(reply.document, `${label.id} was ${was}; searches see it.`);
  id.focus();
}

async function erase(label) {
  const reply = await call("/v1/labels/delete", { method: "POST", body: { ids: [label.id] } });
  if (!reply.ok) return failed(reply);
  await after(reply.document, `${label.id} was deleted; no search returns it.`);
  at("label-find").focus(); // the row is gone
}

async function after(answer, words) {
  total = answer.labels;
  written(answer);
  await begin();
  told(words);
}

// ---------------------------------------------------------------- what the page calls

export function offer(info) {
  total = info.labels;
  at("labels").hidden = !["open", "key"].includes(info.writes);
  if (info.writes === "key") at("label-key").append(at("keyring"));
}

export function listen(onWrite) {
  written = onWrite;
  let timer = 0;
  const soon = () => {
    clearTimeout(timer);
    timer = setTimeout(() => begin().catch(unreachable), 200);
  };
  at("labels").addEventListener("toggle", () => at("labels").open && !list.children.length && soon());
  at("label-find").addEventListener("input", soon);
  at("label-more").addEventListener("click", () => more().catch(unreachable));
  at("label-cancel").addEventListener("click", stop);
  at("label-replace").addEventListener("click", () => save(true).catch(unreachable));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save(editing).catch(unreachable);
  });
}
