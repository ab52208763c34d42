// The serial console of a VM as a terminal: what it wrote before, then live, typed into as it is.
import { call, socketUrl } from "./api.js";
import { html } from "./html.js";
import { keepOpen } from "./sockets.js";
import { peerOf } from "./store.js";
import { text } from "./text.js";
import { TerminalBox } from "./xterm.js";

const BACKLOG = 65536;

/** @param {import("./types.js").Vm} vm @returns {import("./xterm.js").Connect} */
const connect = (vm) => (heard, tell) => {
  const peer = peerOf(vm.node);
  let closed = false;
  // What was written before comes from the log, and from then on what is heard is newer.
  let ready = false;
  const opened = async () => {
    ready = false;
    const log = await call("vm_log", { vm: vm.id, limit: BACKLOG }, peer).catch(() => null);
    if (closed) return;
    if (log) heard(`\x1bc${log.text}`);
    ready = true;
    tell("open", "");
  };
  const message = (/** @type {ArrayBuffer | string} */ data) => {
    if (ready) heard(typeof data === "string" ? data : new Uint8Array(data));
  };
  const socket = keepOpen(() => socketUrl("console", vm.id, peer), { opened, message, tell });
  return { send: socket.send, close: () => ((closed = true), socket.close()) };
};

/** @param {{vm: import("./types.js").Vm}} properties */
export const view = ({ vm }) => html`<${TerminalBox} name=${vm.id} label=${text.terminal.label} connect=${connect(vm)} />`;
