// The one way to ask the service: with the key of this tab, if there is one, and with trouble told in words.

import { plural } from "./dom.js";

const KEY = "dexml-key"; // in sessionStorage: this tab's alone, and gone with it

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export async function call(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const reply = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  const document = await reply.json().catch(() => ({}));
  return { ok: reply.ok, status: reply.status, document, wait: Number(reply.headers.get("Retry-After")) || 0 };
}

const HEADLINES = {
  overloaded: "The service is busy.",
  not_ready: "The model is still loading.",
  draining: "The service is shutting down.",
  deadline_exceeded: "The answer took too long.",
};

export function headline({ status, document }) {
  if (status === 401) return key.get() ? "This key is not known here." : "This asks for a key.";
  if (status === 403) return "This is not allowed with this key.";
  if (status === 507) return "The disk of the service is full; nothing was changed.";
  return HEADLINES[document.error?.code] ?? `${document.title ?? "Something went wrong"}.`;
}

export const detail = ({ document, wait }, again) =>
  `${document.detail ?? ""}${wait && again ? ` Trying again in ${plural(wait, "second")}.` : ""}`;
