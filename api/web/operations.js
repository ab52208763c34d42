// What is being done and what was done: progress, errors with what to do, cancel.
import { ago, bytes, words } from "./format.js";
import { html } from "./html.js";
import { Icon } from "./icons.js";
import { Action, Status } from "./parts.js";
import { call } from "./api.js";
import { peerOf, set, state } from "./store.js";
import { text } from "./text.js";

/** @typedef {import("./types.js").Operation} Operation */

const SHOWN = 60;

/** @param {Operation} operation */
const isOpen = (operation) => ["pending", "running"].includes(operation.state);

/** @returns {Operation[]} newest first, those that run before the others */
export function recent() {
  const all = [...state.operations.values()];
  return all.sort((a, b) => Number(isOpen(b)) - Number(isOpen(a)) || b.created_at.localeCompare(a.created_at));
}

/** The operations that are at work on something. @param {string} target @param {string | null} node */
export const workOn = (target, node) =>
  [...state.operations.values()].find((one) => isOpen(one) && one.target === target && (!one.node || one.node === node));

/** @param {Operation} operation */
export function progressText({ progress }) {
  const { done, total, unit, message } = progress ?? {};
  if (!total) return message ?? "";
  const far = unit === "bytes" ? `${bytes(done)} / ${bytes(total)}` : `${done} / ${total}`;
  return message ? `${message} · ${far}` : far;
}

/** @param {{operation: Operation}} properties */
export function ProgressBar({ operation }) {
  const { done, total } = operation.progress ?? {};
  const share = total ? Math.min(1, done / total) : null;
  return html`
    <div class="bar progress ${share === null ? "unknown" : ""}" role="progressbar" aria-label=${words(operation.kind)} aria-valuemin="0"
      aria-valuemax="100" aria-valuenow=${share === null ? null : Math.round(share * 100)}>
      <i style=${{ width: share === null ? "30%" : `${share * 100}%` }}></i></div>`;
}

/** @param {{operation: Operation}} properties */
export function OperationRow({ operation }) {
  const { error } = operation;
  const peer = operation.peer ?? null;
  const cancel = () => call("cancel_operation", { id: operation.id }, peer);
  return html`
    <li class="operation">
      <div><b>${words(operation.kind)}</b> <span>${operation.target}</span>
        <small>${peerOf(operation.node) !== null ? text.operations.on(operation.node) : ""} ${ago(operation.created_at)}
          ${operation.principal && operation.principal !== "local" ? text.operations.by(operation.principal) : ""}</small></div>
      <${Status} status=${operation.state} />
      ${isOpen(operation) && html`<${ProgressBar} operation=${operation} />
        <small class="far">${progressText(operation)}</small>
        <${Action} operation="cancel_operation" label=${text.operations.cancel} owner=${operation.principal} node=${operation.node} act=${cancel} />`}
      ${error && operation.state === "failed" && html`<p class="bad">${error.error}
        ${text.hints[error.code] && html`<small>${text.hints[error.code]}</small>`}</p>`}
    </li>`;
}

/** The drawer at the foot of the page. */
export function Activity() {
  const all = recent();
  const open = all.filter(isOpen);
  const failed = !open.length && all[0]?.state === "failed";
  return html`
    <aside id="activity" class=${state.drawer ? "open" : ""} aria-label=${text.operations.title}>
      <button type="button" class="plain" aria-expanded=${state.drawer} onClick=${() => set({ drawer: !state.drawer })}>
        <${Icon} name="activity" /><span>${text.operations.running(open.length)}</span>
        ${open[0] && html`<small class="now">${words(open[0].kind)} ${open[0].target} · ${progressText(open[0])}</small>`}
        ${failed && html`<small class="now bad">${words(all[0].kind)} ${all[0].target}: ${all[0].error?.error ?? ""}</small>`}
      </button>
      ${state.drawer && html`
        <ul tabindex="0" aria-label=${text.operations.title}>${all.slice(0, SHOWN).map((one) => html`<${OperationRow} key=${one.id} operation=${one} />`)}
          ${!all.length && html`<li class="quiet">${text.operations.empty}</li>`}</ul>`}
    </aside>`;
}
