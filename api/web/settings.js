// What can be changed of a VM that exists.
import { html } from "./html.js";
import { Field, Form, notifyDone } from "./parts.js";
import { labelsFrom } from "./labels.js";
import { may, peerOf, run } from "./store.js";
import { text } from "./text.js";

const t = text.settings;

/** @param {{vm: import("./types.js").Vm}} properties */
export function view({ vm }) {
  const save = async (/** @type {FormData} */ form) => {
    const change = { autostart: form.has("autostart"), labels: labelsFrom(String(form.get("labels"))) };
    await run("update_vm", { vm: vm.id, ...change }, peerOf(vm.node));
    notifyDone(t.saved);
  };
  const lines = Object.entries(vm.labels).map(([key, value]) => `${key}=${value}`);
  const able = may("operator", vm.owner, vm.node);
  return html`
    <section class="card narrow" aria-label=${text.vm.tabs.settings}><${Form} id="settings" operation="update_vm" label=${t.save} submit=${save}>
      <label class="check"><input type="checkbox" name="autostart" defaultChecked=${vm.autostart} disabled=${!able} /> ${t.autostart}</label>
      <${Field} label=${t.labels} hint=${t.labelsHint}><textarea name="labels" rows=${Math.max(4, lines.length + 1)} disabled=${!able} spellcheck="false">${lines.join("\n")}</textarea><//>
    <//></section>`;
}
