// What can be changed of a VM that exists.
import { html } from "./html.js";
import { Field, Form, notifyDone } from "./parts.js";
import { may, peerOf, run } from "./store.js";
import { clock } from "./format.js";
import { text } from "./text.js";
import { PERIODS, labelsFrom } from "./vm_fields.js";

const t = text.settings;
const KEPT = "kept";

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const save = async (/** @type {FormData} */ form) => {
    const ttl = String(form.get("ttl"));
    const change = { autostart: form.has("autostart"), labels: labelsFrom(String(form.get("labels"))), ...(ttl === KEPT ? {} : { ttl: Number(ttl) }) };
    await run("update_vm", { vm: vm.id, ...change }, peerOf(vm.node));
    notifyDone(t.saved);
  };
  const lines = Object.entries(vm.labels).map(([key, value]) => `${key}=${value}`);
  const able = may("operator", vm.owner, vm.node);
  return html`
    <section class="card narrow" aria-label=${text.vm.tabs.settings}><${Form} id="settings" operation="update_vm" label=${t.save} submit=${save}>
      <label class="check"><input type="checkbox" name="autostart" defaultChecked=${vm.autostart} disabled=${!able} /> ${t.autostart}</label>
      <${Field} label=${t.ttl} hint=${vm.expires_at ? t.expires(clock(vm.expires_at)) : ""}><select name="ttl" disabled=${!able}><option value=${KEPT}>${t.ttlKept}</option>
        ${PERIODS.map(([seconds, label]) => html`<option key=${label} value=${seconds || 0}>${seconds ? t.fromNow(label) : label}</option>`)}</select><//>
      <${Field} label=${t.labels} hint=${t.labelsHint}><textarea name="labels" rows=${Math.max(4, lines.length + 1)} disabled=${!able} spellcheck="false">${lines.join("\n")}</textarea><//>
    <//></section>`;
}
