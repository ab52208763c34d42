// What the page knows, in one place, fed by the node's event stream and a few reads. Views read it and never fetch it.
import { ApiError, call, list } from "./api.js";
import { natural } from "./format.js";
import { useEffect, useState } from "./vendor/preact/preact.js";

/**
 * @typedef {import("./types.js").Vm} Vm
 * @typedef {import("./types.js").Peer} Peer
 * @typedef {import("./types.js").Operation} Operation
 * @typedef {import("./types.js").Note} Note
 * @typedef {import("./types.js").Question} Question
 */

const MAX_EVENTS = 200;
const MAX_OPERATIONS = 200;
const FLEET_EVERY = 5_000;
const NODE_EVERY = 30_000;

export const state = {
  /** @type {"connecting" | "live" | "lost" | "locked"} */
  live: "connecting",
  loaded: false,
  /** @type {Error | null} */
  error: null,
  /** @type {{principal: string, role: import("./api.js").Role, session?: string | null}} */
  me: { principal: "", role: "viewer" },
  /** @type {any} */
  health: null,
  /** @type {any} */
  capacity: null,
  /** @type {any} */
  self: null,
  /** @type {Vm[]} */
  vms: [],
  /** @type {Peer[]} */
  peers: [],
  /** @type {Map<string, Operation>} */
  operations: new Map(),
  /** @type {any[]} */
  events: [],
  /** @type {Note[]} */
  notes: [],
  /** @type {Question | null} */
  question: null,
  /** Grows when images may have changed. */
  imagesVersion: 0,
  drawer: false,
  palette: false,
  /** @type {Partial<import("./types.js").NewVm> | null} */
  creating: null,
};

/** @type {Set<() => void>} */
const listeners = new Set();
let scheduled = false;

/** Change the state and draw once for all changes of this turn. @param {Partial<typeof state>} changes */
export function set(changes = {}) {
  Object.assign(state, changes);
  if (scheduled) return;
  scheduled = true;
  setTimeout(() => {
    scheduled = false;
    for (const listener of [...listeners]) listener();
  });
}

/** Draw the component again whenever the state changes. */
export function useStore() {
  const [, draw] = useState(0);
  useEffect(() => {
    const listener = () => draw((/** @type {number} */ count) => count + 1);
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }, []);
  return state;
}

/** Which peer to ask for a VM or another thing of the node `name`; null is this node. @param {string | null} name */
export function peerOf(name) {
  if (name === null || name === state.health?.name) return null;
  const named = state.peers.filter((peer) => peer.name === name || peer.id === name);
  return named.length === 1 ? named[0].id : name;
}

const ORDER = ["viewer", "operator", "admin"];

/** Whether the role is enough, and the VM is the caller's or the caller an admin. @param {import("./api.js").Role} role */
export function may(role, owner = state.me.principal, node = /** @type {string | null} */ (null)) {
  if (ORDER.indexOf(state.me.role) < ORDER.indexOf(role)) return false;
  if (role === "viewer" || state.me.role === "admin" || peerOf(node) !== null) return true;
  return owner === state.me.principal;
}

let notes = 0;

/** @param {string} message @param {{kind?: string, hint?: string, operation?: string}} more */
export function notify(message, { kind = "bad", hint = "", operation = "" } = {}) {
  const note = { id: ++notes, message, kind, hint, operation };
  set({ notes: [...state.notes.slice(-3), note] });
  setTimeout(() => dismiss(note.id), 12_000);
}

/** @param {number} id */
export const dismiss = (id) => set({ notes: state.notes.filter((note) => note.id !== id) });

/** Ask the user; true for yes. @param {Omit<Question, "answer">} question @returns {Promise<boolean>} */
export function ask(question) {
  return new Promise((answer) =>
    set({ question: { ...question, answer: (yes) => (set({ question: null }), answer(yes)) } }));
}

// -- operations

/** @type {Map<string, {resolve: (result: any) => void, reject: (error: Error) => void}>} */
const waiting = new Map();

/** @param {Operation} operation */
const ended = (operation) => ["done", "failed", "cancelled"].includes(operation.state);

/** @param {Operation} operation */
function keep(operation) {
  const known = state.operations.get(operation.id);
  // An answer that was on its way while the operation ended.
  if (known && ended(known) && !ended(operation)) return;
  state.operations.set(operation.id, { ...known, ...operation });
  if (state.operations.size > MAX_OPERATIONS) {
    const oldest = [...state.operations.values()].filter(ended).sort((a, b) => a.created_at.localeCompare(b.created_at));
    for (const one of oldest.slice(0, state.operations.size - MAX_OPERATIONS)) state.operations.delete(one.id);
  }
  if (ended(operation)) settle(operation);
  set();
}

/** @param {Operation} operation */
function settle(operation) {
  const waiter = waiting.get(operation.id);
  waiting.delete(operation.id);
  if (operation.state === "done") waiter?.resolve(operation.result);
  else waiter?.reject(new ApiError(operation.error?.error ?? operation.state, operation.error?.code ?? "cancelled", 0));
}

/** Read again what an operation has become. @param {Operation} operation */
async function look(operation) {
  try {
    const found = await call("get_operation", { id: operation.id }, operation.peer ?? null);
    keep({ ...found, peer: operation.peer });
  } catch (error) {
    if (/** @type {ApiError} */ (error).status !== 404) return;
    keep({ ...operation, state: "failed", error: { error: String(error), code: "not_found" } });
  }
}

