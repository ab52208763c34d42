// The frame of the page: navigation, the view that the address names, dialogs, keys.
import { html, render, useEffect, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Activity } from "./operations.js";
import { Notes, QuestionDialog, Status } from "./parts.js";
import { set, start, state, useStore } from "./store.js";
import { text } from "./text.js";
import { Vms } from "./vms.js";

/** Views beside the first one are loaded when they are opened. @type {Record<string, () => Promise<any>>} */
const VIEWS = {
  vms: async () => ({ view: Vms }),
  vm: () => import("./vm.js"),
  fleet: () => import("./fleet.js"),
  images: () => import("./images.js"),
  peers: () => import("./peers.js"),
  access: () => import("./access.js"),
  audit: () => import("./audit.js"),
  health: () => import("./health.js"),
};
const FIRST = "vms";

/** `#/vm/node/id/terminal` as its parts. @returns {string[]} */
const route = () => location.hash.replace(/^#\/?/, "").split("/").filter(Boolean).map(decodeURIComponent);

function View() {
  const [parts, setParts] = useState(route);
  const [loaded, setLoaded] = useState(/** @type {{name: string, view: any}} */ ({ name: FIRST, view: Vms }));
  const name = parts[0] in VIEWS ? parts[0] : FIRST;
  useEffect(() => {
    const changed = () => setParts(route());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  useEffect(() => {
    let wanted = true;
    void VIEWS[name]().then(({ view }) => wanted && setLoaded({ name, view }));
    return () => void (wanted = false);
  }, [name]);
  const current = name === "vm" ? "vms" : name;
  return html`
    <nav id="views" aria-label="Views">
      ${Object.entries(text.views).map(([key, label]) => html`
        <a key=${key} href="#/${key}" aria-current=${key === current ? "page" : null}><${Icon} name=${key} /><span>${label}</span></a>`)}
    </nav>
    <main id="content" tabindex="0">
      ${state.live === "lost" && html`<p class="banner warn" role="status">${text.offline}</p>`}
      ${loaded.name === name ? html`<${loaded.view} path=${parts.slice(1)} />` : null}
    </main>`;
}

function Header() {
  const problems = state.health?.problems?.length ?? 0;
  return html`
    <header id="top">
      <a class="skip" href="#content" onClick=${skip}>${text.skip}</a>
      <a class="brand" href="#/vms" aria-label=${text.title}><img src="/web/icon.svg" alt="" width="28" height="28" /><b>${text.title}</b></a>
      <span id="node" class="node">${state.health?.name ?? ""}</span>
      <span id="live" role="status"><${Status} status=${state.live} /></span>
      ${state.me.role !== "admin" && html`<span class="tag">${state.me.role === "viewer" ? text.readOnly : state.me.role}</span>`}
      <span class="gap"></span>
      ${problems > 0 && html`<a class="tag warn" href="#/health"><${Icon} name="warn" />${problems}</a>`}
      <button type="button" class="plain search" onClick=${() => set({ palette: true })}>
        <${Icon} name="search" /><span>${text.palette.title}</span><kbd>Ctrl K</kbd></button>
    </header>`;
}

/** @param {Event} event */
function skip(event) {
  event.preventDefault();
  document.getElementById("content")?.focus();
}

const Locked = () => html`
  <main id="content" class="locked"><h1>${text.locked.title}</h1><p>${text.locked.body}</p><pre>twinshare ui</pre>
    <p>${text.locked.remote}</p><pre>twinshare ui --remote</pre></main>`;

/** What opens over the view; each is loaded when it is first wanted. */
function Overlay({ open, load }) {
  const [part, setPart] = useState(/** @type {{view: any} | null} */ (null));
  useEffect(() => {
    if (open && !part) void load().then(({ view }) => setPart({ view }));
  }, [open]);
  return open && part ? html`<${part.view} />` : null;
}

function Page() {
  useStore();
  const title = state.health ? `${text.title}: ${state.health.name}` : text.title;
  useEffect(() => void (document.title = title), [title]);
  return html`
    <${Header} />
    ${state.live === "locked" ? html`<${Locked} />` : html`<${View} /><${Activity} />`}
    <${QuestionDialog} />
    <${Overlay} open=${state.creating !== null} load=${() => import("./new_vm.js")} />
    <${Overlay} open=${state.palette} load=${() => import("./palette.js")} />
    <${Notes} />`;
}

/** @param {KeyboardEvent} event */
function key(event) {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    set({ palette: !state.palette });
  }
  const typing = /** @type {HTMLElement} */ (event.target).closest("input, textarea, select, dialog, .typing");
  if (event.key === "/" && !typing && !event.ctrlKey) {
    const field = /** @type {HTMLInputElement | null} */ (document.querySelector("input[type=search]"));
    if (!field) return;
    event.preventDefault();
    field.focus();
  }
}

addEventListener("keydown", key);
render(html`<${Page} />`, /** @type {HTMLElement} */ (document.getElementById("page")));
void start();
