// The nodes of the fleet: who is there, how they are reached, what they have left, and what needs attention.
import { call } from "./api.js";
import { ago, disk, duration, memory } from "./format.js";
import { html, useEvery, useState } from "./html.js";
import { Empty, Loading, Meter, Status } from "./parts.js";
import { OperationRow, recent } from "./operations.js";
import { state } from "./store.js";
import { text } from "./text.js";

const t = text.fleet;
const EVERY = 10;

/** @typedef {import("./types.js").Peer} Peer */

/** What each node answered last: its health and capacity. @type {Map<string, {health: any, capacity: any, error: string}>} */
const answers = new Map();

/** @param {string} name */
function vmsOf(name) {
  const vms = state.vms.filter((vm) => vm.node === name);
  return t.vms(vms.filter((vm) => vm.status === "running").length, vms.length);
}

/** @param {{capacity: any}} properties */
export const Capacity = ({ capacity }) => html`
  <div class="meters">
    <${Meter} label=${text.resources.memory} used=${capacity.total.memory - capacity.available.memory} total=${capacity.total.memory} show=${memory} />
    <${Meter} label=${text.resources.cpu} used=${capacity.total.cpu - capacity.available.cpu} total=${capacity.total.cpu} show=${String} />
    <${Meter} label=${text.resources.disk} used=${capacity.total.disk - capacity.available.disk} total=${capacity.total.disk} show=${disk} />
  </div>`;

/** @param {{name: string, status: string, tags: string[], health: any, capacity: any, note: string, here?: boolean}} properties */
function NodeCard({ name, status, tags, health, capacity, note, here = false }) {
  const away = status !== "online";
  return html`
    <article class="card ${away ? "stale" : ""}" aria-label=${name}>
      <header><h2>${name}</h2>${here && html`<span class="tag">${t.thisNode}</span>`}<span class="gap"></span><${Status} status=${status} stale=${away} /></header>
      <p class="quiet">${vmsOf(name)}${tags.map((tag) => html` · ${tag}`)}</p>
      ${capacity && html`<${Capacity} capacity=${capacity} />`}
      ${health && html`<p class="quiet"><small>${health.hypervisor} (${health.accelerator}) · ${t.version} ${health.version} · ${t.up} ${duration(health.uptime)}</small></p>`}
      ${note && html`<p class="quiet"><small>${note}</small></p>`}
    </article>`;
}

/** @param {Peer} peer */
async function ask(peer) {
  const kept = answers.get(peer.id);
  try {
    const [health, capacity] = await Promise.all([call("health", {}, peer.id), call("capacity", {}, peer.id)]);
    answers.set(peer.id, { health, capacity, error: "" });
  } catch (error) {
    answers.set(peer.id, { health: kept?.health, capacity: kept?.capacity, error: /** @type {Error} */ (error).message });
  }
}

function Trouble() {
  const lines = [
    ...(state.health?.problems ?? []).map((/** @type {string} */ problem) => `${state.health.name}: ${problem}`),
    ...[...answers].flatMap(([id, { health }]) => {
      const name = state.peers.find((peer) => peer.id === id)?.name ?? "";
      return (health?.problems ?? []).map((/** @type {string} */ problem) => `${name}: ${problem}`);
    }),
    ...state.peers.filter((peer) => peer.cure).map((peer) => `${peer.name}: ${peer.reason} ${peer.cure}`),
    ...state.vms.filter((vm) => vm.status === "crashed" || vm.reason === "disk_full").map((vm) => `${vm.name}: ${(vm.reason ?? vm.status).replaceAll("_", " ")}`),
  ];
  return html`
    <section class="card" aria-label=${t.trouble}><h2>${t.trouble}</h2>
      ${lines.length ? html`<ul>${lines.map((line) => html`<li key=${line}>${line}</li>`)}</ul>` : html`<p class="quiet">${t.calm}</p>`}</section>`;
}

export function view() {
  const [, draw] = useState(0);
  const online = state.peers.filter((peer) => peer.status === "online");
  useEvery(() => void Promise.all(online.map(ask)).then(() => draw((/** @type {number} */ count) => count + 1)), EVERY, [online.map((peer) => peer.id).join()]);
  if (!state.loaded) return html`<div class="view"><h1>${text.views.fleet}</h1><${Loading} /></div>`;
  const last = recent().slice(0, 5);
  return html`
    <div class="view">
      <div class="head"><h1>${text.views.fleet}</h1></div>
      <div class="cards">
        <${NodeCard} name=${state.health.name} status="online" tags=${[]} health=${state.health} capacity=${state.capacity} note=${state.peers.length ? "" : t.alone} here=${true} />
        ${state.peers.map((peer) => {
          const known = answers.get(peer.id);
          const away = peer.status !== "online";
          const tags = [peer.path, away ? (peer.last_seen ? t.lastSeen(ago(peer.last_seen)) : t.never) : ""].filter(Boolean);
          return html`<${NodeCard} key=${peer.id} name=${peer.name} status=${peer.status} tags=${tags} health=${known?.health} capacity=${known?.capacity}
            note=${away ? t.absent : (known?.error ?? "")} />`;
        })}
      </div>
      <div class="cards">
        <${Trouble} />
        <section class="card" aria-label=${t.recent}><h2>${t.recent}</h2>
          ${last.length ? html`<ul class="plain-list">${last.map((one) => html`<${OperationRow} key=${one.id} operation=${one} />`)}</ul>` : html`<${Empty} icon="activity" title=${text.operations.empty} />`}</section>
      </div>
    </div>`;
}
