// Numbers, times and names as people read them.

/** Compare names so that `vm-2` comes before `vm-10`. */
export const natural = new Intl.Collator("en", { numeric: true, sensitivity: "base" }).compare;

/** Seconds after which a date says more than how long ago it was. */
const LONG_AGO = 30 * 86400;

const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** @param {number} value @param {string} unit */
function binary(value, unit) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = units.indexOf(unit);
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${number.format(value)} ${units[at]}`;
}

/** @param {number} value bytes */
export const bytes = (value) => binary(value, "B");
/** @param {number} value MiB */
export const memory = (value) => binary(value, "MiB");
/** @param {number} value GiB */
export const disk = (value) => binary(value, "GiB");

/** @param {number} seconds */
export function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = Math.max(0, parts.findIndex(([size]) => seconds >= Number(size)));
  const first = seconds < 1 ? parts[3] : parts[at];
  const second = seconds < 1 ? undefined : parts[at + 1];
  const whole = Math.floor(seconds / Number(first[0]));
  const rest = second ? Math.floor((seconds % Number(first[0])) / Number(second[0])) : 0;
  return rest && second && first[1] !== "min" ? `${whole} ${first[1]} ${rest} ${second[1]}` : `${whole} ${first[1]}`;
}

/** @param {string | null | undefined} at an RFC 3339 time */
export function ago(at) {
  if (!at) return "";
  const seconds = (Date.now() - Date.parse(at)) / 1000;
  if (seconds < 0) return `in ${duration(-seconds)}`;
  if (seconds > LONG_AGO) return new Date(at).toLocaleDateString("en-GB", { dateStyle: "medium" });
  return seconds < 5 ? "just now" : `${duration(seconds)} ago`;
}

/** @param {string | null | undefined} at an RFC 3339 time */
export const clock = (at) => (at ? new Date(at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }) : "");

/**
 * Read `512M`, `2 GiB`, `2` (then in `unit`) as a whole number of `unit`; NaN when it is no size.
 * @param {string} input @param {"M" | "G"} unit
 */
export function size(input, unit) {
  const found = /^\s*(\d+(?:\.\d+)?)\s*(?:([MGT])(?:iB|B)?)?\s*$/i.exec(input);
  if (!found) return NaN;
  const powers = "MGT";
  const power = powers.indexOf((found[2] ?? unit).toUpperCase()) - powers.indexOf(unit);
  return Math.ceil(Number(found[1]) * 1024 ** power);
}

/** `stop_vm` as words. @param {string} kind */
export function words(kind) {
  const said = kind.replaceAll("_", " ");
  return (said.charAt(0).toUpperCase() + said.slice(1)).replace(/\bvm\b/i, "VM").replace(/\bp2p\b/i, "P2P");
}
