// What answers here: the bundle's facts, and the versions of the index where the service lists them.

import { at, make, plural, whole } from "./dom.js";
import { call } from "./service.js";

export function facts(info) {
  const rows = { model: info.model, labels: info.labels, dimension: info.dimension, "index version": info.index_version, ...info.bundle };
  at("facts").replaceChildren();
  for (const [name, value] of Object.entries(rows)) {
    if (name === "examples" || value === null) continue;
    at("facts").append(make("dt", "", name.replaceAll("_", " ")), make("dd", "", words(value)));
  }
  at("about").hidden = false;
}

function words(value) {
  if (Array.isArray(value)) return value.map(words).join(", ");
  if (value && typeof value === "object") {
    return Object.entries(value).map(([name, inner]) => `${name} ${words(inner)}`).join(" · ");
  }
  return typeof value === "number" ? whole(value) : String(value);
}

async function versions() {
  if (!at("about").open) return;
  const described = await call("/openapi.json"); // so that nothing is asked for that this service does not have
  if (!described.document.paths?.["/v1/indexes"]) return;
  const { ok, document } = await call("/v1/indexes");
  if (!ok || !document.versions.length) return;
  at("version-rows").replaceChildren(
    ...document.versions.map(({ name, created, labels, current }) => {
      const row = make("li");
      row.append(make("code", "", name), make("span", "", labels === null ? "" : plural(labels, "label")), make("span", "", created));
      if (current) row.append(make("strong", "", "served now"));
      return row;
    }),
  );
  at("versions").hidden = false;
}

export function listen() {
  at("about").addEventListener("toggle", () => versions().catch(() => {})); // the facts above stand without
}
