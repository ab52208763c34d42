// Paths in a guest. They are bytes: mostly UTF-8, but not all, so that they travel in base64.

/** @typedef {import("./types.js").FileEntry} FileEntry */

const SLASH = 47;
const encoder = new TextEncoder();
// What would change how the characters around it are shown, or show as nothing.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u{fffd}]/gu;
const NOT_TEXT = "base64:";

/** @param {Uint8Array} path */
export const toBase64 = (path) => btoa(String.fromCharCode(...path));
/** @param {string} text */
const fromBase64 = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));

/** The path as the last part of an address of the page. @param {Uint8Array} path */
export function toAddress(path) {
  try {
    return encodeURIComponent(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(path));
  } catch {
    return encodeURIComponent(NOT_TEXT + toBase64(path));
  }
}

/** @param {string | undefined} address decoded already */
export const fromAddress = (address) =>
  address?.startsWith(NOT_TEXT) ? fromBase64(address.slice(NOT_TEXT.length)) : encoder.encode(address || "/");

/** @param {Uint8Array} folder @param {Uint8Array} name */
export function join(folder, name) {
  const slash = folder.at(-1) === SLASH ? [] : [SLASH];
  return Uint8Array.from([...folder, ...slash, ...name]);
}

/** @param {FileEntry | string} entry */
export const nameBytes = (entry) =>
  typeof entry === "string" ? encoder.encode(entry) : entry.name_base64 ? fromBase64(entry.name_base64) : encoder.encode(entry.name);

/** The folders from the root to a path, each with its name. @param {Uint8Array} path @returns {[string, Uint8Array][]} */
export function parents(path) {
  /** @type {[string, Uint8Array][]} */
  const found = [["/", Uint8Array.of(SLASH)]];
  let start = 1;
  for (let at = 1; at <= path.length; at += 1) {
    if (at < path.length && path[at] !== SLASH) continue;
    if (at > start) found.push([shown(new TextDecoder().decode(path.slice(start, at))), path.slice(0, at)]);
    start = at + 1;
  }
  return found;
}

/** A name of a guest's file as it can be looked at. @param {string} name */
export const shown = (name) =>
  name.replace(UNSEEN, (one) => (one === "\u{fffd}" ? one : `\\u{${/** @type {number} */ (one.codePointAt(0)).toString(16)}}`));

/** `rwxr-x---` @param {number} mode */
export const modeText = (mode) =>
  Array.from("rwxrwxrwx", (letter, at) => (mode & (0o400 >> at) ? letter : "-")).join("");
