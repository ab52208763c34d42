// All VMs of the fleet in one table: search, filters, order, selection, and what can be done to many at once.
import { ago, disk, duration, memory, natural } from "./format.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.js";
import { Icon } from "./icons.js";
import { progressText, workOn } from "./operations.js";
import { Action, Empty, Failure, Loading, Status } from "./parts.js";
import { may, peerOf, refresh, set, state } from "./store.js";
import { text } from "./text.js";
import { Bulk, VmActions } from "./vm_actions.js";

/** @typedef {import("./types.js").Vm} Vm */

const ROW = 53;
const SPARE = 8;
const VIRTUAL_FROM = 80;

/** Kept while the page is open, so that coming back from a VM finds the same list. */
const view = { query: "", node: "", status: "", label: "", sort: "name", down: false, selected: new Set(), scroll: 0 };

/** @param {Vm} vm */
export const keyOf = (vm) => `${vm.node}/${vm.id}`;
/** @param {Vm} vm */
export const linkOf = (vm, tab = "") => `#/vm/${encodeURIComponent(vm.node ?? "")}/${vm.id}${tab && `/${tab}`}`;

/** @type {Record<string, (a: Vm, b: Vm) => number>} */
const ORDERS = {
  name: (a, b) => natural(a.name, b.name),
  status: (a, b) => natural(a.status, b.status),
  node: (a, b) => natural(a.node ?? "", b.node ?? ""),
  image: (a, b) => natural(a.image ?? "", b.image ?? ""),
  size: (a, b) => a.memory - b.memory || a.cpu_cores - b.cpu_cores,
  ip: (a, b) => natural(a.ip ?? "", b.ip ?? ""),
  up: (a, b) => (a.uptime ?? -1) - (b.uptime ?? -1),
};

/** @param {Vm} vm */
const labelsOf = (vm) => Object.entries(vm.labels).map(([key, value]) => `${key}=${value}`);

/** @returns {Vm[]} */
function chosen() {
  const terms = view.query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = state.vms.filter((vm) => {
    if (view.node && vm.node !== view.node) return false;
    if (view.status && vm.status !== view.status) return false;
    const labels = labelsOf(vm);
    if (view.label && !labels.includes(view.label)) return false;
    if (!terms.length) return true;
    const said = [vm.name, vm.image, vm.ip, vm.node, vm.status, ...labels].join(" ").toLowerCase();
    return terms.every((term) => said.includes(term));
  });
  const order = ORDERS[view.sort];
  found.sort((a, b) => (view.down ? order(b, a) : order(a, b)) || natural(a.name, b.name));
  return found;
}

function Filters({ change }) {
  const nodes = [...new Set(state.vms.map((vm) => vm.node ?? ""))].sort(natural);
  const statuses = [...new Set(state.vms.map((vm) => vm.status))].sort();
  const labels = [...new Set(state.vms.flatMap(labelsOf))].sort(natural);
  /** @param {"node" | "status" | "label"} key @param {string[]} values */
  const select = (key, values) => values.length > 1 || view[key]
    ? html`<select aria-label=${text.vms[key]} value=${view[key]} onChange=${(event) => change({ [key]: event.target.value })}>
        <option value="">${text.vms[key]}: ${text.vms.all}</option>${values.map((value) => html`<option key=${value} value=${value}>${value}</option>`)}</select>`
    : null;
  return html`
    <label class="searching"><${Icon} name="search" /><input type="search" aria-label=${text.vms.search} placeholder="${text.vms.search}  ( / )"
      value=${view.query} onInput=${(event) => change({ query: event.target.value })}
      onKeyDown=${(event) => event.key === "Escape" && (change({ query: "" }), event.target.blur())} /></label>
    ${select("node", nodes)}${select("status", statuses)}${select("label", labels)}`;
}

/** @param {{vm: Vm, change: (changes: object) => void}} properties */
function Row({ vm, change }) {
  const key = keyOf(vm);
  const work = workOn(vm.name, vm.node);
  const reason = vm.reason && vm.reason !== "user" ? vm.reason.replaceAll("_", " ") : "";
  const note = !vm.reachable ? text.vms.unreachable(ago(vm.observed_at)) : work ? progressText(work) : reason || labelsOf(vm).join("  ");
  const pick = () => {
    view.selected.has(key) ? view.selected.delete(key) : view.selected.add(key);
    change({});
  };
  return html`
    <tr class=${vm.reachable ? "" : "stale"} aria-selected=${view.selected.has(key)}>
      <td class="pick"><input type="checkbox" aria-label=${text.vms.select(vm.name)} checked=${view.selected.has(key)} onChange=${pick} /></td>
      <th scope="row"><a href=${linkOf(vm)}>${vm.name}</a><small>${note}</small></th>
      <td><${Status} status=${vm.status} stale=${!vm.reachable} /></td>
      <td class="wide">${vm.node}</td>
      <td class="wide clip">${vm.image ?? ""}</td>
      <td class="wide">${vm.cpu_cores} × ${memory(vm.memory)}<small>${disk(vm.disk_size)}</small></td>
      <td class="wide mono">${vm.ip ?? ""}</td>
      <td class="wider">${vm.uptime === null ? "" : duration(vm.uptime)}</td>
      <td class="does"><${VmActions} vm=${vm} compact=${true} /></td>
    </tr>`;
}

