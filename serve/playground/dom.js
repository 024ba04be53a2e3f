// Small makers, and numbers as people read them. Text goes in by textContent only: a label may hold anything.

export const at = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export function button(className, text, act) {
  const element = make("button", className, text);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

export const whole = (number) => number.toLocaleString("en");
export const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
export const plural = (number, word) => `${whole(number)} ${word}${number === 1 ? "" : "s"}`;
export const digits = (value, count) => String(Number(value.toPrecision(count)));

export function percent(value) {
  if (value === null) return "–";
  const hundred = value * 100;
  if (hundred > 0 && hundred < 0.01) return "<0.01%";
  return `${hundred >= 99.95 || hundred === 0 ? hundred.toFixed(0) : hundred >= 10 ? hundred.toFixed(1) : hundred.toFixed(2)}%`;
}
