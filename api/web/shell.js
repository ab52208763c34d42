// Commands in a guest: the sessions of a VM, each of which can be attached to as a terminal and goes on without it.
import { call, list, socketUrl } from "./api.js";
import { ago } from "./format.js";
import { Guest } from "./guest.js";
import { html, useLoaded, useEvery } from "./html.js";
import { Icon } from "./icons.js";
import { Action, Empty, Failure, Field, Form, Loading, Status } from "./parts.js";
import { keepOpen } from "./sockets.js";
import { peerOf, run } from "./store.js";
import { text } from "./text.js";
import { linkOf } from "./vms.js";
import { TerminalBox } from "./xterm.js";

const t = text.shell;
const EVERY = 3;
const OFFSET_BYTES = 8;
const LOGIN_SHELL = "exec $(command -v bash || echo sh) -l";

/** @typedef {import("./types.js").Vm} Vm */

/** @param {{exit_code?: number | null, signal?: string | null}} end */
const howEnded = ({ exit_code, signal }) => (signal ? t.signal(signal) : t.code(exit_code ?? 0));

/** @param {Vm} vm @param {string} session @returns {import("./xterm.js").Connect} */
const connect = (vm, session) => (heard, tell) => {
  const peer = peerOf(vm.node);
  let next = /** @type {number | null} */ (null);
  const url = () => `${socketUrl(`sessions/${session}/attach`, vm.id, peer)}${next === null ? "" : `?offset=${next}`}`;
  const say = (/** @type {any} */ said) => {
    if (said.opened) {
      const first = said.opened.offset ?? 0;
      // Output that is kept no longer is missing: what follows begins on an empty screen.
      if (next !== null && first > next) heard("\x1bc");
      next = first;
      tell("open", "");
    }
    if (!said.finished) return;
    socket.close();
    tell("ended", howEnded(said.finished));
  };
  const message = (/** @type {ArrayBuffer | string} */ data) => {
    if (typeof data === "string") return say(JSON.parse(data));
    next = Number(new DataView(data).getBigUint64(0)) + data.byteLength - OFFSET_BYTES;
    heard(new Uint8Array(data, OFFSET_BYTES));
  };
  const exists = async () => {
    try {
      await call("get_session", { vm: vm.id, session }, peer);
    } catch (error) {
      if (/** @type {import("./api.js").ApiError} */ (error).status !== 404) return true;
      tell("ended", /** @type {Error} */ (error).message);
      return false;
    }
    return true;
  };
  const socket = keepOpen(url, { message, tell, exists });
  const bytes = new TextEncoder();
  return {
    // A text message is no input: it is what else there is to say.
    send: (data) => socket.send(typeof data === "string" ? bytes.encode(data) : data),
    resize: (columns, rows) => socket.send(JSON.stringify({ resize: [columns, rows] })),
    close: socket.close,
  };
};

/** @param {{vm: Vm, session: string}} properties */
function Shell({ vm, session }) {
  const back = () => void (location.hash = linkOf(vm, "shell"));
  return html`
    <${TerminalBox} name="${vm.id} ${session}" label=${t.label} connect=${connect(vm, session)}>
      <a class="button" href=${linkOf(vm, "shell")}><${Icon} name="back" /><span>${t.all}</span></a>
      <${Action} operation="end_vm_session" label=${t.end} icon="trash" kind="danger" params=${{ vm: vm.id, session }} peer=${peerOf(vm.node)} owner=${vm.owner} node=${vm.node} then=${back} /><//>`;
}

/** @param {{vm: Vm, session: any, then: () => unknown}} properties */
function Row({ vm, session, then }) {
  const common = { params: { vm: vm.id, session: session.id }, peer: peerOf(vm.node), owner: vm.owner, node: vm.node, then, compact: true };
  const runs = session.state === "running";
  return html`
    <tr><th scope="row"><a class="mono" href="${linkOf(vm, "shell")}/${session.id}">${session.command.join(" ")}</a><small>${session.user ? t.as(session.user) : ""} ${session.owner === "local" ? "" : session.owner}</small></th>
      <td><${Status} status=${session.state} />${session.state === "ended" && html`<small>${howEnded(session)}</small>`}</td><td class="wide">${ago(session.started_at)}</td>
      <td class="does">${runs && html`<${Action} ...${common} operation="signal_session" label=${t.interrupt} icon="stop" kind="plain" params=${{ ...common.params, signal: "INT" }} />`}
        <${Action} ...${common} operation="end_vm_session" label=${runs ? t.end : t.forget} icon="trash" kind="plain danger" /></td></tr>`;
}

/** @param {{vm: Vm}} properties */
function Sessions({ vm }) {
  const peer = peerOf(vm.node);
  const [rows, error, again] = useLoaded(() => list("list_vm_sessions", "sessions", { vm: vm.id }, peer), [vm.id]);
  useEvery(again, EVERY, [vm.id]);
  const open = async (/** @type {FormData} */ form) => {
    const command = String(form.get("command")).trim() || LOGIN_SHELL;
    const env = { TERM: "xterm-256color" };
    const made = await run("exec_vm", { vm: vm.id, command: ["sh", "-c", command], env, terminal: true, interactive: true, detach: true }, peer);
    location.hash = `${linkOf(vm, "shell")}/${made.session}`;
  };
  return html`
    <section class="card" aria-label=${t.table}>
      <${Form} id="run" operation="exec_vm" label=${t.open} submit=${open}>
        <${Field} label=${t.command} hint=${t.hint}><input name="command" maxlength="4096" placeholder=${t.login} autocomplete="off" spellcheck="false" class="mono" /><//><//>
      ${error ? html`<${Failure} error=${error} retry=${again} />` : !rows ? html`<${Loading} rows=${2} />` : !rows.length ? html`<${Empty} icon="terminal" title=${t.empty} />` : html`
        <table id="guest-sessions"><thead><tr><th scope="col">${t.command}</th><th scope="col">${text.forwards.state}</th><th scope="col" class="wide">${t.started}</th><th class="does"><span class="unseen">${text.vms.actions}</span></th></tr></thead>
          <tbody>${rows.map((session) => html`<${Row} key=${session.id} vm=${vm} session=${session} then=${again} />`)}</tbody></table>`}
    </section>`;
}

/** @param {{vm: Vm, rest: string[]}} properties */
export const view = ({ vm, rest }) => html`<${Guest} vm=${vm}>${rest[0] ? html`<${Shell} vm=${vm} session=${rest[0]} />` : html`<${Sessions} vm=${vm} />`}<//>`;
