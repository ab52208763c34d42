// The REST API: every operation that the page uses, once, as the node's table has it (a test compares them).
import { text } from "./text.js";

/** @typedef {"viewer" | "operator" | "admin"} Role */

/** Verb, path below `/api`, and the role it takes. @type {Record<string, [string, string, Role]>} */
export const OPERATIONS = {
  create_vm: ["POST", "/vm", "operator"],
  update_vm: ["PATCH", "/vm/<vm>", "operator"],
  start_vm: ["POST", "/vm/<vm>/start", "operator"],
  stop_vm: ["POST", "/vm/<vm>/stop", "operator"],
  restart_vm: ["POST", "/vm/<vm>/restart", "operator"],
  pause_vm: ["POST", "/vm/<vm>/pause", "operator"],
  resume_vm: ["POST", "/vm/<vm>/resume", "operator"],
  delete_vm: ["DELETE", "/vm/<vm>", "operator"],
  vm_stats: ["GET", "/vm/<vm>/stats", "viewer"],
  vm_log: ["GET", "/vm/<vm>/log", "viewer"],
  vm_screenshot: ["GET", "/vm/<vm>/screenshot", "viewer"],
  list_forwards: ["GET", "/vm/<vm>/port-forward", "viewer"],
  add_forward: ["POST", "/vm/<vm>/port-forward", "operator"],
  remove_forward: ["DELETE", "/vm/<vm>/port-forward/<host_port>", "operator"],
  exec_vm: ["POST", "/vm/<vm>/exec", "operator"],
  show_guest: ["GET", "/vm/<vm>/guest", "operator"],
  list_vm_sessions: ["GET", "/vm/<vm>/sessions", "operator"],
  get_session: ["GET", "/vm/<vm>/sessions/<session>", "operator"],
  end_vm_session: ["DELETE", "/vm/<vm>/sessions/<session>", "operator"],
  signal_session: ["POST", "/vm/<vm>/sessions/<session>/signal", "operator"],
  list_files: ["GET", "/vm/<vm>/files", "operator"],
  make_directory: ["POST", "/vm/<vm>/files", "operator"],
  remove_file: ["DELETE", "/vm/<vm>/file", "operator"],
  list_images: ["GET", "/image", "viewer"],
  capture_image: ["POST", "/image", "operator"],
  prune_images: ["POST", "/image/prune", "operator"],
  fsck_images: ["POST", "/image/fsck", "operator"],
  build_tiny: ["POST", "/image/build-tiny", "operator"],
  pull_image: ["POST", "/image/pull", "operator"],
  push_image: ["POST", "/image/push", "operator"],
  list_catalogue: ["GET", "/catalogue", "viewer"],
  remove_image: ["DELETE", "/image/<image>", "operator"],
  list_operations: ["GET", "/operations", "viewer"],
  get_operation: ["GET", "/operations/<id>", "viewer"],
  cancel_operation: ["DELETE", "/operations/<id>", "operator"],
  health: ["GET", "/health", "viewer"],
  capacity: ["GET", "/capacity", "viewer"],
  list_tokens: ["GET", "/tokens", "admin"],
  create_token: ["POST", "/tokens", "admin"],
  revoke_token: ["DELETE", "/tokens/<name>", "admin"],
  p2p_info: ["GET", "/p2p/info", "viewer"],
  list_peers: ["GET", "/p2p/peers", "viewer"],
  ping_peer: ["POST", "/p2p/peers/<peer>/ping", "viewer"],
  revoke_peer: ["DELETE", "/p2p/peers/<peer>", "admin"],
  preview_revocation: ["GET", "/p2p/peers/<peer>/revocation", "admin"],
  leave_fleet: ["POST", "/p2p/leave", "admin"],
  start_p2p: ["POST", "/p2p/start", "admin"],
  stop_p2p: ["POST", "/p2p/stop", "admin"],
  invite_peer: ["POST", "/p2p/invite", "admin"],
  join_fleet: ["POST", "/p2p/join", "admin"],
  // Routes beside the table.
  list_fleet_vms: ["GET", "/fleet/vm", "viewer"],
  read_file: ["GET", "/vm/<vm>/file", "operator"],
  write_file: ["PUT", "/vm/<vm>/file", "operator"],
  import_image: ["POST", "/image/import", "operator"],
  list_audit: ["GET", "/audit", "admin"],
  show_session: ["GET", "/session", "viewer"],
  list_sessions: ["GET", "/sessions", "viewer"],
  end_session: ["DELETE", "/sessions/<id>", "viewer"],
};

