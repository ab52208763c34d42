// What can be done to a VM in each of its states, and to many at once.
import { html } from "./html.js";
import { Icon } from "./icons.js";
import { Action, report } from "./parts.js";
import { may, peerOf, run } from "./store.js";
import { text } from "./text.js";

/** @typedef {import("./types.js").Vm} Vm */

const AT_ONCE = 4;
const UP = ["running", "paused"];

/** The operations that make sense for a VM as it is. @param {Vm} vm @returns {string[]} */
export function sensible(vm) {
  if (!vm.reachable) return [];
  if (vm.status === "running") return ["stop_vm", "restart_vm", "pause_vm", "delete_vm"];
  if (vm.status === "paused") return ["resume_vm", "stop_vm", "delete_vm"];
  if (["stopped", "crashed", "suspended"].includes(vm.status)) return ["start_vm", "delete_vm"];
  if (vm.status === "stopping") return ["force"];
  return [];
}

/** @param {Vm} vm */
const deletion = (vm) => ({ title: text.ask.delete(vm.name), body: text.ask.deleteBody(vm.status), yes: text.act.delete, danger: true });
/** @param {Vm} vm */
const forcing = (vm) => ({ title: text.ask.force(vm.name), body: text.ask.forceBody, yes: text.act.force, danger: true });

/** @type {Record<string, {operation: string, label: string, icon: string, kind?: string, params?: object, question?: (vm: Vm) => object}>} */
const ACTIONS = {
  start_vm: { operation: "start_vm", label: text.act.start, icon: "play" },
  resume_vm: { operation: "resume_vm", label: text.act.resume, icon: "play" },
  stop_vm: { operation: "stop_vm", label: text.act.stop, icon: "stop" },
  force: { operation: "stop_vm", label: text.act.force, icon: "power", kind: "danger", params: { force: true }, question: forcing },
  restart_vm: { operation: "restart_vm", label: text.act.restart, icon: "restart" },
  pause_vm: { operation: "pause_vm", label: text.act.pause, icon: "pause" },
  delete_vm: { operation: "delete_vm", label: text.act.delete, icon: "trash", kind: "danger", params: { force: true }, question: deletion },
};

/** The buttons of one VM. @param {{vm: Vm, compact?: boolean, then?: () => unknown}} properties */
export function VmActions({ vm, compact = false, then }) {
  const names = compact ? sensible(vm).filter((name) => !["restart_vm", "pause_vm"].includes(name)) : sensible(vm);
  const force = !compact && UP.includes(vm.status) && vm.reachable ? ["force"] : [];
  const watch = compact && UP.includes(vm.status) && vm.reachable && may("operator", vm.owner, vm.node);
  return html`
    ${watch && html`<a class="button plain compact" href="#/vm/${encodeURIComponent(vm.node ?? "")}/${vm.id}/terminal" aria-label="${text.act.console} ${vm.name}" title=${text.act.console}>
      <${Icon} name="terminal" /></a>`}
    ${[...names.filter((name) => name !== "delete_vm"), ...force, ...names.filter((name) => name === "delete_vm")].map((name) => {
      const { operation, label, icon, kind = "", params = {}, question } = ACTIONS[name];
      return html`<${Action} key=${name} operation=${operation} label=${label} icon=${icon} kind="${kind} ${compact ? "plain" : ""}" compact=${compact}
        params=${{ vm: vm.id, ...params }} peer=${peerOf(vm.node)} owner=${vm.owner} node=${vm.node} question=${question?.(vm)}
        then=${name === "delete_vm" ? then : null} />`;
    })}`;
}

/** Do one thing to many VMs, a few at once; each failure is shown. @param {Vm[]} vms @param {string} name */
async function each(vms, name) {
  const left = [...vms];
  const { operation, params = {} } = ACTIONS[name];
  const work = async () => {
    for (let vm = left.shift(); vm; vm = left.shift()) {
      await run(operation, { vm: vm.id, ...params }, peerOf(vm.node)).catch(report);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
}

/** The bar that stands over the table while VMs are selected. @param {{vms: Vm[], clear: () => void}} properties */
export function Bulk({ vms, clear }) {
  const able = (/** @type {string} */ name) => vms.filter((vm) => sensible(vm).includes(name) && may("operator", vm.owner, vm.node));
  return html`
    <b>${text.vms.selected(vms.length)}</b>
    ${["start_vm", "stop_vm", "restart_vm", "pause_vm", "resume_vm", "delete_vm"].map((name) => {
      const those = able(name);
      const { label, icon, kind, operation } = ACTIONS[name];
      const question = name === "delete_vm"
        ? { title: text.ask.deleteMany(those.length), body: text.ask.deleteManyBody, points: those.slice(0, 12).map((vm) => vm.name), yes: text.act.delete, danger: true }
        : undefined;
      return those.length > 0 && html`<${Action} key=${name} operation=${operation} label="${label} ${those.length}" icon=${icon} kind=${kind} question=${question} act=${() => each(those, name)} />`;
    })}
    <span class="gap"></span><button type="button" onClick=${clear}>${text.vms.clear}</button>`;
}
