// Labels as people write them.
import { text } from "./text.js";

/** Read one `key=value` a line. @param {string} lines @returns {Record<string, string>} */
export function labelsFrom(lines) {
  const pairs = lines.split("\n").map((line) => line.trim()).filter(Boolean);
  if (pairs.some((pair) => pair.indexOf("=") < 1)) throw new Error(text.create.wrongLabel);
  return Object.fromEntries(pairs.map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)]));
}