// Changes whose parameters stand in the query.
const IN_QUERY = new Set(["remove_file"]);
const READ_TIMEOUT = 20_000;
const CHANGE_TIMEOUT = 90_000;

export class ApiError extends Error {
  /** @param {string} message @param {string} code @param {number} status @param {Record<string, unknown>} details */
  constructor(message, code, status, details = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.details = details;
  }
}

/**
 * The address of an operation, and the parameters that its path does not name.
 * @param {string} operation @param {Record<string, unknown>} params @param {string | null} peer
 * @returns {[string, Record<string, unknown>]}
 */
export function address(operation, params = {}, peer = null) {
  const rest = { ...params };
  const path = OPERATIONS[operation][1].replace(/<(\w+)>/g, (_, key) => {
    const value = rest[key];
    delete rest[key];
    return encodeURIComponent(String(value));
  });
  return [(peer ? `/api/remote/${encodeURIComponent(peer)}` : "/api") + path, rest];
}

/** @param {Response} response */
async function read(response) {
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  const { error, code, details } = body ?? {};
  if (response.status === 401) dispatchEvent(new Event("locked"));
  throw new ApiError(error ?? response.statusText, code ?? "internal", response.status, details ?? {});
}

/**
 * Ask the node. A change that the journal keeps answers at once with its operation (`state` and `id`).
 * @param {string} operation @param {Record<string, unknown>} params @param {string | null} peer
 * @returns {Promise<any>}
 */
export async function call(operation, params = {}, peer = null) {
  const verb = OPERATIONS[operation][0];
  const [path, rest] = address(operation, params, peer);
  const given = Object.entries(rest).filter(([, value]) => value !== undefined && value !== null && value !== "");
  /** @type {Record<string, string>} */
  const headers = { Accept: "application/json" };
  /** @type {RequestInit} */
  const options = { method: verb, headers };
  let url = path;
  if (verb === "GET" || IN_QUERY.has(operation)) {
    if (given.length) url += `?${new URLSearchParams(given.map(([key, value]) => [key, String(value)]))}`;
  }
  if (verb !== "GET") {
    headers.Prefer = "respond-async";
    if (crypto.randomUUID) headers["Idempotency-Key"] = crypto.randomUUID();
    if (given.length && !IN_QUERY.has(operation)) {
      headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(Object.fromEntries(given));
    }
  }
  options.signal = AbortSignal.timeout(verb === "GET" ? READ_TIMEOUT : CHANGE_TIMEOUT);
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new ApiError(text.errors.unreachable, "unreachable", 0);
  }
  return read(response);
}

/**
 * All rows of a listing, page by page.
 * @param {string} operation @param {string} key @param {Record<string, unknown>} params @param {string | null} peer
 * @returns {Promise<any[]>}
 */
export async function list(operation, key, params = {}, peer = null) {
  const rows = [];
  let after;
  do {
    const page = await call(operation, { ...params, after }, peer);
    rows.push(...page[key]);
    after = page.next ?? undefined;
  } while (after !== undefined);
  return rows;
}

/**
 * Upload a file as the body of an operation; `progress` hears the fraction that is sent. (fetch cannot tell it.)
 * @param {string} operation @param {Record<string, unknown>} params @param {string | null} peer
 * @param {File} file @param {(fraction: number) => void} progress @param {AbortSignal} signal
 * @returns {Promise<any>}
 */
export function upload(operation, params, peer, file, progress, signal) {
  const [path, query] = address(operation, params, peer);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(OPERATIONS[operation][0], `${path}?${new URLSearchParams(Object.entries(query).map(([key, value]) => [key, String(value)]))}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.onprogress = (event) => progress(event.loaded / Math.max(1, event.total));
    request.onerror = () => reject(new ApiError(text.errors.unreachable, "unreachable", 0));
    request.onabort = () => reject(new ApiError(text.errors.cancelled, "cancelled", 0));
    request.onload = () => {
      const answer = new Response(request.responseText, { status: request.status, statusText: request.statusText });
      read(answer).then(resolve, reject);
    };
    signal.addEventListener("abort", () => request.abort());
    if (signal.aborted) request.onabort(/** @type {any} */ (null));
    else request.send(file);
  });
}

/**
 * A websocket of a VM here or at a peer: `console`, `screen` or `sessions/<session>/attach`.
 * @param {string} kind @param {string} vm @param {string | null} peer
 */
export function socketUrl(kind, vm, peer) {
  const path = `${peer ? `/api/remote/${encodeURIComponent(peer)}` : "/api"}/vm/${encodeURIComponent(vm)}/${kind}`;
  return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${path}`;
}
