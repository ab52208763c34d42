// What was done to a VM, and what has happened to it since the page was opened.
import { clock, words } from "./format.js";
import { html } from "./html.js";
import { Empty } from "./parts.js";
import { OperationRow, recent } from "./operations.js";
import { state } from "./store.js";
import { text } from "./text.js";

/** @param {any} event */
const said = ({ type, data }) => (type.startsWith("op.") ? `${words(data.kind)}: ${data.progress?.message || data.state}` : [data.status, data.reason].filter(Boolean).join(", "));

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const operations = recent().filter((one) => (one.target === vm.name || one.target === vm.id) && one.node === vm.node);
  const events = state.events.filter(({ data }) => data.id === vm.id || (data.target && (data.target === vm.name || data.target === vm.id)));
  return html`
    <div class="cards wide-cards">
      <section class="card" aria-label=${text.events.operations}><h2>${text.events.operations}</h2>
        ${operations.length ? html`<ul class="plain-list">${operations.map((one) => html`<${OperationRow} key=${one.id} operation=${one} />`)}</ul>` : html`<${Empty} icon="activity" title=${text.operations.empty} />`}</section>
      <section class="card" aria-label=${text.events.live}><h2>${text.events.live}</h2>
        ${events.length ? html`<table><tbody>${events.map((event) => html`<tr key=${event.id}><td class="quiet">${clock(event.at)}</td><td>${event.type}</td><td>${said(event)}</td></tr>`)}</tbody></table>` : html`<${Empty} icon="activity" title=${text.events.empty} />`}</section>
    </div>`;
}
