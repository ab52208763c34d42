// Fields of a VM as people write them.
import { text } from "./text.js";

/** For how long a VM exists, in seconds. @type {[number | string, string][]} */
export const PERIODS = [["", text.access.never], [3600, text.peers.hours(1)], [28800, text.peers.hours(8)], [86400, text.peers.days(1)], [604800, text.peers.days(7)]];

/** @param {string} lines */
const linesOf = (lines) => lines.split("\n").map((line) => line.trim()).filter(Boolean);

/** Read one `key=value` a line. @param {string} lines @returns {Record<string, string>} */
export function labelsFrom(lines) {
  const pairs = linesOf(lines);
  if (pairs.some((pair) => pair.indexOf("=") < 1)) throw new Error(text.create.wrongLabel);
  return Object.fromEntries(pairs.map((pair) => [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)]));
}

/** Read one `HOST:GUEST` a line, or `GUEST` for any free port of the node. @param {string} lines */
export const forwardsFrom = (lines) =>
  linesOf(lines).map((line) => {
    const found = /^(?:(\d{1,5}):)?(\d{1,5})$/.exec(line);
    if (!found) throw new Error(text.create.wrongForward);
    return { host_port: Number(found[1] ?? 0), guest_port: Number(found[2]) };
  });