/** The rows that can be seen, and the height of those that cannot. @param {Vm[]} rows */
function useWindow(rows) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const [top, setTop] = useState(view.scroll);
  const [height, setHeight] = useState(innerHeight);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    element.scrollTop = view.scroll;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, [rows.length > 0]);
  const onScroll = () => {
    view.scroll = box.current?.scrollTop ?? 0;
    setTop(Math.floor(view.scroll / ROW) * ROW);
  };
  if (rows.length < VIRTUAL_FROM) return { box, onScroll, first: 0, last: rows.length };
  const first = Math.min(rows.length, Math.max(0, Math.floor(top / ROW) - SPARE));
  return { box, onScroll, first, last: Math.min(rows.length, first + Math.ceil(height / ROW) + 2 * SPARE) };
}

function Table({ rows, change }) {
  const { box, onScroll, first, last } = useWindow(rows);
  const every = rows.length > 0 && rows.every((vm) => view.selected.has(keyOf(vm)));
  const pickAll = () => {
    view.selected = new Set(every ? [] : rows.map(keyOf));
    change({});
  };
  const head = (/** @type {keyof typeof text.vms.columns} */ key, kind = "") => html`
    <th scope="col" class=${kind} aria-sort=${view.sort === key ? (view.down ? "descending" : "ascending") : null}>
      <button type="button" class="plain" onClick=${() => change({ sort: key, down: view.sort === key && !view.down })}>${text.vms.columns[key]}</button></th>`;
  const spacer = (/** @type {number} */ count) => count > 0 && html`<tr class="spacer" aria-hidden="true" style=${{ height: `${count * ROW}px` }}></tr>`;
  return html`
    <div class="table fill" ref=${box} onScroll=${onScroll} tabindex="0" role="region" aria-label=${text.vms.table}>
      <table id="vms" aria-rowcount=${rows.length + 1}>
        <thead><tr>
          <th scope="col" class="pick"><input type="checkbox" aria-label=${text.vms.selectAll} checked=${every} onChange=${pickAll} /></th>
          ${head("name")}${head("status")}${head("node", "wide")}${head("image", "wide")}${head("size", "wide")}${head("ip", "wide")}${head("up", "wider")}
          <th scope="col" class="does"><span class="unseen">${text.vms.actions}</span></th>
        </tr></thead>
        <tbody>${spacer(first)}${rows.slice(first, last).map((vm) => html`<${Row} key=${keyOf(vm)} vm=${vm} change=${change} />`)}${spacer(rows.length - last)}</tbody>
      </table>
    </div>`;
}

const NewVm = () => may("operator") && html`
  <button type="button" id="new" class="primary" data-operation="create_vm" onClick=${() => set({ creating: {} })}>
    <${Icon} name="plus" /><span>${text.vms.new}</span></button>`;

function Content({ rows, change }) {
  if (!state.loaded) return state.error ? html`<${Failure} error=${state.error} retry=${refresh} />` : html`<${Loading} rows=${6} />`;
  if (!state.vms.length) return html`
    <div id="empty"><${Empty} icon="vms" title=${text.vms.empty}><p class="quiet">${text.vms.emptyHint}</p><${NewVm} /><//></div>`;
  if (!rows.length) return html`<${Empty} icon="search" title=${text.vms.none} />`;
  return html`<${Table} rows=${rows} change=${change} />`;
}

export function Vms() {
  const [, draw] = useState(0);
  const change = (/** @type {object} */ changes) => {
    Object.assign(view, changes);
    draw((/** @type {number} */ count) => count + 1);
  };
  const rows = chosen();
  const known = new Set(state.vms.map(keyOf));
  for (const key of view.selected) if (!known.has(key)) view.selected.delete(key);
  const selected = state.vms.filter((vm) => view.selected.has(keyOf(vm)));
  return html`
    <div class="view tall">
      <div class="head"><h1>${text.views.vms}</h1><span class="quiet">${state.loaded && text.vms.count(rows.length, state.vms.length)}</span>
        <span class="gap"></span>${state.vms.length > 0 && html`<${NewVm} />`}</div>
      ${state.vms.length > 0 && html`<div class="tools">${selected.length
        ? html`<${Bulk} vms=${selected} clear=${() => change({ selected: new Set() })} />`
        : html`<${Filters} change=${change} />`}</div>`}
      <${Content} rows=${rows} change=${change} />
    </div>`;
}

export { Vms as view };