/**
 * Change something, and wait for its end; the drawer shows how far it is. `accepted` is called once it was not refused.
 * @param {string} operation @param {Record<string, unknown>} params @param {string | null} peer @param {() => void} accepted
 * @returns {Promise<any>}
 */
export async function run(operation, params = {}, peer = null, accepted = () => {}) {
  const answer = await call(operation, params, peer);
  accepted();
  if (!answer?.idempotency_key) return answer;
  const begun = { ...answer, peer };
  const end = new Promise((resolve, reject) => waiting.set(begun.id, { resolve, reject }));
  // Events may have brought more of it by now than its answer, which shows how it began.
  keep({ ...begun, ...state.operations.get(begun.id), peer });
  if (peer !== null) void follow(begun);
  else setTimeout(() => look(begun), 300);
  return end.finally(soon);
}

/** The operations of a peer are in no event of this node. @param {Operation} operation */
async function follow(operation) {
  for (let pause = 250; waiting.has(operation.id); pause = Math.min(2_000, pause * 1.5)) {
    await new Promise((done) => setTimeout(done, pause));
    await look(operation);
  }
}

// -- reading

let reading = false;
let again = false;

/** Read the fleet's VMs and the node. */
export const refresh = () => readState(true);

/** Read the fleet's VMs and peers, and all of the node's own when `whole`; calls during a read make one more. */
async function readState(/** @type {boolean} */ whole) {
  if (reading) return void (again = true);
  reading = true;
  try {
    const node = whole ? Promise.all([call("health"), call("capacity"), call("p2p_info")]) : [state.health, state.capacity, state.self];
    const [vms, peers, [health, capacity, self]] = await Promise.all([list("list_fleet_vms", "vms"), list("list_peers", "peers"), node]);
    // In the order in which they are shown most: sorting them again is then cheap.
    vms.sort((a, b) => natural(a.name, b.name));
    set({ vms, health, capacity, peers, self, loaded: true, error: null });
  } catch (error) {
    fail(error);
  } finally {
    reading = false;
    if (again) soon();
    again = false;
  }
}

/** @param {unknown} error */
function fail(error) {
  set({ error: /** @type {ApiError} */ (error) });
}

let timer = 0;

/** Read again in a moment: many events in a row cause one read. */
export function soon() {
  clearTimeout(timer);
  timer = window.setTimeout(refresh, state.vms.length > 200 ? 800 : 150);
}

async function readOperations() {
  for (const one of await list("list_operations", "operations")) keep(one);
}

// -- events

/** @type {Record<string, (data: any) => void>} */
const HANDLERS = {
  "vm.state": (data) => {
    const vms = state.vms.map((vm) => (vm.id === data.id ? { ...vm, status: data.status, reason: data.reason } : vm));
    set({ vms });
    soon();
  },
  "vm.deleted": (data) => {
    set({ vms: state.vms.filter((vm) => vm.id !== data.id || peerOf(vm.node) !== null) });
    soon();
  },
  "op.progress": (data) => takeOperation(data),
  "op.done": (data) => takeOperation(data),
  "image.added": () => set({ imagesVersion: state.imagesVersion + 1 }),
  "image.removed": () => set({ imagesVersion: state.imagesVersion + 1 }),
  reset: () => void resync(),
};

/** @param {any} data */
function takeOperation(data) {
  const known = state.operations.get(data.id);
  const now = new Date().toISOString();
  const operation = { node: state.health?.name ?? "", created_at: now, principal: "", ...known, ...data, updated_at: now };
  if (!ended(operation)) return keep(operation);
  // The event does not carry the result.
  return void look(operation);
}

/** @param {MessageEvent} message */
function hear(message) {
  const event = JSON.parse(message.data);
  state.events = [event, ...state.events].slice(0, MAX_EVENTS);
  (HANDLERS[event.type] ?? soon)(event.data);
  set();
}

const KINDS = [
  "vm.state", "vm.deleted", "vm.disk_full", "vm.expiring", "image.added", "image.removed", "op.progress", "op.done",
  "hypervisor.down", "hypervisor.up", "peer.online", "peer.offline", "fleet.joined", "fleet.left", "p2p.message", "reset",
];

/** Everything again: after a gap in the events. */
async function resync() {
  await Promise.all([refresh(), readOperations()]).catch(fail);
}

function listen() {
  const events = new EventSource("/api/events");
  events.onopen = () => {
    set({ live: "live" });
    void resync();
  };
  events.onerror = () => {
    set({ live: state.live === "locked" ? "locked" : "lost" });
    // The browser gives up after a refusal.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5_000);
    // A session that has ended says so at the next request.
    void refresh();
  };
  for (const kind of KINDS) events.addEventListener(kind, hear);
}

/** Begin: who am I, then the stream, then slow reads for what no event of this node tells. */
export async function start() {
  addEventListener("locked", () => set({ live: "locked" }));
  try {
    set({ me: await call("show_session") });
  } catch (error) {
    fail(error);
  }
  listen();
  let slow = 0;
  setInterval(() => {
    slow += FLEET_EVERY;
    const others = state.peers.some((peer) => peer.status === "online");
    const whole = state.error !== null || slow >= NODE_EVERY;
    if (document.visibilityState !== "visible" || !(others || whole)) return;
    if (whole) slow = 0;
    void readState(whole);
  }, FLEET_EVERY);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && soon());
}
