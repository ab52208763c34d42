// The ports of the asked node that lead to a VM.
import { call, list } from "./api.js";
import { html, useLoaded } from "./html.js";
import { Action, Empty, Failure, Field, Form, Loading, Status } from "./parts.js";
import { may, peerOf, run } from "./store.js";
import { text } from "./text.js";

const t = text.forwards;
const EVERYWHERE = ["0.0.0.0", "::"];

/** @param {{bind: string, host_port: number}} forward */
function link({ bind, host_port }) {
  const host = EVERYWHERE.includes(bind) ? location.hostname : bind;
  return Object.assign(new URL(location.origin), { protocol: "http:", host: endpoint(host, host_port) }).href;
}

/** @param {string} host @param {number} port */
function endpoint(host, port) {
  return host.includes(":") && !host.startsWith("[") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const peer = peerOf(vm.node);
  // A VM that is being deleted is not asked once more: it may be gone by then.
  const open = ["running", "deleting"].includes(vm.status);
  const [rows, error, again] = useLoaded(() => list("list_forwards", "forwards", { vm: vm.id }, peer), [vm.id, open]);
  const add = async (/** @type {FormData} */ form) => {
    const number = (/** @type {string} */ key) => Number(form.get(key));
    await run("add_forward", { vm: vm.id, host_port: number("host_port"), guest_port: number("guest_port"), bind: form.get("bind") }, peer);
    await again();
  };
  const able = may("operator", vm.owner, vm.node);
  return html`
    <section class="card" aria-label=${t.table}>
      <p class="quiet">${t.hint}</p>
      ${error ? html`<${Failure} error=${error} retry=${again} />` : !rows ? html`<${Loading} rows=${2} />` : !rows.length ? html`<${Empty} icon="download" title=${t.empty} />` : html`
        <table><thead><tr><th scope="col">${t.host}</th><th scope="col">${t.guest}</th><th scope="col">${t.protocol}</th><th scope="col">${t.state}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
          <tbody>${rows.map((one) => html`<tr key=${one.host_port}>
            <th scope="row" class="mono">${one.protocol === "tcp" && one.active ? html`<a href=${link(one)} target="_blank" rel="noreferrer">${endpoint(one.bind, one.host_port)}</a>` : endpoint(one.bind, one.host_port)}</th>
            <td class="mono">${one.guest_port}</td><td>${one.protocol}</td><td><${Status} status=${one.active ? "online" : "stopped"} /></td>
            <td class="does"><${Action} operation="remove_forward" label=${t.remove} icon="trash" compact=${true} kind="plain danger" params=${{ vm: vm.id, host_port: one.host_port }} peer=${peer} owner=${vm.owner} node=${vm.node} then=${again} /></td></tr>`)}</tbody></table>`}
      ${able && html`<${Form} id="forward" operation="add_forward" label=${t.add} submit=${add}><div class="row">
        <${Field} label=${t.host}><input name="host_port" type="number" min="0" max="65535" defaultValue="0" required /><//>
        <${Field} label=${t.guest}><input name="guest_port" type="number" min="1" max="65535" defaultValue="80" required /><//>
        <${Field} label=${t.bind}><input name="bind" defaultValue="127.0.0.1" required maxlength="45" /><//></div><//>`}
    </section>`;
}
