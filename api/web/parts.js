// The small parts that views are made of.
import { OPERATIONS } from "./api.js";
import { html, useLayoutEffect, useRef, useState } from "./html.js";
import { Icon } from "./icons.js";
import { ask, dismiss, may, notify, run, state } from "./store.js";
import { text } from "./text.js";

/** @param {unknown} error */
export function report(error) {
  const failure = /** @type {import("./api.js").ApiError} */ (error);
  if (failure.code !== "cancelled") notify(failure.message, { hint: text.hints[failure.code] ?? "" });
}

/** @param {string} message */
export const notifyDone = (message) => notify(message, { kind: "good" });

/** @type {Record<string, string>} */
const TONES = {
  running: "good", online: "good", done: "good", ok: "good", live: "good",
  paused: "warn", suspended: "warn", degraded: "warn", lost: "warn", relayed: "warn", cancelled: "warn",
  crashed: "bad", failed: "bad", revoked: "bad", damaged: "bad",
};
const BUSY = new Set(["creating", "starting", "stopping", "deleting", "migrating", "pending", "connecting"]);

/** A state as a dot and a word: never by colour alone. @param {{status: string, stale?: boolean}} properties */
export function Status({ status, stale = false }) {
  const tone = stale ? "stale" : BUSY.has(status) ? "busy" : (TONES[status] ?? "");
  return html`<span class="status ${tone}"><i aria-hidden="true"></i>${text.status[status] ?? status}</span>`;
}

/**
 * A button that carries out an operation of the table; not there for whom the role does not allow it.
 * @param {{operation: string, label: string, icon?: string, kind?: string, params?: Record<string, unknown>,
 *   peer?: string | null, owner?: string, node?: string | null, question?: any, compact?: boolean, disabled?: boolean,
 *   act?: () => Promise<unknown>, then?: (result: any) => unknown}} properties
 */
export function Action({
  operation, label, icon = "", kind = "", params = {}, peer = null, owner, node = null, question, compact = false,
  disabled = false, act, then,
}) {
  const [busy, setBusy] = useState(false);
  if (!may(OPERATIONS[operation][2], owner, node)) return null;
  const press = async () => {
    if (question && !(await ask(question))) return;
    setBusy(true);
    try {
      const result = act ? await act() : await run(operation, params, peer);
      await then?.(result);
    } catch (error) {
      report(error);
    } finally {
      setBusy(false);
    }
  };
  const content = html`${icon && html`<${Icon} name=${icon} />`}${compact ? "" : html`<span>${label}</span>`}`;
  return html`
    <button type="button" class="${kind} ${compact ? "compact" : ""}" data-operation=${operation} title=${compact ? label : null}
      aria-label=${label} aria-busy=${busy} disabled=${disabled || busy} onClick=${press}>${content}</button>`;
}

/** A modal dialog: the browser keeps the focus inside and closes it with Escape. */
export function Dialog({ title, onClose, children, kind = "" }) {
  const element = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useLayoutEffect(() => {
    element.current?.showModal();
  }, []);
  return html`
    <dialog ref=${element} class=${kind} aria-label=${title} onClose=${onClose}
      onClick=${(/** @type {MouseEvent} */ event) => event.target === element.current && element.current?.close()}>
      <div class="dialog">
        <header><h2>${title}</h2>
          <button type="button" class="plain compact" aria-label=${text.close} onClick=${onClose}><${Icon} name="close" /></button>
        </header>
        ${children}
      </div>
    </dialog>`;
}

/** What `ask` asks. */
export function QuestionDialog() {
  const question = state.question;
  if (!question) return null;
  return html`
    <${Dialog} title=${question.title} kind="small" onClose=${() => question.answer(false)}>
      ${question.body && html`<p>${question.body}</p>`}
      ${question.points?.length && html`<ul>${question.points.map((point) => html`<li>${point}</li>`)}</ul>`}
      <div class="end">
        <button type="button" autofocus onClick=${() => question.answer(false)}>${text.cancel}</button>
        <button type="button" class=${question.danger ? "danger solid" : "primary"} data-answer="yes"
          onClick=${() => question.answer(true)}>${question.yes}</button>
      </div>
    <//>`;
}

/**
 * A form whose button carries out an operation; what is wrong stands above the button.
 * @param {{id?: string, operation: string, label: string, kind?: string, submit: (form: FormData) => unknown, cancel?: () => unknown, children?: any}} properties
 */
export function Form({ id, operation, label, kind = "primary", submit, cancel, children }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(/** @type {any} */ (null));
  /** @param {SubmitEvent} event */
  const onSubmit = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await submit(new FormData(/** @type {HTMLFormElement} */ (event.target)));
    } catch (problem) {
      setError(problem);
    } finally {
      setBusy(false);
    }
  };
  return html`
    <form id=${id} onSubmit=${onSubmit}>${children}
      ${error && html`<p class="bad" role="alert">${error.message} <small>${text.hints[error.code] ?? ""}</small></p>`}
      <div class="end">${cancel && html`<button type="button" onClick=${cancel}>${text.cancel}</button>`}
        ${may(OPERATIONS[operation][2]) && html`<button class=${kind} data-operation=${operation} aria-busy=${busy} disabled=${busy}>${label}</button>`}</div>
    </form>`;
}

