// Where a VM answers, as links that open where there is something to open.
import { html } from "./html.js";
import { text } from "./text.js";

const SSH = 22;
const TLS = [443, 8443];
// A guest may listen on many ports: those that were chosen are mostly the low ones.
const SHOWN = 6;
const LOOPBACK = /^(127\.|localhost$|\[?::1\]?$)/;

/** Whether this browser runs on the machine of the asked node, as far as the address says. */
const isLocal = () => LOOPBACK.test(location.hostname);

/** @param {string} ip @param {number} port */
const link = (ip, port) => `${TLS.includes(port) ? "https" : "http"}://${ip.includes(":") ? `[${ip}]` : ip}:${port}/`;

/** An address of the node's loopback opens on its machine alone. @param {{vm: import("./types.js").Vm}} properties */
export function Address({ vm }) {
  if (!vm.ip) return html`${text.vm.noAddress}`;
  const ip = vm.ip;
  const opens = (isLocal() || !LOOPBACK.test(ip)) && vm.status === "running" && vm.reachable;
  const ports = (vm.ports ?? []).filter((port) => port !== SSH);
  const shown = ports.toSorted((a, b) => a - b).slice(0, SHOWN);
  return html`
    <span class="mono">${ip}</span>${opens && shown.map((port) => html` <a class="tag" key=${port} href=${link(ip, port)} target="_blank" rel="noreferrer" aria-label=${text.vm.opens(ip, port)}>:${port}</a>`)}${opens && ports.length > SHOWN && html` <span class="quiet">+${ports.length - SHOWN}</span>`}
    ${vm.guest_ip && vm.guest_ip !== ip && html`<small>${text.vm.guestIp(vm.guest_ip)}</small>`}`;
}
