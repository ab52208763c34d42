// How a node of the fleet is, what is wrong with it, and the command that mends it.
import { call } from "./api.js";
import { Capacity } from "./fleet.js";
import { disk, duration, memory } from "./format.js";
import { html, useEvery, useState } from "./html.js";
import { Icon } from "./icons.js";
import { Copyable, Failure, Field, Loading, Status } from "./parts.js";
import { peerOf, state } from "./store.js";
import { text } from "./text.js";

const t = text.health;
const EVERY = 10;

export function view() {
  const [node, setNode] = useState("");
  const [found, setFound] = useState(/** @type {any} */ ({}));
  const peer = node ? peerOf(node) : null;
  const load = async () => {
    try {
      const [health, capacity] = await Promise.all([call("health", {}, peer), call("capacity", {}, peer)]);
      setFound({ health, capacity });
    } catch (error) {
      setFound({ error });
    }
  };
  useEvery(load, EVERY, [peer]);
  const { health, capacity, error } = found;
  const facts = health && [
    [t.hypervisor, health.hypervisor], [t.accelerator, health.accelerator], [t.version, health.version], [t.p2p, health.p2p],
    [t.vms, health.vms], [t.uptime, duration(health.uptime)], [text.peers.peerId, health.peer_id],
    ...(capacity ? [[t.committed, `${memory(capacity.committed.memory)} · ${disk(capacity.committed.disk)}`], [t.reserve, `${memory(capacity.reserve.memory)} · ${disk(capacity.reserve.disk)}`]] : []),
  ];
  return html`
    <div class="view">
      <div class="head"><h1>${text.views.health}</h1>${health && html`<${Status} status=${health.status} />`}<span class="gap"></span>
        ${state.peers.length > 0 && html`<${Field} label=${t.node}><select value=${node} onChange=${(event) => setNode(event.target.value)}>
          <option value="">${state.health?.name}</option>${state.peers.map((one) => html`<option key=${one.id} value=${one.name}>${one.name}</option>`)}</select><//>`}</div>
      ${error ? html`<${Failure} error=${error} retry=${load} />` : !health ? html`<${Loading} />` : html`
        <div class="cards">
          <section class="card" aria-label=${t.problems}><h2>${t.problems}</h2>
            ${health.problems.length ? html`<ul>${health.problems.map((/** @type {string} */ line) => html`<li key=${line}>${line}</li>`)}</ul>` : html`<p><${Icon} name="check" /> ${t.ok}</p>`}
            <p class="quiet">${t.doctor}</p><${Copyable} value="twinshare doctor" label=${t.doctor} /></section>
          <section class="card" aria-label=${t.capacity}><h2>${t.capacity}</h2>${capacity && html`<${Capacity} capacity=${capacity} />`}</section>
          <section class="card" aria-label=${health.name}><h2>${health.name}</h2><dl class="facts">${facts.map(([label, value]) => html`<dt>${label}</dt><dd>${value}</dd>`)}</dl>
            <p><a href="/swagger-ui">${t.api}</a></p></section>
        </div>`}
    </div>`;
}