/** @param {{label: string, hint?: string, children?: any}} properties */
export const Field = ({ label, hint = "", children }) => html`
  <label class="field"><span>${label}</span>${children}${hint && html`<small>${hint}</small>`}</label>`;

/** How much of something is taken. @param {{label: string, used: number, total: number, show: (value: number) => string}} properties */
export function Meter({ label, used, total, show }) {
  const share = total > 0 ? Math.min(1, used / total) : 0;
  const tone = share > 0.9 ? "bad" : share > 0.75 ? "warn" : "";
  return html`
    <div class="meter ${tone}">
      <div><span>${label}</span><span>${text.meter(show(used), show(total))}</span></div>
      <div class="bar" role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax=${total} aria-valuenow=${used}
        aria-valuetext=${text.meter(show(used), show(total))}><i style=${{ width: `${share * 100}%` }}></i></div>
    </div>`;
}

/** @param {{icon?: string, title: string, children?: any}} properties */
export const Empty = ({ icon = "check", title, children }) => html`
  <div class="empty"><${Icon} name=${icon} /><p>${title}</p>${children}</div>`;

/** An error that a view cannot go on with. @param {{error: Error, retry?: () => unknown}} properties */
export const Failure = ({ error, retry }) => html`
  <div class="empty bad" role="alert"><${Icon} name="warn" /><p>${error.message}</p>
    ${retry && html`<button type="button" onClick=${retry}>${text.retry}</button>`}</div>`;

/** Rows that hold the place of what loads. */
export const Loading = ({ rows = 3 }) => html`
  <div class="loading" role="status" aria-label=${text.loading}>${Array.from({ length: rows }, () => html`<i></i>`)}</div>`;

/** Text with a button that copies it. @param {{value: string, label: string}} properties */
export function Copyable({ value, label }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard?.writeText(value).then(() => setCopied(true), report);
  };
  return html`
    <div class="copyable"><code tabindex="0" aria-label=${label}>${value}</code>
      <button type="button" class="plain compact" aria-label=${copied ? text.copied : text.copy} title=${text.copy} onClick=${copy}>
        <${Icon} name=${copied ? "check" : "copy"} /></button></div>`;
}

/**
 * Where files are dropped or chosen, and sent one after the other; what is being sent can be cancelled.
 * @param {{operation: string, label: string, hint: string, many?: boolean,
 *   send: (file: File, progress: (share: number) => void, signal: AbortSignal) => Promise<unknown>}} properties
 */
export function Drop({ operation, label, hint, many = false, send }) {
  const [sending, setSending] = useState(/** @type {{name: string, share: number, cancel: () => void} | null} */ (null));
  const [over, setOver] = useState(false);
  const take = async (/** @type {File[]} */ files) => {
    const { signal, abort } = abortable();
    try {
      for (const file of many ? files : files.slice(0, 1)) {
        const progress = (/** @type {number} */ share) => setSending({ name: file.name, share, cancel: abort });
        progress(0);
        await send(file, progress, signal);
      }
    } catch (error) {
      report(error);
    } finally {
      setSending(null);
    }
  };
  /** @param {DragEvent} event @param {boolean} entered */
  const drag = (event, entered) => {
    event.preventDefault();
    setOver(entered);
  };
  const drop = (/** @type {DragEvent} */ event) => {
    drag(event, false);
    if (!sending) void take([...(event.dataTransfer?.files ?? [])]);
  };
  const choose = (/** @type {any} */ event) => {
    void take([...event.target.files]);
    event.target.value = "";
  };
  if (sending) return html`
    <div class="drop"><${Icon} name="upload" /><span role="status">${text.uploading(sending.name, sending.share)}</span>
      <button type="button" data-upload="cancel" onClick=${sending.cancel}>${text.cancel}</button><span class="bar"><i style=${{ width: `${sending.share * 100}%` }}></i></span></div>`;
  return html`
    <label class="drop ${over ? "over" : ""}" data-operation=${operation} onDragOver=${(event) => drag(event, true)} onDragLeave=${(event) => drag(event, false)} onDrop=${drop}>
      <${Icon} name="upload" /><span><b>${label}</b> ${hint}</span><input type="file" class="unseen" aria-label=${label} multiple=${many} onChange=${choose} /></label>`;
}

function abortable() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

/** Messages that come and go. */
export const Notes = () => html`
  <div id="notes" aria-live="polite">${state.notes.map((note) => html`
    <div key=${note.id} class="note ${note.kind}"><p>${note.message}</p>${note.hint && html`<small>${note.hint}</small>`}
      <button type="button" class="plain compact" aria-label=${text.close} onClick=${() => dismiss(note.id)}><${Icon} name="close" /></button>
    </div>`)}</div>`;
