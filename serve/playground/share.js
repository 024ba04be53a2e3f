// The question as it is now, for a shell, for Python and as a link.

import { at } from "./dom.js";
import { key } from "./service.js";

// Within single quotes a shell takes everything as it is, but the single quote.
export const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

export function curl(body, origin, keyed) {
  const lines = [
    `curl -sS ${quoted(`${origin}/v1/search`)}`,
    "-H 'Content-Type: application/json'",
    ...(keyed ? [`-H "Authorization: Bearer $DEXML_API_KEY"`] : []), // the key itself stays in this tab
    `--data-binary ${quoted(JSON.stringify(body))}`,
  ];
  return lines.join(" \\\n  ");
}

export function python(body, origin) {
  const { queries, ...options } = body;
  const given = Object.entries(options).map(([name, value]) => `, ${name}=${JSON.stringify(value)}`); // numbers and plain words
  const call = `client.search(${JSON.stringify(queries)}${given.join("")})`; // JSON's strings are Python's too
  return `from dexml.client import Client  # reads DEXML_API_KEY\n\nclient = Client(${JSON.stringify(origin)})\nprint(${call})`;
}

export function offer(body) {
  at("curl").textContent = curl(body, location.origin, key.get() !== "");
  at("python").textContent = python(body, location.origin);
  at("link").textContent = location.href;
  at("share").hidden = false;
}

async function copy(press) {
  const source = at(press.dataset.copies);
  try {
    await navigator.clipboard.writeText(source.textContent);
    press.textContent = "Copied";
    at("copied").textContent = `${press.getAttribute("aria-label")}: done`;
    setTimeout(() => (press.textContent = "Copy"), 1500);
  } catch {
    getSelection().selectAllChildren(source); // not allowed: Ctrl-C is
    at("copied").textContent = "Selected; copy it with Ctrl-C.";
  }
}

export function listen() {
  for (const press of at("share").querySelectorAll("[data-copies]")) press.addEventListener("click", () => copy(press));
}
